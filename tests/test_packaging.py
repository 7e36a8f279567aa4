"""The wheel holds drivestack and nothing else."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOMS = (
    "geometry",
    "ops",
    "backbone",
    "bev",
    "occupancy",
    "lane_topology",
    "data_tools",
    "configs",
    "engine",
    "compat",
)


@pytest.fixture(scope="module")
def wheel_names(repository_root: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Files in a wheel of the tracked sources, built without the C++ operators (they take a minute)."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    listed = subprocess.run(["git", "ls-files"], cwd=repository_root, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    for name in listed.stdout.splitlines():
        if (repository_root / name).is_file() and not name.startswith("tests/reference/"):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(repository_root / name, source / name)
    command = [sys.executable, "-m", "pip", "wheel", "--no-build-isolation", "--no-deps", "--wheel-dir", str(out), "."]
    environment = os.environ | {"DRIVESTACK_BUILD_OPS": "0"}
    done = subprocess.run(command, cwd=source, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = out.glob("drivestack-*.whl")
    return zipfile.ZipFile(wheel).namelist()


def test_only_drivestack_at_the_top(wheel_names: list[str]) -> None:
    tops = {name.split("/")[0] for name in wheel_names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"drivestack"}


def test_all_rooms_and_root_files_are_in(wheel_names: list[str]) -> None:
    for room in ROOMS:
        assert f"drivestack/{room}/__init__.py" in wheel_names
    assert {"drivestack/cli.py", "drivestack/structures.py", "drivestack/engine/train.py"} <= set(wheel_names)
    assert "drivestack/configs/_base_/nuscenes.py" in wheel_names


def test_the_demo_weights_are_in(wheel_names: list[str], repository_root: Path) -> None:
    tracked = subprocess.run(
        ["git", "ls-files", "weights/*.safetensors"], cwd=repository_root, capture_output=True, text=True
    )
    assert {f"drivestack/{name}" for name in tracked.stdout.split()} <= set(wheel_names)


def test_no_tests_setup_or_builds_inside(wheel_names: list[str]) -> None:
    for name in wheel_names:
        parts = name.split("/")
        assert not {"tests", "benchmarks", "build", "runs", "shared"} & set(parts), name
        assert parts[-1] not in ("setup.py", "conftest.py"), name
