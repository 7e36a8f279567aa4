"""Config files and overrides."""

from __future__ import annotations

import signal
from importlib.util import find_spec
from pathlib import Path

import pytest

from drivestack.core.errors import ConfigError
from drivestack.core.signals import Terminated
from drivestack.engine import config_variables
from drivestack.engine.config import KEYS, build_dataset, build_model, config_names, load_config, task_names
from drivestack.engine.config_text import config_text


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text("from torch.nn import Linear\nmodel = dict(type=Linear, sizes=[1, 2])\nlog_interval = 3\n")
    return path


def test_overrides_take_literals_and_text(config_file: Path) -> None:
    config = load_config(
        config_file, ["model.sizes.1=5", "model.name=runs/a", "model.bias=None", "new_parts=('a', 'b')"]
    )
    assert config.model.sizes == [1, 5]
    assert config.model.name == "runs/a"
    assert config.model.bias is None
    assert tuple(config.new_parts) == ("a", "b")
    assert config.config_name == "mine"
    assert load_config(config_file, {"model.sizes": [3]}).model.sizes == [3]


@pytest.mark.parametrize("bad", ["modle.sizes=1", "model.sizes.7=1", "log_interval.x=1", "justtext"])
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


def test_a_helper_variable_acts_on_all_that_is_computed_from_it() -> None:
    for name in ("bevformerv2_tiny_synthetic", "perception_tiny_synthetic"):
        config = load_config(name, ["max_iters=7", "class_names=['a', 'b']", "bev_size=(8, 8)"])
        assert config.train_cfg.max_iters == config.param_scheduler[-1]["end"] == config.max_iters == 7
        assert config.model.boxes.head.num_classes == len(config.test_dataset.classes) == 2
        assert config.model.bev_map.bev_size == (8, 8)
    config = load_config("bevformerv2_tiny_synthetic", {"pc_range": [-9.0, -9, -5, 9, 9, 3], "model.grid_mask": True})
    ranges = [config.model.bev_map.pc_range, config.train_dataloader.dataset.pc_range, config.pc_range]
    assert all(list(found) == [-9.0, -9, -5, 9, 9, 3] for found in ranges)
    assert config.model.grid_mask and config.config_name == "bevformerv2_tiny_synthetic"


def test_an_entry_of_a_helper_dict_acts_where_it_was_copied_from() -> None:
    config = load_config("bevformerv2_tiny_synthetic", ["source.version=v1.0-mini"])
    assert config.train_dataloader.dataset.source.version == config.test_dataset.source.version == "v1.0-mini"


def test_own_configs_may_inherit_a_variable_and_change_it_in_place(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        "from mmengine.config import read_base\n"
        "with read_base():\n    from drivestack.configs.boxes.bevformerv2_tiny_synthetic import *\n"
        "max_iters = 10\nmax_iters = 2 * max_iters\ntrain_cfg.max_iters = max_iters\n"
    )
    assert load_config(path).train_cfg.max_iters == 20
    assert load_config(path, ["max_iters=5"]).train_cfg.max_iters == 5
    assert load_config(path, ["channels=32"]).model.img_neck.out_channels == 32
    with pytest.raises(ConfigError, match=r"mine\.py: cannot be read as a config with class_names=3: TypeError"):
        load_config(path, ["class_names=3"])


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("max_itres=3", r"max_itres: the config has no max_itres; did you mean max_iters"),
        ("qqq.x=3", r"qqq\.x: the config has no qqq; it has activation_checkpointing, bev_size, .*train_cfg"),
        ("AdamW=3", r"AdamW: the config has no AdamW"),
        ("iterations_per_epoch=3", r"iterations_per_epoch: the config has no iterations_per_epoch"),
        ("source.root='x'", r"source\.root: nothing in the config depends on it; set train_dataloader"),
    ],
)
def test_overrides_that_would_do_nothing_are_refused(override: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load_config("bevformerv2_tiny_synthetic", [override])
    with pytest.raises(ConfigError, match=words):  # also beside one that does something
        load_config("bevformerv2_tiny_synthetic", ["max_iters=7", override])


def test_names_of_classes_and_cameras_come_from_the_datasets() -> None:
    names = task_names(load_config("bevformerv2_tiny_synthetic"))
    assert names["classes"][3] == "car" and "cameras" not in names
    assert task_names({"test_dataset": {"camera_names": ["a"]}}) == {"cameras": ("a",)}
    assert task_names({}) == {}


@pytest.mark.parametrize("name", config_names())
def test_a_config_written_as_one_file_is_the_same_config(name: str, tmp_path: Path) -> None:
    path = tmp_path / "config.py"
    first = load_config(name, ["seed=11"])
    path.write_text(config_text(first, KEYS))
    second = load_config(path)
    assert second.seed == 11
    assert second.model.keys() == first.model.keys()
    needs_openmmlab = first.model.type.__name__ == "MMModel" and find_spec("mmdet") is None
    if "tiny" in name and not needs_openmmlab:
        assert repr(build_model(second)) == repr(build_model(first))
    path.write_text(config_text(second, KEYS))
    assert config_text(load_config(path), KEYS) == config_text(second, KEYS)


def test_what_is_no_literal_stands_as_text(config_file: Path, tmp_path: Path) -> None:
    config = load_config(config_file)
    config.test_dataset = {"source": {"frames": [object()]}, "type": "mmdet.NotHere"}
    (tmp_path / "config.py").write_text(config_text(config, KEYS))
    loaded = load_config(tmp_path / "config.py")
    assert loaded.test_dataset.source.frames[0].startswith("<object object")
    assert loaded.test_dataset.type == "mmdet.NotHere"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("log_intervall = 5", "log_intervall: nothing reads this key; did you mean log_interval?"),
        ("load_from = 'w.pth'", "load_from: .*--load-from"),
        ("val_dataloader = dict(x=1)", "val_dataloader: .*use validation"),
        ("sizes = [3]", r"sizes: nothing reads this key; set model\.sizes"),
        ("from mmengine import Config\nwheelbase = 3", "wheelbase: nothing reads this key; remove it"),
    ],
)
def test_keys_that_nothing_reads_are_refused(config_file: Path, line: str, words: str) -> None:
    config_file.write_text(f"{config_file.read_text()}{line}\n")
    with pytest.raises(ConfigError, match=rf"mine\.py: {words}"):
        load_config(config_file)


