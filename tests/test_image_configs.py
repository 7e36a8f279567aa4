"""Shipped configs of classifiers: published number of parameters and recipe; the loop trains and resumes them."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook

from drivestack.backbone.pretrain.classification.model import Classifier
from drivestack.core.errors import CheckpointError, DataError
from drivestack.engine.config import build_dataset, build_model, load_config
from drivestack.engine.fine_tune import names_of
from drivestack.engine.from_data import completed
from drivestack.engine.layer_decay import ClassifierOptimizerConstructor
from drivestack.engine.train import train
from support.class_folders import CLASSES, TINY, tiny_classifier, write_folders

# Parameters of the released models (classification/configs of the InternImage release, built there).
T, S, B, L, XL = 29_918_424, 50_079_880, 97_461_832, 223_334_810, 334_819_780
H, G = 1_089_636_760, 3_076_373_352
PUBLISHED = {
    "t_1k_224": T,
    "s_1k_224": S,
    "b_1k_224": B,
    "l_22kto1k_384": L,
    "xl_22kto1k_384": XL,
    "h_22kto1k_384": H,
    "h_22kto1k_640": H,
    "g_22kto1k_512": G,
    "h_22ktoinat18_384": 1_096_197_516,
    "l_22k_384": 263_370_371,
    "xl_22k_384": 382_858_285,
    "h_22k_384": 1_105_663_489,
    "g_22k_384": 3_092_400_081,
}
WITHOUT_DECAY = (
    "t_1k_224",
    "s_1k_224",
    "b_1k_224",
    "l_22kto1k_384",
    "xl_22kto1k_384",
    "h_22kto1k_640",
    "g_22kto1k_512",
)
PUBLISHED |= {f"{name}_without_lr_decay": PUBLISHED[name] for name in WITHOUT_DECAY}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_config_builds_with_the_published_parameters(name: str) -> None:
    config = load_config(f"internimage_{name}")
    with torch.device("meta"):
        model = build_model(config)
    assert sum(parameter.numel() for parameter in model.parameters()) == PUBLISHED[name]
    assert isinstance(model, Classifier)
    options = {**config.optim_wrapper, "optimizer": {**config.optim_wrapper.optimizer, "lr": config.epochs.lr}}
    policies = ClassifierOptimizerConstructor(options, config.optim_wrapper.paramwise_cfg).policies(model)
    has_decay = any(word in name for word in ("22kto1k", "22k_384")) and "without" not in name
    assert (min(policy.lr_scale for policy in policies.values()) < 0.5) == has_decay
    assert config.train_dataloader.dataset.image.size_px == config.test_dataset.image.size_px == int(name.split("_")[2])


def test_the_published_rates_come_out_with_the_published_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_folders(tmp_path, train=40, val=1)
    monkeypatch.setenv("WORLD_SIZE", "32")
    for name, rate, first in (("internimage_t_1k_224", 4e-3, 4e-6), ("internimage_l_22kto1k_384", 2e-5, 0.0)):
        config = completed(load_config(name, [f"data={root}"]))
        assert config.optim_wrapper.optimizer.lr == pytest.approx(rate)
        assert config.param_scheduler[0].warmup_lr == pytest.approx(first)


# ------------------------------------------------------------------------------------------------------------- training


class Kill(Hook):
    """Ends the program after so many iterations, as a signal would: nothing is saved."""

    def __init__(self, after: int) -> None:
        self.after = after

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        if runner.iter + 1 == self.after:
            raise KeyboardInterrupt


def tiny_config(root: Path, *overrides: str) -> Config:
    """The recipe of InternImage-T at toy size, with everything that draws random numbers."""
    config = load_config(
        "internimage_t_1k_224",
        [
            f"data={root}",
            "train_dataloader.batch_size=4",
            "train_dataloader.num_workers=0",
            "train_dataloader.dataset.image.size_px=32",
            "test_dataset.image.size_px=32",
            "optim_wrapper.precision=fp32",
            "epochs.total=2",
            "epochs.warmup=1",
            "epochs.images_per_lr=4",
            "checkpoint.interval=3",
            *overrides,
        ],
    )
    config.model.network = dict(type=type(tiny_classifier()), **TINY, num_classes=1000, drop_path_rate=0.2)
    return config


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    pytest.importorskip("timm")
    return write_folders(tmp_path / "data", train=5, val=2)


def test_a_killed_training_goes_on_to_the_same_bits(folders: Path, tmp_path: Path) -> None:
    config = tiny_config(folders)
    whole = torch.load(train(config, tmp_path / "whole"), weights_only=True)
    killed = tiny_config(folders)
    killed.custom_hooks = [Kill(5)]
    with pytest.raises(KeyboardInterrupt):
        train(killed, tmp_path / "killed")
    resumed = torch.load(train(config, tmp_path / "killed", resume=True), weights_only=True)
    assert whole["meta"]["iter"] == 8 and tuple(whole["meta"]["classes"]) == CLASSES
    for part in ("state_dict", "ema_state_dict"):
        assert all(torch.equal(value, resumed[part][key]) for key, value in whole[part].items())
    written = load_config(tmp_path / "whole" / "config.py")
    assert written.model.network.num_classes == 3 and written.train_cfg.max_iters == 8


def test_fine_tuning_on_other_classes_takes_rows_by_name_and_says_so(
    folders: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = train(tiny_config(folders, "epochs.total=0.3", "epochs.warmup=0"), tmp_path / "first")
    assert names_of(first)["classes"] == CLASSES
    other = write_folders(tmp_path / "other", train=2, val=1)
    for part in ("train", "val"):
        (other / part / "green").rename(other / part / "yellow")
        (other / part / "blue").rename(other / part / "azure")
    config = tiny_config(other, "epochs.total=0.3", "epochs.warmup=0", "epochs.lr=0")
    with caplog.at_level(logging.INFO, "drivestack"):
        found = torch.load(train(config, tmp_path / "tuned", fine_tune=first), weights_only=True)
    assert "by class name (2): red; new: azure, yellow" in caplog.text
    before = torch.load(first, weights_only=True)["state_dict"]
    assert tuple(found["meta"]["classes"]) == ("azure", "red", "yellow")
    torch.testing.assert_close(found["state_dict"]["head.weight"][1], before["head.weight"][2])
    torch.testing.assert_close(found["state_dict"]["conv_head.0.weight"], before["conv_head.0.weight"])


def test_released_weights_of_another_number_of_classes(
    folders: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    released = tmp_path / "released.pth"
    state = Classifier(tiny_classifier(1000)).state_dict()
    torch.save({"model": state, "max_accuracy": 83.5}, released)
    config = tiny_config(folders, "epochs.total=0.3", "epochs.warmup=0")
    with pytest.raises(CheckpointError, match=r"1000 classes, the model 3: .*--fine-tune"):
        train(config, tmp_path / "strict", load_from=released)
    with caplog.at_level(logging.INFO, "drivestack"):
        train(config, tmp_path / "tuned", fine_tune=released)
    assert "head.weight (is [1000, 192], the model's [3, 192])" in caplog.text
    assert "model.network.num_classes: 3, the classes of the training data (the config has 1000)" in caplog.text


def test_data_that_are_not_there_say_how_to_name_them(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"nowhere: no such folder; .*--set train_dataloader\.dataset\.source\.root=DIR"
    ):
        train(tiny_config(tmp_path / "nowhere"), tmp_path / "run")


def test_own_classes_and_synthetic_crops_are_configured_to_build(folders: Path) -> None:
    for name, key in (("internimage_t_own_classes", "data"), ("internimage_tiny_synthetic_classes", "data_val")):
        config = load_config(name, [f"{key}={folders}"])
        assert len(build_dataset(config.test_dataset)) == 6
        with torch.device("meta"):
            build_model(config)
