"""Config files and overrides."""

from __future__ import annotations

from pathlib import Path

import pytest

from drivestack.core.errors import ConfigError
from drivestack.engine.config import build_dataset, build_model, load_config


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text("from torch.nn import Linear\nmodel = dict(type=Linear, sizes=[1, 2])\nnote = 'x'\n")
    return path


def test_overrides_take_literals_and_text(config_file: Path) -> None:
    config = load_config(config_file, ["model.sizes.1=5", "note=runs/a", "model.bias=None", "new=(1, 2)"])
    assert config.model.sizes == [1, 5]
    assert config.note == "runs/a"
    assert config.model.bias is None
    assert tuple(config.new) == (1, 2)
    assert config.config_name == "mine"
    assert load_config(config_file, {"model.sizes": [3]}).model.sizes == [3]


@pytest.mark.parametrize("bad", ["modle.sizes=1", "model.sizes.7=1", "note.x=1", "justtext"])
def test_bad_overrides_are_named(config_file: Path, bad: str) -> None:
    with pytest.raises(ConfigError, match=bad.split("=")[0].replace(".", r"\.")):
        load_config(config_file, [bad])


def test_missing_and_broken_configs_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no_such_config: no such config"):
        load_config("no_such_config")
    broken = tmp_path / "broken.py"
    broken.write_text("from torch.nn import Linear\nx = = 1\n")
    with pytest.raises(ConfigError, match=r"broken\.py"):
        load_config(broken)
    misspelt = tmp_path / "misspelt.py"
    misspelt.write_text("from torch.nn import Linaer\nmodel = dict(parts=[dict(type=Linaer)])\n")
    with pytest.raises(ConfigError, match=r"misspelt\.py.*Linaer"):
        load_config(misspelt)


@pytest.mark.parametrize(
    ("model", "fragment"),
    [
        ("dict(type='Linaer')", r"model of the config.*type='Linaer'"),
        ("dict(type=Linear, in_features=1, out_features=1, hidden=3)", "model of the config.*'hidden'"),
        ("dict(in_features=1)", 'model of the config.*the key "type"'),
    ],
)
def test_what_cannot_be_built_is_named(tmp_path: Path, model: str, fragment: str) -> None:
    path = tmp_path / "mine.py"
    path.write_text(f"from torch.nn import Linear\nmodel = {model}\n")
    with pytest.raises(ConfigError, match=fragment):
        build_model(load_config(path))
    with pytest.raises(ConfigError, match=r"dataset of the config.*type='NoSet'"):
        build_dataset({"type": "NoSet"})