@pytest.mark.parametrize("change", ["pc_range = [0]", "source['root'] = 'x'", "source.update(root='x')"])
def test_changing_what_a_base_has_copied_already_is_refused(tmp_path: Path, change: str) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        "from mmengine.config import read_base\n"
        "with read_base():\n    from drivestack.configs.boxes.bevformerv2_tiny_synthetic import *\n" + change
    )
    with pytest.raises(ConfigError, match=r"(pc_range|source): nothing reads this key"):
        load_config(path)
    path.write_text(path.read_text() + "\ntest_dataset.update(pc_range=pc_range, source=source)\n")
    load_config(path)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("model=[1]", r"model: must be a dict, got \[1\]"),
        ("log_interval=True", "log_interval: must be a whole number from 1 on, got True"),
        ("checkpoint={'keep': 0}", "checkpoint.keep: must be a whole number"),
        ("train_cfg={'max_iters': 1e9}", "train_cfg.max_iters: must be a whole number"),
        (
            "train_dataloader={'num_workers': 1000000}",
            "train_dataloader.num_workers: must be a whole number from 0",
        ),
        ("optim_wrapper={'optimizer': {'lr': 'fast'}}", "optim_wrapper.optimizer.lr: must be a finite number"),
        ("param_scheduler=(1,2)", "param_scheduler.0: must be a dict, got 1"),
        ("param_scheduler=3", "param_scheduler: must be a list of dicts, got 3"),
        ("param_scheduler=[{'type': 'LinearLR', 'by_epoch': True}]", "param_scheduler.0.by_epoch=True: .*iterations"),
        ("param_scheduler={'type': 'LinearLR', 'end': 'late'}", "param_scheduler.0.end: must be a whole number"),
        ("param_scheduler=[{'type': 'ReduceOnPlateauLR', 'monitor': 'x'}]", "param_scheduler.0: .*would never act"),
        ("custom_hooks=[5]", "custom_hooks: must be a list of dicts"),
        ("ema=(1,2)", "ema: must be a dict, or None"),
        ("tensorboard='no'", "tensorboard: must be True or False"),
        ("seed=-1", "seed: must be a whole number"),
    ],
)
def test_a_value_of_a_wrong_kind_is_named_when_the_config_is_read(config_file: Path, override: str, words: str) -> None:
    with pytest.raises(ConfigError, match=f"^{words}"):
        load_config(config_file, [override])


def test_configs_that_import_themselves_or_never_end_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    head = "from mmengine.config import read_base\nwith read_base():\n    from .{} import *\n"
    for name, base in (("a", "b"), ("b", "c"), ("c", "a"), ("own", "own")):
        (tmp_path / f"{name}.py").write_text(head.format(base))
    with pytest.raises(ConfigError, match=r"c\.py: imports itself \(a\.py -> b\.py -> c\.py -> a\.py\)"):
        load_config(tmp_path / "a.py")
    with pytest.raises(ConfigError, match=r"own\.py: imports itself"):
        load_config(tmp_path / "own.py")
    monkeypatch.setattr(config_variables, "READING_CPU_S", 0.2)
    (tmp_path / "endless.py").write_text("from torch.nn import Linear\nwhile True:\n    pass\n")
    with pytest.raises(ConfigError, match=r"endless\.py: still not read"):
        load_config(tmp_path / "endless.py")
    (tmp_path / "leaves.py").write_text("from torch.nn import Linear\nimport sys\nsys.exit(3)\n")
    with pytest.raises(ConfigError, match=r"leaves\.py: cannot be read"):
        load_config(tmp_path / "leaves.py")


def test_a_model_larger_than_memory_is_refused_before_it_fills_it(config_file: Path) -> None:
    config_file.write_text(
        "from torch.nn import Linear\nmodel = dict(type=Linear, in_features=2**20, out_features=2**20)\n"
    )
    with pytest.raises(ConfigError, match="model"):
        build_model(load_config(config_file))


def test_a_model_of_absurdly_many_layers_is_refused_while_it_is_built() -> None:
    config = load_config("bevformerv2_tiny_synthetic", {"model.boxes.head.num_layers": 2**31})
    with pytest.raises(ConfigError, match="more than 30000 parameter tensors"):
        build_model(config)


def test_a_signal_while_a_config_is_read_is_no_error_of_the_config(
    config_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def terminate(*_: object, **__: object) -> None:
        raise Terminated(signal.SIGTERM)

    monkeypatch.setattr("drivestack.engine.config.Config.fromfile", terminate)
    with pytest.raises(Terminated):
        load_config(config_file)
