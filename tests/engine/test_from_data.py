"""Classes, rates and iterations that follow from the training data, and the schedule of timm's numbers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from torch import nn
from torch.optim import SGD, AdamW

from drivestack.backbone.pretrain.classification.dataset import ClassDataset
from drivestack.backbone.pretrain.classification.model import Classifier
from drivestack.core.errors import ConfigError
from drivestack.engine.from_data import completed
from drivestack.engine.layer_decay import ClassifierOptimizerConstructor, classification_policies
from drivestack.engine.schedules import WarmupCosineLR
from support.class_folders import CLASSES, TINY, tiny_classifier, write_folders


@pytest.fixture
def config(tmp_path: Path) -> Config:
    root = write_folders(tmp_path, train=8, val=1)
    dataset = dict(
        type=ClassDataset, source=dict(type="FolderSource", root=str(root), part="train"), image=dict(size_px=8)
    )
    return Config(
        dict(
            model=dict(type=Classifier, network=dict(num_classes=7)),
            sized_by_classes=("model.network.num_classes",),
            epochs=dict(total=10, warmup=2, lr=0.1, warmup_lr=0.001, min_lr=0.01, images_per_lr=8),
            train_dataloader=dict(dataset=dataset, batch_size=4),
            test_dataset={**dataset},
            optim_wrapper=dict(optimizer=dict(type=SGD), accumulative_counts=3),
        )
    )


def test_rates_and_lengths_follow_from_the_images_of_a_step(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    found = completed(config)
    assert found.model.network.num_classes == 3
    assert found.train_dataloader.dataset.classes == found.test_dataset.classes == list(CLASSES)
    assert found.optim_wrapper.optimizer.lr == pytest.approx(0.1 * 24 / 8)  # 2 processes x 4 images x 3 accumulated
    assert found.train_cfg.max_iters == 30  # 10 epochs x 24 images / (2 x 4)
    schedule = found.param_scheduler[0]
    assert (schedule.total, schedule.warmup) == (30, 6)
    assert (schedule.warmup_lr, schedule.min_lr) == (pytest.approx(0.003), pytest.approx(0.03))
    assert completed(found) is found  # nothing is left to the data
    assert config.epochs.total == 10 and "lr" not in config.optim_wrapper.optimizer  # the caller's is as it was


def test_what_the_config_states_itself_stays(config: Config) -> None:
    config.train_cfg = dict(max_iters=5)
    config.optim_wrapper.optimizer.lr = 0.5
    config.train_dataloader.dataset.classes = ["red", "green", "blue"]
    found = completed(config)
    assert found.train_cfg.max_iters == found.param_scheduler[0].total == 5
    assert found.optim_wrapper.optimizer.lr == 0.5
    assert found.train_dataloader.dataset.classes == found.test_dataset.classes == ["red", "green", "blue"]
    config.param_scheduler = []
    assert completed(config).param_scheduler == []


class Counted(ClassDataset):
    def class_counts(self) -> list[int]:
        return [5, 0, 7]


def test_counts_of_the_labels_are_stated(config: Config) -> None:
    config.counts_by_class = ("model.network.frequency",)
    with pytest.raises(ConfigError, match="counts_by_class: ClassDataset counts no labels"):
        completed(config)
    config.train_dataloader.dataset.type = Counted
    found = completed(config)
    assert found.model.network.frequency == [5, 0, 7]
    assert completed(found) is found and found.counts_by_class == ()


@pytest.mark.parametrize(("key", "value"), [("total", None), ("lr", -1), ("lr", "much"), ("warm_up", 3)])
def test_bad_epochs_are_named(config: Config, key: str, value: object) -> None:
    config.epochs[key] = value
    with pytest.raises(ConfigError, match=rf"epochs.*{key}"):
        completed(config)


def test_the_schedule_is_timms() -> None:
    scheduler = pytest.importorskip("timm.scheduler")
    rates = []
    for make in (
        lambda own: WarmupCosineLR(own, total=20, warmup=4, warmup_lr=0.01, min_lr=0.05, by_epoch=False, end=25),
        lambda own: scheduler.CosineLRScheduler(
            own, t_initial=20, lr_min=0.05, warmup_t=4, warmup_lr_init=0.01, cycle_limit=1, t_in_epochs=False
        ),
    ):
        layers = nn.ModuleList([nn.Linear(1, 1), nn.Linear(1, 1)])
        optimizer = SGD([dict(params=layers[0].parameters(), lr=1.0), dict(params=layers[1].parameters(), lr=0.3)])
        own = make(optimizer)
        rates.append([])
        for i in range(23):
            if i:
                own.step() if isinstance(own, WarmupCosineLR) else own.step_update(i)
            rates[-1].append([group["lr"] for group in optimizer.param_groups])
    torch.testing.assert_close(torch.tensor(rates[0]), torch.tensor(rates[1]))
    with pytest.raises(ValueError, match="do not fit"):
        WarmupCosineLR(optimizer, total=3, warmup=4)


def test_groups_are_those_of_the_released_recipe() -> None:
    model = Classifier(tiny_classifier())
    make = ClassifierOptimizerConstructor(
        dict(type="OptimWrapper", optimizer=dict(type=AdamW, lr=0.1, weight_decay=0.05)),
        dict(layer_decay_rate=0.5, dcn_lr_mul=0.1),
    )
    groups: list[dict] = []
    make.add_params(groups, model)
    released = classification_policies(
        model.network.named_parameters(), depths=TINY["depths"], layer_decay_rate=0.5, dcn_lr_mul=0.1
    )
    found = {id(p): (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}
    for name, parameter in model.network.named_parameters():
        assert found[id(parameter)] == (pytest.approx(0.1 * released[name].lr_scale), released[name].weight_decay), name
    assert len(groups) < 20 < len(released)
    with pytest.raises(ConfigError, match=r"layer_decay_rate needs an InternImage; Linear has none"):
        make.policies(nn.Linear(1, 1))
    with pytest.raises(ConfigError, match="unknown layer_decay"):
        ClassifierOptimizerConstructor(dict(optimizer=dict(lr=1)), dict(layer_decay=1))


def test_weights_by_name_stay_with_their_classes_or_go(config: Config) -> None:
    config.weights_by_class = ("model.network.weights",)
    config.model.network.weights = dict(zip([*reversed(CLASSES), "another"], (1.0, 2.0, 3.0, 4.0)))
    assert completed(config).model.network.weights == [3.0, 2.0, 1.0]
    config.model.network.weights = dict(one=1.0)
    assert completed(config).model.network.weights is None
