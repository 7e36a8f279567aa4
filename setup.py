"""Builds what pyproject.toml cannot say: the root folder is the package `drivestack`, and the compiled operators.

Two shared objects on torch's stable ABI: `ops/_C` for the CPU and `ops/_C_cuda` for GPUs. Both are optional: whatever
is missing or fails, the installation succeeds, one line says what was built and what was not, `ops/_build.json` keeps
it for `drivestack doctor`, and the reference implementations in PyTorch run.
docs/build.md says more.

`python setup.py build_ext --inplace` builds into ops/ without installing anything; a failed compilation, or CUDA
kernels demanded with DRIVESTACK_CUDA=1 that cannot be built, end it with an error.

Environment: DRIVESTACK_CUDA=auto|0|1 (auto: if a GPU is visible), TORCH_CUDA_ARCH_LIST, CUDA_HOME, CXX, MAX_JOBS,
DRIVESTACK_BUILD_OPS=0 leaves both out, DRIVESTACK_CXXFLAGS come after our own flags for the C++ compiler.
"""

import base64
import hashlib
import json
import logging
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import time
import zipfile
from collections.abc import MutableMapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import setuptools
from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
CSRC = ROOT / "ops/csrc"
RECORD = "_build.json"
NEEDS_SETUPTOOLS = 77  # pyproject.toml says the same, but --no-build-isolation does not look there
STABLE_ABI_TORCH = "0x020b000000000000"  # torch 2.11, the oldest we support
# -ffast-math is left out on purpose: it would flip denormal handling for the whole process.
FLAGS = ["-O3", "-g0", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math", "-fvisibility=hidden"]
FLAGS += ["-Wno-maybe-uninitialized", "-Wno-uninitialized"]  # g++ 12 warns about its own AVX-512 header
NVCC_FLAGS = ["-O3", "-Xcompiler", "-fvisibility=hidden"]
INSTRUCTION_SETS = ("avx512", "avx2", "baseline")
ARCHITECTURES = ("7.5", "8.0", "8.6", "8.9", "9.0", "10.0", "12.0")
"""What DRIVESTACK_CUDA=1 builds for where no GPU is visible, as far as nvcc knows them; PTX of the last one."""


class CannotBuildError(Exception):
    """Something that a kernel build needs is missing. `reason` completes "not built: ...", `fix` says what to do."""

    def __init__(self, reason: str, fix: str):
        super().__init__(f"{reason} ({fix})")
        self.reason, self.fix = reason, fix


@dataclass
class Outcome:
    """What became of one extension."""

    built: bool = False
    file: str | None = None
    variants: list[str] = field(default_factory=list)
    """Instruction sets of the CPU kernels, architectures of the CUDA kernels."""
    toolkit: str | None = None
    seconds: float | None = None
    reason: str | None = None
    fix: str | None = None

    def report(self, name: str) -> str:
        if self.built:
            toolkit = f"{self.toolkit}: " if self.toolkit else ""
            return f"{name} kernels built in {self.seconds:.1f} s ({self.file}; {toolkit}{', '.join(self.variants)})"
        return f"{name} kernels not built: {self.reason} ({self.fix})"


def sources(kind: str) -> list[str]:
    """Sources of `_C` ("cpu") or `_C_cuda` ("cuda"), relative to the root."""
    found = [p for p in CSRC.glob("*.cpp") if ("cuda" in p.stem) == (kind == "cuda")]
    found += [p for p in (CSRC / kind).glob("*.c*") if p.suffix in (".cpp", ".cu")]
    return sorted(str(p.relative_to(ROOT)) for p in found)


def headers() -> list[str]:
    return sorted(str(p.relative_to(ROOT)) for p in CSRC.rglob("*.*") if p.suffix in (".h", ".cuh", ".inl"))


# ---- what can be built here ------------------------------------------------------------------------------------------


def check_compiler(environ: MutableMapping[str, str]) -> None:
    if environ.get("DRIVESTACK_BUILD_OPS") == "0":
        raise CannotBuildError("DRIVESTACK_BUILD_OPS=0", "unset it")
    compiler = (environ.get("CXX") or "c++").split()[0]
    if not shutil.which(compiler, path=environ.get("PATH")):
        raise CannotBuildError(f"no C++ compiler `{compiler}` found", "install g++ or clang, or set CXX")
    include = sysconfig.get_path("include")
    if not Path(include, "Python.h").is_file():
        fix = "install them, on Debian and Ubuntu `apt install python3-dev`"
        raise CannotBuildError(f"the headers of Python {platform.python_version()} are not in {include}", fix)
    try:
        import torch  # noqa: F401
    except ImportError:
        fix = "pip install torch first, then use --no-build-isolation"
        raise CannotBuildError("torch is not importable while building", fix) from None


def cuda_mode(environ: MutableMapping[str, str]) -> str:
    mode = environ.get("DRIVESTACK_CUDA") or "auto"
    if mode not in ("auto", "0", "1"):
        raise SystemExit(f"drivestack: DRIVESTACK_CUDA must be auto, 0 or 1; got {mode!r}")
    return mode


def ask(command: list[str]) -> str:
    """Everything a tool prints; raises CannotBuildError if it fails."""
    fix = "repair the CUDA toolkit, or let CUDA_HOME name one that works"
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CannotBuildError(f"{command[0]} does not run: {first_line(error)}", fix) from None
    if done.returncode:
        raise CannotBuildError(f"`{' '.join(command)}` fails with exit code {done.returncode}", fix)
    return done.stdout.decode(errors="replace")


def first_line(error: BaseException) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)


