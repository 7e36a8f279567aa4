"""`make gpu-check` on a machine without a GPU: it says so; and what it would time exists."""

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_says_that_a_gpu_is_missing():
    done = subprocess.run([sys.executable, ROOT / "benchmarks/gpu_check.py"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "gpu-check needs a GPU" in done.stderr and "Traceback" not in done.stderr


def test_timed_cases_exist(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    gpu_check, cases = importlib.import_module("gpu_check"), importlib.import_module("cases")
    names = [f"{case.op} {case.shape}" for case in cases.all_cases("cuda")]
    for pattern, _ in gpu_check.TIMED:
        assert len([name for name in names if re.search(pattern, name)]) == 1, pattern
