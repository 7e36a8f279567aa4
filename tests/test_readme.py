"""README and guides name files, verbs and configs that exist."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from drivestack.cli.main import build_parser
from drivestack.engine.config import config_names

PAGES = ("README.md", "CONTRIBUTING.md", "docs/cli.md", "docs/synthetic.md", "docs/own_data.md", "docs/tiny_model.md")
PAGES += (
    "docs/parity.md",
    "docs/compat.md",
    "docs/model_speed.md",
    "docs/performance.md",
    "docs/lane_topology.md",
    "docs/occupancy.md",
    "docs/build.md",
    "docs/operators.md",
    "docs/LOG.md",
    "geometry/README.md",
    "weights/README.md",
)


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(repository_root: Path, page: str) -> None:
    file = repository_root / page
    links = re.findall(r"\]\(([^)#:]+)\)", file.read_text(encoding="utf-8"))
    missing = [link for link in links if not (file.parent / link).exists()]
    assert not missing, missing


def test_the_file_map_names_files(repository_root: Path) -> None:
    rows = re.findall(r"^\| (`.+?) \|", (repository_root / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(rows) > 15
    for row in rows:
        folder = repository_root
        for name in re.findall(r"`([^`]+)`", row):
            path = Path(name)
            if path.parent != Path():
                folder = repository_root / path.parent  # names after the first stand in its folder
            assert list(folder.glob(path.name)), f"{row}: no {name}"


def test_the_file_map_leaves_no_file_out(repository_root: Path) -> None:
    rows = re.findall(r"^\| (`.+?) \|", (repository_root / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    named = set()
    for row in rows:
        folder = repository_root
        for name in re.findall(r"`([^`]+)`", row):
            folder = repository_root / Path(name).parent if Path(name).parent != Path() else folder
            named |= set(folder.glob(Path(name).name))
    listed = subprocess.run(["git", "ls-files", "*.py"], cwd=repository_root, capture_output=True, text=True)
    for name in listed.stdout.split():
        path = repository_root / name
        known = named & {path, *path.parents} or path.name in ("__init__.py", "setup.py")
        assert known or not path.exists(), f"{name}: say in the README's file map what it holds"


def test_commands_use_verbs_and_configs_that_exist(repository_root: Path) -> None:
    verbs = next(action.choices for action in build_parser()._actions if isinstance(action.choices, dict))
    for page in PAGES:
        text = (repository_root / page).read_text(encoding="utf-8")
        blocks = "\n".join(re.findall(r"```\w*\n(.*?)```", text, re.DOTALL)) + "\n".join(
            re.findall(r"`([^`\n]+)`", text)
        )
        for verb, following in re.findall(r"^(?:.*/bin/)?drivestack ([a-z][\w-]*) ?(\S*)", blocks, re.MULTILINE):
            assert verb in verbs, f"{page}: drivestack {verb}"
            if verb in ("train", "evaluate", "predict") and re.match(r"[a-z]", following):
                assert following in config_names() or following.endswith(".py"), f"{page}: {verb} {following}"