@dataclass(frozen=True)
class Toolkit:
    """A CUDA toolkit."""

    home: str
    version: tuple[int, int]
    architectures: tuple[str, ...]
    """Compute capabilities that its nvcc compiles for, such as "9.0"."""


def find_toolkit(environ: MutableMapping[str, str]) -> Toolkit:
    """The toolkit of CUDA_HOME (or CUDA_PATH), else the one that the nvcc on the PATH belongs to."""
    named = environ.get("CUDA_HOME") or environ.get("CUDA_PATH")
    nvcc = str(Path(named, "bin/nvcc")) if named else shutil.which("nvcc", path=environ.get("PATH"))
    if named and not Path(nvcc).is_file():
        raise CannotBuildError(f"CUDA_HOME={named} has no bin/nvcc", "let it name a CUDA toolkit, or unset it")
    if not nvcc and Path("/usr/local/cuda/bin/nvcc").is_file():
        nvcc = "/usr/local/cuda/bin/nvcc"
    if not nvcc:
        raise CannotBuildError("no nvcc found", "install the CUDA toolkit, or let CUDA_HOME name it")
    version = re.search(r"release (\d+)\.(\d+)", ask([nvcc, "--version"]))
    if not version:
        fix = "repair the CUDA toolkit, or let CUDA_HOME name one that works"
        raise CannotBuildError(f"`{nvcc} --version` names no release", fix)
    home = named
    if not home:  # a wrapper script may stand anywhere, so nvcc itself is asked
        top = re.search(r"^#\$ TOP=(.+)$", ask([nvcc, "--dryrun", "nothing.cu"]), re.MULTILINE)
        home = str(Path(top[1].strip()).resolve() if top else Path(nvcc).resolve().parent.parent)
    codes = re.findall(r"^sm_(\d+)(\d)$", ask([nvcc, "--list-gpu-code"]), re.MULTILINE)
    return Toolkit(home, (int(version[1]), int(version[2])), tuple(f"{major}.{minor}" for major, minor in codes))


def number(architecture: str) -> tuple[int, ...]:
    return tuple(map(int, architecture.split(".")))


