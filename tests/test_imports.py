"""Every module imports with the smallest install: no development tools, no OpenMMLab, no devkit at import time."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

# Installed for tests and bridges only, or (nuscenes) slow to import and needed by a few functions.
NOT_AT_IMPORT = (
    "crc32c",
    "google.protobuf",
    "google_crc32c",
    "hypothesis",
    "mcap",
    "mcap_ros2",
    "mmcv",
    "mmdet",
    "mmdet3d",
    "mmseg",
    "nuscenes",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "openlanev2",
    "pyarrow",
    "pytest",
    "tensorflow",
    "timm",
    "transformers",
    "waymo_open_dataset",
)

PROGRAM = """
import importlib, sys

sys.modules.update(dict.fromkeys({absent!r}))  # None: not there
for name in {modules!r}:
    try:
        importlib.import_module(name)
    except Exception as error:
        sys.exit(f"{{name}}: {{type(error).__name__}}: {{error}}")
"""


def module_names(root: Path) -> list[str]:
    """All modules of the package; config files are configs, not modules (test_configs.py reads them)."""
    rooms = [path.parent for path in root.glob("*/__init__.py") if path.parent.name != "configs"]
    files = [*root.glob("*.py"), *(path for room in rooms for path in room.rglob("*.py"))]
    skipped = {root / "setup.py", root / "__main__.py"}
    names = []
    for path in sorted(set(files) - skipped):
        parts = ("drivestack", *path.relative_to(root).with_suffix("").parts)
        names.append(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    return names


def test_every_module_imports_with_the_smallest_install(repository_root: Path) -> None:
    names = module_names(repository_root)
    assert {"drivestack.cli.main", "drivestack.bev.bevformer_v2", "drivestack.engine.train"} <= set(names)
    program = PROGRAM.format(absent=NOT_AT_IMPORT, modules=names)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd="/")
    assert done.returncode == 0, done.stderr.strip().splitlines()[-1]


def test_importing_the_package_is_light() -> None:
    program = "import sys, drivestack; sys.stdout.write(' '.join({'torch', 'numpy', 'mmengine'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd="/", check=True)
    assert done.stdout == ""
