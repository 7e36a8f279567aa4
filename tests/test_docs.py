"""The documentation refers to things that exist: links, anchors, files, and the quirks named in code."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from drivestack.data_tools.readers import registry


def shipped_texts(root: Path, *patterns: str) -> dict[str, str]:
    """Every file of the repository that matches, by its path."""
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard", *patterns], cwd=root, capture_output=True)
    names = [name for name in listed.stdout.decode().splitlines() if (root / name).is_file()]
    if not names:
        pytest.skip("no git checkout")
    return {name: (root / name).read_text(encoding="utf-8") for name in names}


def anchors(page: str) -> set[str]:
    """The anchors that GitHub gives the headings of a Markdown page."""
    headings = re.findall(r"^#+ (.+)$", page, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.replace("`", "").lower()).replace(" ", "-") for h in headings}


def test_nothing_refers_to_unpublished_notes(repository_root: Path) -> None:
    for name, text in shipped_texts(repository_root, "*.py", "*.md", "*.cpp", "*.h", "*.cu", "*.inl").items():
        if name != "tests/test_docs.py":
            assert not re.search(r"\bspec/\w+\.md|\bspec section|\(Q\d+\b|\bquirk Q\d", text), name


def test_quirks_named_in_code_are_on_the_page(repository_root: Path) -> None:
    known = anchors((repository_root / "docs" / "quirks.md").read_text(encoding="utf-8"))
    used = set()
    for name, text in shipped_texts(repository_root, "*.py", "*.md").items():
        named = set(re.findall(r"\bquirks\.md#([\w-]+)", text))
        if name == "tests/test_docs.py":
            continue
        assert named <= known, f"{name}: {sorted(named - known)}"
        used |= named
    assert len(used) > 20


def test_links_in_pages_lead_somewhere(repository_root: Path) -> None:
    for name, text in shipped_texts(repository_root, "*.md").items():
        page = repository_root / name
        prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
        for target, anchor in re.findall(r"\]\((?!https?:|mailto:)([^)#\s]*)#?([^)\s]*)\)", prose):
            file = page.parent / target if target else page
            assert file.exists(), f"{name}: no {target}"
            if anchor:
                assert anchor in anchors(file.read_text(encoding="utf-8")), f"{name}: no #{anchor} in {target}"


def test_files_named_on_the_quirks_page_exist(repository_root: Path) -> None:
    named = re.findall(r"`([\w/]+\.py)`", (repository_root / "docs" / "quirks.md").read_text(encoding="utf-8"))
    assert len(named) > 20
    assert [name for name in named if not (repository_root / name).exists()] == []


def test_tests_named_on_the_parity_page_exist(repository_root: Path) -> None:
    page = (repository_root / "docs" / "parity.md").read_text(encoding="utf-8")
    file, count = None, 0
    for path, name in re.findall(r"`([\w/]+/test_\w+\.py|test_\w+\.py)?(?:::(test_\w+)\*?)?`", page):
        if path:
            file = repository_root / "tests" / path
            assert file.is_file(), path
        if name:
            assert f"def {name}" in file.read_text(encoding="utf-8"), f"{file}: no {name}"
            count += 1
    assert count > 60


def test_the_code_of_the_api_page_runs(
    repository_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (repository_root / "docs" / "api.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    try:
        for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
            exec(compile(block, "docs/api.md", "exec"), names)
    finally:
        registry._READERS.pop("grey", None)
    assert (tmp_path / "answer.jpg").is_file()
    for line in capsys.readouterr().out.splitlines():
        assert f"# {line}" in page


def test_the_api_page_names_what_the_package_offers(repository_root: Path) -> None:
    from drivestack import api

    page = (repository_root / "docs" / "api.md").read_text(encoding="utf-8")
    assert [name for name in api.__all__ if f"`{name}" not in page] == []
