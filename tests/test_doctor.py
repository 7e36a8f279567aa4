"""The doctor tells what is here, and goes on where something is not."""

from __future__ import annotations

import pytest
import torch

from drivestack import doctor
from drivestack.cli import main


def by_name() -> dict[str, doctor.Finding]:
    return {finding.name: finding for finding in doctor.examine()}


def test_this_installation_is_sound(capsys: pytest.CaptureFixture[str]) -> None:
    findings = by_name()
    assert not [f for f in findings.values() if f.status == doctor.BROKEN]
    assert {"python", "torch", "nuscenes-devkit", "operators on CPU", "demo weights", "disk"} <= findings.keys()
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
    assert "error: no-such-module must be mended" in capsys.readouterr().err


def test_the_reference_operators_are_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    from drivestack import ops

    report = {"reason": "no compiled operators", "fix": "build them"}
    monkeypatch.setattr(ops, "backend_report", lambda: report)
    finding = by_name()["operators on CPU"]
    assert (finding.status, finding.fix) == (doctor.NOTE, "build them")


def test_a_gpu_is_told_which_operators_serve_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "operators on GPU" not in by_name() or torch.cuda.is_available()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    finding = by_name()["operators on GPU"]
    assert "PyTorch twins" in finding.detail
    assert finding.fix
