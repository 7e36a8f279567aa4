"""The wheel holds drivestack and nothing else."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def source(repository_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tracked files."""
    source = tmp_path_factory.mktemp("source")
    listed = subprocess.run(["git", "ls-files"], cwd=repository_root, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    for name in listed.stdout.splitlines():
        if (repository_root / name).is_file() and not name.startswith("tests/reference/"):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(repository_root / name, source / name)
    return source


@pytest.fixture(scope="module")
def wheel_names(source: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Files in a wheel built without the compiled operators (they take a minute)."""
    out = tmp_path_factory.mktemp("wheel")
    run(source, "-m", "pip", "wheel", "--no-build-isolation", "--no-deps", "--wheel-dir", str(out), ".")
    (wheel,) = out.glob("drivestack-*.whl")
    return zipfile.ZipFile(wheel).namelist()


def run(folder: Path, *arguments: str) -> None:
    environment = os.environ | {"DRIVESTACK_BUILD_OPS": "0"}
    done = subprocess.run([sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_only_drivestack_at_the_top(wheel_names: list[str]) -> None:
    tops = {name.split("/")[0] for name in wheel_names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"drivestack"}


def test_every_module_of_the_checkout_is_in(wheel_names: list[str], source: Path) -> None:
    rooms = [path.parent for path in source.glob("*/__init__.py")]
    files = {path for room in rooms for path in room.rglob("*.py")} | set(source.glob("*.py"))
    expected = {f"drivestack/{path.relative_to(source)}" for path in files} - {"drivestack/setup.py"}
    assert len(expected) > 150 and expected <= set(wheel_names)
    assert "drivestack/configs/_base_/nuscenes.py" in wheel_names


def test_the_mark_of_types_is_in(wheel_names: list[str]) -> None:
    assert "drivestack/py.typed" in wheel_names  # without it a user's type checker takes everything for Any


def test_the_demo_weights_are_in(wheel_names: list[str], repository_root: Path) -> None:
    tracked = subprocess.run(
        ["git", "ls-files", "weights/*.safetensors"], cwd=repository_root, capture_output=True, text=True
    )
    assert {f"drivestack/{name}" for name in tracked.stdout.split()} <= set(wheel_names)


def test_no_tests_setup_or_builds_inside(wheel_names: list[str]) -> None:
    for name in wheel_names:
        parts = name.split("/")
        assert not {"tests", "benchmarks", "build", "runs", "shared", "csrc"} & set(parts), name
        assert parts[-1] not in ("setup.py", "conftest.py"), name


def test_a_source_archive_can_build_the_operators(source: Path, tmp_path: Path) -> None:
    run(source, "setup.py", "-q", "sdist", "--dist-dir", str(tmp_path))
    (archive,) = tmp_path.glob("drivestack-*.tar.gz")
    with tarfile.open(archive) as content:
        held = {name.partition("/")[2] for name in content.getnames()}
    kernels = {str(path.relative_to(source)) for path in (source / "ops/csrc").rglob("*.*") if path.suffix != ".md"}
    assert len(kernels) > 20 and kernels - held <= {"ops/csrc/.clang-format"}
    assert {"setup.py", "pyproject.toml", "Makefile"} <= held
    assert not [name for name in held if name.startswith("tests/")]
