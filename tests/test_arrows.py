"""The import order of the packages: a folder imports only those below it."""

from __future__ import annotations

import ast
from pathlib import Path

CORE = {"geometry", "core"}
HEADS = CORE | {"ops", "backbone", "bev", "data_tools"}
BELOW_TASKS = HEADS | {"engine", "occupancy", "lane_topology"}
# Room -> what of drivestack it may import, beside itself.
MAY_IMPORT = {
    "geometry": set(),
    "core": {"geometry"},
    "ops": CORE,
    "backbone": CORE | {"ops"},
    "bev": CORE | {"ops", "backbone"},
    "occupancy": HEADS,
    "lane_topology": HEADS,
    "data_tools": CORE,
    "engine": CORE | {"data_tools", "backbone"},
    "view": BELOW_TASKS,
    "tasks": BELOW_TASKS | {"view"},
    "export": CORE | {"ops", "engine"},
    "compat": CORE | {"ops", "backbone", "bev", "data_tools"},
}
# mmdet and mmseg import mmcv's compiled operators when they are imported; the file that imports both puts ours there.
EXCEPTIONS = {"backbone/pretrain/openmmlab.py": {"compat"}}


def imported_rooms(path: Path, root: Path) -> set[str]:
    """First name below drivestack of every import in a file, relative or absolute."""
    package = path.relative_to(root).parent.parts
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("drivestack.")}
        elif isinstance(node, ast.ImportFrom):
            module = (node.module or "").split(".") if node.module else []
            if node.level:
                target = [*package[: len(package) - node.level + 1], *module]
            elif module[:1] == ["drivestack"]:
                target = module[1:]
            else:
                continue
            found |= {target[0]} if target else {alias.name for alias in node.names}
    return found - {"__version__"}


def test_rooms_import_only_what_is_below_them(repository_root: Path) -> None:
    wrong = []
    for room, allowed in MAY_IMPORT.items():
        for path in sorted((repository_root / room).rglob("*.py")):
            place = path.relative_to(repository_root).as_posix()
            extra = imported_rooms(path, repository_root) - allowed - {room} - EXCEPTIONS.get(place, set())
            wrong += [f"{place} imports {name}" for name in sorted(extra)]
    assert not wrong, "\n".join(wrong)


def test_nothing_imports_tests_benchmarks_or_the_command_line(repository_root: Path) -> None:
    above = {"tests", "benchmarks", "cli", "api", "__main__"}
    for room in (*MAY_IMPORT, "configs"):
        for path in (repository_root / room).rglob("*.py"):
            assert not imported_rooms(path, repository_root) & above, path


def test_the_walk_sees_relative_and_absolute_imports(tmp_path: Path) -> None:
    (tmp_path / "bev").mkdir()
    file = tmp_path / "bev" / "x.py"
    file.write_text(
        "import torch\nimport drivestack.ops.dcnv3\nfrom ..geometry.poses import pose\nfrom ..core import errors\n"
        "from . import head\nfrom drivestack.backbone import fpn\n\ndef f():\n    from ..configs import y\n"
    )
    assert imported_rooms(file, tmp_path) == {"ops", "geometry", "core", "bev", "backbone", "configs"}