def choose_architectures(wanted: str | None, capabilities: list[tuple[int, int]], toolkit: Toolkit) -> str:
    """A TORCH_CUDA_ARCH_LIST: the one given, else for the visible GPUs, else for all that we support.

    A GPU newer than nvcc gets the PTX of the newest architecture that nvcc knows.
    """
    if wanted:
        return wanted
    known = sorted(toolkit.architectures, key=number)
    release = "nvcc {}.{}".format(*toolkit.version)
    if not known:
        raise CannotBuildError(f"{release} lists no architectures", "let TORCH_CUDA_ARCH_LIST name one, such as 9.0")
    if not capabilities:
        chosen = [a for a in ARCHITECTURES if a in known]
        return ";".join(chosen or known[-1:]) + "+PTX"
    chosen = set()
    for capability in capabilities:
        below = [a for a in known if number(a)[0] == capability[0] and number(a) <= capability]
        if below:
            chosen.add(below[-1])
        elif capability > number(known[-1]):
            chosen.add(known[-1])
        else:
            name = "sm_{}{}".format(*capability)
            fix = "install an older toolkit and a torch that fits it; CUDA 12 was the last for sm_50 to sm_72"
            raise CannotBuildError(f"{release} cannot compile for the GPU here ({name})", fix)
    return ";".join(sorted(chosen, key=number)) + "+PTX"


def plan_cuda(environ: MutableMapping[str, str]) -> tuple[Toolkit, str]:
    """The toolkit and the architectures to build the CUDA kernels with; raises CannotBuildError."""
    mode = cuda_mode(environ)
    if mode == "0":
        raise CannotBuildError("DRIVESTACK_CUDA=0", "unset it")
    import torch

    if torch.version.cuda is None:
        raise CannotBuildError(f"torch {torch.__version__} has no CUDA", "install a CUDA build of torch")
    seen = torch.cuda.is_available()
    if mode == "auto" and not seen:
        raise CannotBuildError("no GPU is visible", "DRIVESTACK_CUDA=1 builds them nevertheless")
    toolkit = find_toolkit(environ)
    if toolkit.version[0] != int(torch.version.cuda.split(".")[0]):
        reason = f"nvcc {toolkit.version[0]}.{toolkit.version[1]} and torch's CUDA {torch.version.cuda} differ"
        fix = "let CUDA_HOME name a toolkit of torch's major version"
        raise CannotBuildError(reason, fix)
    if not shutil.which("ninja"):
        raise CannotBuildError("no ninja found", "pip install ninja")
    capabilities = [torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())] if seen else []
    return toolkit, choose_architectures(environ.get("TORCH_CUDA_ARCH_LIST"), capabilities, toolkit)


# ---- building --------------------------------------------------------------------------------------------------------


def plan(environ: MutableMapping[str, str]) -> tuple[list[Extension], dict[str, Outcome]]:
    """The extensions that can be built here, and for each of "cpu" and "cuda" what it will be or why it cannot be."""
    extensions, outcomes, nvcc_flags = [], {"cpu": Outcome(), "cuda": Outcome()}, list(NVCC_FLAGS)
    for kind, outcome in reversed(outcomes.items()):  # torch reads the CUDA_HOME that is found for the CUDA kernels
        try:
            check_compiler(environ)
            if kind == "cuda":
                toolkit, architectures = plan_cuda(environ)
                environ |= {"CUDA_HOME": toolkit.home, "TORCH_CUDA_ARCH_LIST": architectures}
                outcome.toolkit = "CUDA {}.{}".format(*toolkit.version)
                outcome.variants = architecture_names()
                if toolkit.version >= (13, 0):  # a third of the size; every driver of CUDA 13 reads it
                    nvcc_flags.append("--compress-mode=size")
            else:
                sets = INSTRUCTION_SETS if platform.machine() in ("x86_64", "AMD64") else INSTRUCTION_SETS[-1:]
                outcome.variants = [s for s in sets if any(f"_{s}." in source for source in sources(kind))]
            extensions.append(extension(kind, outcome.variants, nvcc_flags))
        except CannotBuildError as error:
            outcome.reason, outcome.fix = error.reason, error.fix
    return extensions, outcomes


