"""docs/compat.md names adapters that exist."""

from __future__ import annotations

import re

import torch

import drivestack.compat


def test_every_adapter_of_the_page_imports(repository_root):
    page = (repository_root / "docs" / "compat.md").read_text(encoding="utf-8")
    imports = re.findall(r"`((?:from|import) drivestack[^`]*)`", page)
    assert len(imports) >= 6
    for line in imports:
        exec(line.replace(" as ...", ""), {})
    called = set(re.findall(r"drivestack\.compat\.(\w+)\(", page))
    assert called == set(drivestack.compat.__all__)


def test_the_first_example_prints_what_it_says(repository_root, capsys):
    page = (repository_root / "docs" / "compat.md").read_text(encoding="utf-8")
    example = re.search(r"```python\n(.*?)```", page, re.DOTALL)[1]
    exec(example, {})
    assert capsys.readouterr().out.strip() in example
    assert str(torch.Size([1, 28, 28, 64])) in example
