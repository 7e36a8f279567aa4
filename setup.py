"""Builds what pyproject.toml cannot say: the root folder is the package `drivestack`, and the C++ operators.

The operators are optional. Without a C++ compiler, or if the build fails, the installation succeeds, says so in one
line, and the PyTorch twins serve. `python setup.py build_ext --inplace` builds them into ops/ without installing
anything. DRIVESTACK_BUILD_OPS=0 leaves them out.
"""

import os
import shutil
import sys
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
ROOMS = ("geometry", "ops", "backbone", "bev", "occupancy", "lane_topology", "data_tools", "configs", "engine")
SOURCES = [
    str(p.relative_to(ROOT)) for folder in ("ops/csrc", "ops/csrc/cpu") for p in sorted((ROOT / folder).glob("*.cpp"))
]
HEADERS = [str(p.relative_to(ROOT)) for p in sorted((ROOT / "ops/csrc").rglob("*.*")) if p.suffix in (".h", ".inl")]
STABLE_ABI_TORCH = "0x020b000000000000"  # torch 2.11, the oldest we support
# -ffast-math is left out on purpose: it would flip denormal handling for the whole process.
FLAGS = ["-O3", "-g0", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math", "-fvisibility=hidden"]


def say(message: str) -> None:
    print(f"drivestack: {message}; the slow PyTorch twins of the C++ operators will serve.", file=sys.stderr)


class BuildWithoutSetup(build_py):
    """The root folder is a package, so this very file would go into the wheel."""

    def find_package_modules(self, package, package_dir):
        return [m for m in super().find_package_modules(package, package_dir) if m[:2] != ("drivestack", "setup")]


def extension_and_command():
    """([extension], build command); no extension, and one line saying why, where it cannot be built."""
    skip = None
    try:
        from torch.utils.cpp_extension import BuildExtension, CppExtension
    except ImportError:
        skip = "torch is not importable while building (pip install torch first, then use --no-build-isolation)"
    else:
        if os.environ.get("DRIVESTACK_BUILD_OPS") == "0":
            skip = "DRIVESTACK_BUILD_OPS=0"
        elif not shutil.which((os.environ.get("CXX") or "c++").split()[0]):
            skip = "no C++ compiler found (install g++ or clang, or set CXX)"
    if skip:
        say(skip)
        return [], build_ext

    class OptionalBuild(BuildExtension):
        def run(self):
            asked_for = self.inplace and not self.editable_mode
            try:
                super().run()
            except Exception as error:  # any failure of compiler or linker: the twins serve
                if asked_for:
                    raise
                reason = str(error).splitlines()[0] if str(error) else type(error).__name__
                say(f"the build failed ({reason})")
                self.extensions = []

    extension = CppExtension(
        "drivestack.ops._C",
        SOURCES,
        depends=HEADERS,
        py_limited_api=True,
        define_macros=[("TORCH_TARGET_VERSION", STABLE_ABI_TORCH)],
        extra_compile_args={"cxx": FLAGS},
    )
    return [extension], OptionalBuild


extensions, build_command = extension_and_command()
packages = find_packages(str(ROOT), include=[pattern for r in ROOMS for pattern in (r, f"{r}.*")])
setup(
    package_dir={"drivestack": "."},
    packages=["drivestack", *(f"drivestack.{name}" for name in packages)],
    ext_modules=extensions,
    cmdclass={"build_ext": build_command, "build_py": BuildWithoutSetup},
    options={"bdist_wheel": {"py_limited_api": "cp311"}} if extensions else {},
)
