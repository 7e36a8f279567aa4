"""The doctor lists what is installed, and continues where something is missing."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import torch

from drivestack.cli import doctor, main


def by_name() -> dict[str, doctor.Finding]:
    return {finding.name: finding for finding in doctor.examine()}


def test_this_installation_is_sound(capsys: pytest.CaptureFixture[str]) -> None:
    findings = by_name()
    assert not [f for f in findings.values() if f.status == doctor.BROKEN]
    assert {"python", "torch", "msgspec", "operators on CPU", "demo weights", "disk"} <= findings.keys()
    assert main(["doctor"]) == 0
    assert "all that is required is here" in capsys.readouterr().out


def test_every_shortcoming_comes_with_a_fix() -> None:
    assert all(finding.fix for finding in doctor.examine() if finding.status != doctor.OK)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(doctor.REQUIRED, "no_such_module", "no-such-module")
    finding = by_name()["no-such-module"]
    assert finding.status == doctor.BROKEN
    assert "No module named" in finding.detail
    assert "make setup" in finding.fix
    assert main(["doctor"]) == 1
    assert "error: no-such-module must be fixed" in capsys.readouterr().err


@pytest.fixture
def project(repository_root: Path) -> dict:
    return tomllib.loads((repository_root / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def names(requirements: list[str]) -> set[str]:
    return {re.match(r"[\w.-]+", requirement)[0] for requirement in requirements}


def test_what_is_required_is_the_core_of_the_project(project: dict) -> None:
    always = [line for line in project["dependencies"] if ";" not in line]
    assert names(always) == set(doctor.REQUIRED.values())
    assert names(project["dependencies"]) - names(always) == names(project["optional-dependencies"]["synthetic"])
    assert not {"nuscenes-devkit", "trimesh"} & names(project["dependencies"])


def test_the_extras_are_those_of_the_project(project: dict) -> None:
    filled = {name for name, brings in project["optional-dependencies"].items() if brings}
    assert filled == doctor.EXTRAS.keys()


@pytest.mark.parametrize("name", doctor.EXTRAS)
def test_a_missing_extra_says_what_it_would_bring(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    extra = doctor.EXTRAS[name]
    monkeypatch.setattr(doctor, "_has", lambda module: module not in extra.modules[:1])
    finding = by_name()[f"extra {name}"]
    assert finding.status == doctor.NOTE
    assert extra.purpose in finding.detail and extra.modules[0] in finding.detail
    assert finding.fix.startswith(f"pip install 'drivestack[{name}]'") and extra.install in finding.fix


def test_openmmlab_is_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_has", lambda module: module not in ("mmdet", "mmdet3d"))
    finding = doctor._openmmlab()
    assert finding.status == doctor.NOTE and finding.detail.endswith("lacks mmdet, mmdet3d")
    assert "make openmmlab" in finding.fix
    monkeypatch.setattr(doctor, "_has", lambda module: module != "mmcv._ext")
    assert "mmcv has no operators" in doctor._openmmlab().detail
    monkeypatch.setattr(doctor, "_has", lambda module: True)
    found = {"mmcv": ["onedl-mmcv"], "mmdet": ["mmdet"]}
    monkeypatch.setattr("importlib.metadata.packages_distributions", lambda: found)
    monkeypatch.setattr("importlib.metadata.version", lambda name: f"1 of {name}")
    assert doctor._openmmlab().detail.startswith("mmcv 1 of onedl-mmcv, mmdet 1 of mmdet, mmseg 1 of mmsegmentation")


def test_a_wheel_is_not_sent_to_make(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(doctor.REQUIRED, "no_such_module", "no-such-module")
    monkeypatch.setattr(doctor, "IN_CHECKOUT", False)
    assert by_name()["no-such-module"].fix == "pip install --force-reinstall no-such-module"


def report(cuda: dict | None = None, **changes) -> dict:
    nothing = {"path": None, "architectures": None, "reason": "not built: no GPU is visible", "fix": "build them"}
    serving = {"path": "/there/_C.so", "instruction_set": "avx2", "threads": 2, "reason": None, "fix": None}
    return serving | changes | {"cuda": nothing | (cuda or {})}


def test_the_reference_operators_are_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = report(reason="no compiled operators", fix="build them")
    monkeypatch.setattr("drivestack.ops.backend_report", lambda: broken)
    finding = by_name()["operators on CPU"]
    assert (finding.status, finding.fix) == (doctor.NOTE, "build them")


@pytest.mark.parametrize(
    ("gpu", "cuda", "status", "detail"),
    [
        (False, {}, doctor.NOTE, "no CUDA kernels: not built: no GPU is visible"),
        (False, {"path": "/c", "architectures": "75 120+PTX", "fix": None}, doctor.OK, "for sm 75 120+PTX (no GPU"),
        (True, {}, doctor.NOTE, "PyTorch reference implementations are used for CUDA tensors"),
        (True, {"path": "/c", "reason": "they are built for 75"}, doctor.NOTE, "they are built for 75"),
        (
            True,
            {"path": "/c", "architectures": "90", "reason": None, "fix": None},
            doctor.OK,
            "CUDA kernels for sm 90, ",
        ),
    ],
)
def test_what_runs_on_a_gpu(monkeypatch: pytest.MonkeyPatch, gpu: bool, cuda: dict, status: str, detail: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr("drivestack.ops.backend_report", lambda: report(cuda))
    finding = by_name()["operators on GPU"]
    assert finding.status == status and detail in finding.detail and bool(finding.fix) == (status == doctor.NOTE)


def test_the_build_is_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    record = {"built": True, "toolkit": None, "variants": ["avx2", "baseline"], "seconds": 41.26}
    monkeypatch.setattr("drivestack.ops.backend_report", report)
    monkeypatch.setattr("drivestack.ops.dispatch.backend.build_record", lambda device_type: record)
    assert by_name()["operators on CPU"].detail.endswith("/there/_C.so, built for avx2, baseline in 41.3 s")


def test_a_driver_that_torch_cannot_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(doctor, "_driver_version", lambda: "470.57.02")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    finding = by_name()["gpu"]
    assert "driver 470.57.02 is here, but torch (CUDA 13.0) sees no GPU" in finding.detail
    assert finding.fix.startswith("update the driver")
