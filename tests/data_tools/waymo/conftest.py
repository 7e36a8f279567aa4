"""Waymo's formats: `make waymo test-waymo`. What needs the official message classes or pyarrow is skipped without.

With $DRIVESTACK_REQUIRE_WAYMO set, a test that is skipped has failed.
"""

from __future__ import annotations

import os
from collections.abc import Generator

import pytest


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.skipped and os.environ.get("DRIVESTACK_REQUIRE_WAYMO") and "shared/real" not in str(report.longrepr):
        report.outcome, report.longrepr = "failed", f"skipped, but required: {report.longrepr}"
    return report


@pytest.fixture(scope="session")
def messages() -> object:
    """The official message classes."""
    return pytest.importorskip("waymo_open_dataset.dataset_pb2", reason="Waymo's message classes: make waymo")


@pytest.fixture(scope="session")
def parquet() -> object:
    return pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")


@pytest.fixture(params=["v1", "v2"])
def version(request: pytest.FixtureRequest) -> str:
    """Both versions, each where what it needs is there."""
    request.getfixturevalue("messages" if request.param == "v1" else "parquet")
    return request.param
