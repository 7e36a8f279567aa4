"""The table of classifiers on the page is what its program writes."""

from __future__ import annotations

import runpy
from pathlib import Path


def test_the_table_is_up_to_date(repository_root: Path) -> None:
    program = runpy.run_path(str(repository_root / "benchmarks" / "classifier_table.py"))
    page = (repository_root / "docs" / "classification.md").read_text(encoding="utf-8")
    assert len(program["published_configs"]()) == 20
    assert program["START"] + program["table"]() + program["END"] in page, "run benchmarks/classifier_table.py"
