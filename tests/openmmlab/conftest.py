"""Tests that run mmdet, mmsegmentation and mmdet3d: `make openmmlab test-openmmlab`.

Without the packages these tests are skipped; with $DRIVESTACK_REQUIRE_OPENMMLAB set, one that is skipped has failed.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Generator, Iterator
from typing import Any

import pytest

NEEDED = ("mmcv", "mmdet", "mmseg", "mmdet3d", "pycocotools")


@pytest.fixture(autouse=True, scope="session")
def openmmlab() -> None:
    """The packages, with our operators under mmcv."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} not installed: make openmmlab")
    from drivestack.compat.mmcv_ext import install

    install()


@pytest.fixture(autouse=True, scope="session")
def mmcv_attention(openmmlab: None) -> tuple[Any, Any]:
    """mmcv's own function of deformable attention and its slow twin, from before a test puts ours in their place."""
    from mmcv.ops import multi_scale_deform_attn as file

    return file.MultiScaleDeformableAttnFunction, file.multi_scale_deformable_attn_pytorch


@pytest.fixture(autouse=True)
def global_state(openmmlab: None) -> Iterator[None]:
    """What a runner leaves in MMEngine's globals (scope, loggers, visualizers) is taken back after each test."""
    from mmengine.logging import MessageHub, MMLogger
    from mmengine.registry import DefaultScope
    from mmengine.visualization import Visualizer

    kinds = (DefaultScope, MMLogger, MessageHub, Visualizer)
    before = [dict(kind._instance_dict) for kind in kinds]
    yield
    for kind, instances in zip(kinds, before):
        kind._instance_dict.clear()
        kind._instance_dict.update(instances)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    without_numbers = "shared/reference" in str(report.longrepr)  # that are too large for the repository
    if report.skipped and os.environ.get("DRIVESTACK_REQUIRE_OPENMMLAB") and not without_numbers:
        report.outcome, report.longrepr = "failed", f"skipped, but required: {report.longrepr}"
    return report
