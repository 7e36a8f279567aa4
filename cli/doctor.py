"""What this installation has, what it lacks, and what to do about it (`drivestack doctor`)."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

OK: Final = "ok"
NOTE: Final = "note"
BROKEN: Final = "broken"

ROOT = Path(__file__).resolve().parents[1]
IN_CHECKOUT = (ROOT / "Makefile").is_file()
MIN_FREE_DISK_GB = 3.0

REQUIRED = {
    "torch": "torch",
    "torchvision": "torchvision",
    "numpy": "numpy",
    "scipy": "scipy",
    "PIL": "pillow",
    "cv2": "opencv-python-headless",
    "safetensors": "safetensors",
    "mmengine": "onedl-mmengine",
    "shapely": "shapely",
    "msgspec": "msgspec",
    "rich": "rich",
}
"""Module -> distribution: the core of pyproject.toml."""

DEVKIT = "pip install --no-deps nuscenes-devkit==1.2.0"


@dataclass(frozen=True)
class Extra:
    """An optional part of the installation."""

    modules: tuple[str, ...]
    """What it brings, by import name."""
    purpose: str
    """What is missing without it."""
    install: str = ""
    """Beyond the extra itself, what no extra can name."""


EXTRAS = {
    "synthetic": Extra(("embreex",), "drivestack demo and drivestack synthesize"),
    "eval": Extra(
        ("nuscenes", "matplotlib", "pyquaternion", "sklearn", "tqdm", "cachetools"),
        "box scores by nuscenes-devkit itself (--official); our own, equal ones are here",
        DEVKIT,
    ),
    "argoverse": Extra(("pyarrow",), "Argoverse 2: logs, boxes, submissions"),
    "waymo": Extra(
        ("google.protobuf", "pyarrow", "waymo_open_dataset"),
        "reading and writing Waymo v1 records (reader waymo); v2 needs pyarrow alone",
        "pip install --no-deps waymo-open-dataset-tf-2-12-0==1.6.7",
    ),
    "mcap": Extra(("mcap", "mcap_ros2"), "reading a car's own ROS 2 recordings (MCAP), without ROS"),
    "classification": Extra(("timm",), "training classifiers: augmentation and mixup; InternImage in timm's registry"),
    "export": Extra(("onnx", "onnxscript"), "ONNX files of operators and models (drivestack.export.onnx)"),
    "dev": Extra(
        ("pytest", "pytest_timeout", "hypothesis", "ruff", "mypy", "ninja", "onnxruntime"), "the tests and the lint"
    ),
}
"""Name in pyproject.toml -> what it is for; view is empty so far."""

OPENMMLAB = {"mmcv": "mmcv-lite", "mmdet": "mmdet", "mmseg": "mmsegmentation", "mmdet3d": "mmdet3d"}
"""Module -> distribution: what `make openmmlab` installs, for which there is no extra."""


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    status: Literal["ok", "note", "broken"]
    """broken: the project cannot work; note: something optional is missing or slow."""
    name: str
    detail: str
    fix: str = ""


def examine() -> list[Finding]:
    """Look at Python, packages, devices, operators, extras, tools and disk. Never raises for a missing package."""
    findings = [_python(), *map(_package, REQUIRED)]
    if all(finding.status == OK for finding in findings):
        findings += [*_devices(), *_operators(), _weights()]
    return [*findings, *map(_extra, EXTRAS), _openmmlab(), _disk()]


def _python() -> Finding:
    version = platform.python_version()
    detail = f"{version} at {sys.executable}, {os.cpu_count()} cores, {platform.machine()}"
    return Finding(OK, "python", detail)


def _package(module: str) -> Finding:
    distribution = REQUIRED[module]
    fix = f"run `make setup` in {ROOT}" if IN_CHECKOUT else f"pip install --force-reinstall {distribution}"
    try:
        importlib.import_module(module)
        version = importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return Finding(BROKEN, distribution, f"another distribution provides `{module}`", fix)
    except Exception as error:  # whatever a broken package raises, the report goes on
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        return Finding(BROKEN, distribution, f"cannot be imported: {reason}", fix)
    return Finding(OK, distribution, version)


def _devices() -> list[Finding]:
    import torch

    driver = _driver_version()
    if not torch.cuda.is_available():
        threads = f"torch {torch.__version__} runs on {torch.get_num_threads()} CPU threads"
        if driver and torch.version.cuda:
            detail = f"driver {driver} is here, but torch (CUDA {torch.version.cuda}) sees no GPU; {threads}"
            fix = f"update the driver to one for CUDA {torch.version.cuda}, or look at CUDA_VISIBLE_DEVICES"
        elif driver:
            detail, fix = f"driver {driver} is here, but torch has no CUDA; {threads}", "install a CUDA build of torch"
        else:
            detail = f"no CUDA device; {threads}"
            fix = "nothing to do: everything runs on the CPU. For a GPU: install its driver and a torch build with CUDA"
        return [Finding(NOTE, "gpu", detail, fix)]
    found = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        memory_gb = properties.total_memory / 2**30
        capability = f"{properties.major}.{properties.minor}"
        detail = f"{properties.name}, {memory_gb:.0f} GB, sm {capability}, CUDA {torch.version.cuda}, driver {driver}"
        found.append(Finding(OK, f"gpu {index}", detail))
    return found


def _driver_version() -> str | None:
    """Of the NVIDIA driver of the running kernel, such as 580.95.05; None where there is none."""
    try:
        text = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8")
    except OSError:
        return None
    version = re.search(r"\s(\d+\.\d+(?:\.\d+)?)\s", text)
    return version[1] if version else "of unknown version"


def _operators() -> list[Finding]:
    import torch

    from ..ops import backend_report

    report = backend_report()
    if report["reason"]:
        detail = f"the slow PyTorch reference implementations are used: {report['reason']}"
        found = [Finding(NOTE, "operators on CPU", detail, str(report["fix"]))]
    else:
        detail = f"C++ kernels, {report['instruction_set']} code, threads: {report['threads']}, {report['path']}"
        found = [Finding(OK, "operators on CPU", detail + _how_built("cpu"))]
    cuda, name = report["cuda"], "operators on GPU"
    if cuda["path"] is None and not torch.cuda.is_available():
        fix = f"nothing to do without a GPU; to build them nevertheless, {cuda['fix']}"
        found.append(Finding(NOTE, name, f"no CUDA kernels: {cuda['reason']}", fix))
    elif cuda["reason"] and torch.cuda.is_available():
        detail = f"the slow PyTorch reference implementations are used for CUDA tensors: {cuda['reason']}"
        found.append(Finding(NOTE, name, detail, str(cuda["fix"])))
    elif cuda["fix"]:  # built, but not usable on a GPU
        found.append(Finding(NOTE, name, f"the CUDA kernels cannot be used: {cuda['reason']}", cuda["fix"]))
    else:
        here = "" if torch.cuda.is_available() else " (no GPU here)"
        detail = f"CUDA kernels for sm {cuda['architectures']}{here}, {cuda['path']}{_how_built('cuda')}"
        found.append(Finding(OK, name, detail))
    return found


def _how_built(device_type: str) -> str:
    from ..ops.dispatch.backend import build_record

    record = build_record(device_type)
    if not record.get("built"):
        return ""
    what = f"with {record['toolkit']}" if record["toolkit"] else f"for {', '.join(record['variants'])}"
    return f", built {what} in {record['seconds']:.1f} s"


def _weights() -> Finding:
    from .demo import DEMO_CONFIG, DEMO_WEIGHTS

    if not DEMO_WEIGHTS.is_file():
        fix = f"check the file out of git again, or train: `drivestack train {DEMO_CONFIG}`"
        return Finding(NOTE, "demo weights", f"{DEMO_WEIGHTS} is missing", fix)
    return Finding(OK, "demo weights", f"{DEMO_WEIGHTS} ({DEMO_WEIGHTS.stat().st_size / 2**20:.1f} MB)")


def _has(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def _extra(name: str) -> Finding:
    extra = EXTRAS[name]
    missing = [module for module in extra.modules if not _has(module)]
    if not missing:
        return Finding(OK, f"extra {name}", ", ".join(extra.modules))
    fix = f"pip install 'drivestack[{name}]'" + (f", then {extra.install}" if extra.install else "")
    return Finding(NOTE, f"extra {name}", f"not here: {extra.purpose}; lacks {', '.join(missing)}", fix)


def _openmmlab() -> Finding:
    name, fix = "openmmlab", "run `make openmmlab` in a checkout of drivestack: see docs/openmmlab.md"
    missing = [module for module in OPENMMLAB if not _has(module)]
    if missing:
        purpose = "detection and segmentation with mmdet and mmseg, and their own tools"
        return Finding(NOTE, name, f"not here: {purpose}; lacks {', '.join(missing)}", fix)
    if not _has("mmcv._ext"):
        return Finding(NOTE, name, "`import mmcv.ops` fails outside drivestack: mmcv has no operators", fix)
    return Finding(OK, name, ", ".join(f"{module} {_version(module)}" for module in OPENMMLAB))


def _version(module: str) -> str:
    """Of what is installed under that name, which may be another distribution (mmcv, onedl-mmdetection)."""
    distributions = importlib.metadata.packages_distributions().get(module, [OPENMMLAB[module]])
    try:
        return importlib.metadata.version(distributions[0])
    except importlib.metadata.PackageNotFoundError:
        return "of unknown version"


def _disk() -> Finding:
    free_gb = shutil.disk_usage(Path.cwd()).free / 2**30
    detail = f"{free_gb:.1f} GB free in {Path.cwd()}"
    if free_gb < MIN_FREE_DISK_GB:
        return Finding(NOTE, "disk", detail, f"the demo and training want {MIN_FREE_DISK_GB:.0f} GB: free some")
    return Finding(OK, "disk", detail)
