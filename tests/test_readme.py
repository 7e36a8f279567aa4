"""README and guides name files, verbs and configs that exist."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

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
    "docs/across_sets.md",
    "docs/build.md",
    "docs/operators.md",
    "docs/LOG.md",
    "docs/api.md",
    "docs/quirks.md",
    "docs/many_gpus.md",
    "geometry/README.md",
    "weights/README.md",
)


def file_map(root: Path) -> list[str]:
    """The files and folders that the first column of the README's last table names."""
    table = (root / "README.md").read_text(encoding="utf-8").partition("## Where things are")[2]
    rows = re.findall(r"^\| (`.+?) \|", table, re.MULTILINE)
    assert 10 < len(rows) <= 20
    return [name for row in rows for name in re.findall(r"`([^`]+)`", row)]


def test_the_file_map_names_each_place_once(repository_root: Path) -> None:
    named = file_map(repository_root)
    assert [name for name in named if not (repository_root / name).exists()] == []
    assert sorted(named) == sorted(set(named))


def test_the_file_map_leaves_no_file_out(repository_root: Path) -> None:
    named = {name.rstrip("/") for name in file_map(repository_root)}
    listed = subprocess.run(["git", "ls-files", "*.py"], cwd=repository_root, capture_output=True, text=True)
    places = {name.split("/")[0] for name in listed.stdout.split() if (repository_root / name).exists()}
    assert places - named <= {"setup.py"}, "say in the README's map what they hold"


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