def report(outcomes: dict[str, Outcome]) -> str:
    cpu, cuda = outcomes["cpu"], outcomes["cuda"]
    line = cpu.report("CPU and CUDA") if cpu == cuda else f"{cpu.report('CPU')}; {cuda.report('CUDA')}"
    return line if cpu.built else f"{line}; the operators will use their slow PyTorch implementation"


def architecture_names() -> list[str]:
    """TORCH_CUDA_ARCH_LIST as torch reads it: ["75", "120+PTX"]."""
    from torch.utils.cpp_extension import _get_cuda_arch_flags

    try:
        codes = re.findall(r"code=(sm|compute)_(\w+)", " ".join(_get_cuda_arch_flags()))
    except ValueError as error:
        raise CannotBuildError(first_line(error), "correct TORCH_CUDA_ARCH_LIST, for example 8.0;9.0+PTX") from None
    names = sorted((name for kind, name in codes if kind == "sm"), key=lambda name: int(re.sub(r"\D", "", name)))
    return [name + "+PTX" if ("compute", name) in codes else name for name in names]


def extension(kind: str, variants: list[str], nvcc_flags: list[str]) -> Extension:
    from torch.utils.cpp_extension import CppExtension, CUDAExtension

    cuda = kind == "cuda"
    macros = [("TORCH_TARGET_VERSION", STABLE_ABI_TORCH)]
    if cuda:  # the library reports them, so that a GPU it has no code for is noticed before the first launch
        macros += [("USE_CUDA", None), ("DRIVESTACK_CUDA_ARCHITECTURES", f'"{" ".join(variants)}"')]
    made = (CUDAExtension if cuda else CppExtension)(
        "drivestack.ops._C_cuda" if cuda else "drivestack.ops._C",
        sources(kind),
        depends=headers(),
        py_limited_api=True,
        define_macros=macros,
        extra_compile_args={"cxx": FLAGS + shlex.split(os.environ.get("DRIVESTACK_CXXFLAGS", ""))}
        | ({"nvcc": nvcc_flags} if cuda else {}),
    )
    if cuda:  # with its own CUDA runtime the file works with every torch of this major version of CUDA
        made.libraries = ["c10", "torch", "torch_cpu", "torch_cuda", "cudart_static", "rt", "dl", "pthread"]
    return made


def build_command(outcomes: dict[str, Outcome]):
    """A build_ext that builds each extension by itself, so that a failure of one leaves the other, and reports."""
    try:
        from torch.utils.cpp_extension import BuildExtension as Base
    except ImportError:
        Base = build_ext

    class BuildOperators(Base):
        def finalize_options(self):
            # Kept between builds, so that ninja compiles only what changed, in editable installations too.
            if self.build_temp is None:
                self.build_temp = str(ROOT / "build" / f"ops-{platform.machine()}")
            super().finalize_options()

        def run(self):
            super().run()
            folder = ROOT / "ops" if self.inplace else Path(self.build_lib) / "drivestack/ops"
            folder.mkdir(parents=True, exist_ok=True)
            record = {kind: asdict(outcome) for kind, outcome in outcomes.items()}
            (folder / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
            print(f"drivestack: {report(outcomes)}", file=sys.stderr)
            missing = outcomes["cuda"].reason and cuda_mode(os.environ) == "1"
            if (missing or self.failures) and self.inplace and not self.editable_mode:
                raise SystemExit(1)  # a build was asked for, not an installation

        def build_extensions(self):
            folder, built, self.failures = self.build_temp, [], 0
            for made in [e for e in self.extensions if e.sources]:
                outcome = outcomes["cuda" if made.name.endswith("_cuda") else "cpu"]
                started = time.monotonic()
                self.extensions, self.build_temp = [made], os.path.join(folder, made.name)
                try:
                    super().build_extensions()
                except Exception as error:  # whatever a compiler, a linker or torch does: kernels are optional
                    self.failures += 1
                    outcome.reason = f"the build failed, {first_line(error)}"
                    outcome.fix = "`python setup.py build_ext --inplace` shows why"
                else:
                    built.append(made)
                    outcome.built, outcome.seconds = True, round(time.monotonic() - started, 1)
                    outcome.file = os.path.basename(self.get_ext_filename(made.name))
            self.extensions, self.build_temp = built, folder

    return BuildOperators


class BuildWithoutSetup(build_py):
    """The root folder is a package, so this very file would go into the wheel."""

    def find_package_modules(self, package, package_dir):
        return [m for m in super().find_package_modules(package, package_dir) if m[:2] != ("drivestack", "setup")]


BEFORE_FOLDERS = '''

class _BeforeFolders:
    """Finds the package where the path has no more than a folder of its name, which import would take instead."""

    @staticmethod
    def find_spec(fullname, path=None, target=None):
        if fullname not in MAPPING:
            return None
        found = PathFinder.find_spec(fullname, path)
        return None if found is not None and found.origin else _EditableFinder.find_spec(fullname)


_install_behind = install


def install():
    _install_behind()
    sys.meta_path.insert(0, _BeforeFolders)
'''
"""Added to the finder of an editable installation, which comes behind the working directory: any folder that is called
drivestack there, an outer folder of the checkout for instance, would hide the package (pypa/setuptools#3557)."""


def editable_command():
    """An editable installation that a folder called drivestack does not hide; a package of that name still does."""
    from setuptools.command.editable_wheel import editable_wheel

    class EditableBeforeFolders(editable_wheel):
        def run(self):
            super().run()
            for wheel in Path(self.dist_dir).glob("drivestack-*editable*.whl"):
                extend_finder(wheel)

    return EditableBeforeFolders


def extend_finder(wheel: Path) -> None:
    """Add BEFORE_FOLDERS to the finder in the wheel, if it has one of the kind that this is written for."""
    with zipfile.ZipFile(wheel) as archive:
        files = {info: archive.read(info) for info in archive.infolist()}
    finder = next((info for info in files if re.fullmatch(r"__editable__\w+_finder\.py", info.filename)), None)
    record = next((info for info in files if info.filename.endswith(".dist-info/RECORD")), None)
    if finder is None or record is None or any(name not in files[finder] for name in (b"MAPPING", b"PathFinder")):
        return
    files[finder] += BEFORE_FOLDERS.encode()
    digest = base64.urlsafe_b64encode(hashlib.sha256(files[finder]).digest()).rstrip(b"=").decode()
    line = f"{finder.filename},sha256={digest},{len(files[finder])}"
    files[record] = re.sub(rf"{re.escape(finder.filename)},.*", line, files[record].decode()).encode()
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        for info, content in files.items():
            archive.writestr(info, content)


def check_setuptools() -> None:
    """End with the reason where setuptools is too old to understand pyproject.toml, which it reads later."""
    if int(setuptools.__version__.partition(".")[0]) < NEEDS_SETUPTOOLS:
        needed = f"needs setuptools>={NEEDS_SETUPTOOLS}, here is {setuptools.__version__}"
        raise SystemExit(f"drivestack: {needed}: pip install -U setuptools")


def main() -> None:
    check_setuptools()
    # An interpreter of an environment that is not activated has its ninja beside it.
    os.environ["PATH"] = os.pathsep.join([os.environ.get("PATH", os.defpath), os.path.dirname(sys.executable)])
    os.environ.setdefault("MAX_JOBS", str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 2))
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # guesses about CUDA_HOME
    extensions, outcomes = plan(os.environ)
    packages = find_packages(str(ROOT), exclude=["build", "build.*"])
    setup(
        package_dir={"drivestack": "."},
        packages=["drivestack", *(f"drivestack.{name}" for name in packages)],
        ext_modules=extensions or [Extension("drivestack.ops._C", [])],  # without any, nothing would report why
        cmdclass={
            "build_ext": build_command(outcomes),
            "build_py": BuildWithoutSetup,
            "editable_wheel": editable_command(),
        },
        options={"bdist_wheel": {"py_limited_api": "cp310"}},
    )


if __name__ == "__main__":
    main()
