"""Training of heads on stored features: the same bits as without, no image work, and refused where it cannot be."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.hooks import Hook

from drivestack.core.errors import ConfigError, DataError
from drivestack.core.feature_store import FeatureStore
from drivestack.data_tools.synthetic import synthesize
from drivestack.engine.checkpoints import read_checkpoint
from drivestack.engine.config import build_model, load_config
from drivestack.engine.precision import chosen_precision
from drivestack.engine.train import train

FROZEN = ("img_backbone.", "img_neck.", "bev_map.", "boxes.")


@pytest.fixture(scope="module")
def streets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("streets") / "data"
    return synthesize(root, "train", 2, 2, seed=1, image_width_px=96, workers=1, progress=False)


def settings(streets: Path, iterations: int = 4, config: str = "perception_tiny_synthetic", **changes: Any) -> Any:
    """Voxels and lanes of a tiny model on small images, everything below them frozen."""
    return load_config(
        config,
        {
            "model.tasks": ["occupancy", "lanes"],
            "model.frozen": FROZEN,
            "model.occupancy_head.columns_per_sample": 50,
            "model.bev_map.bev_size": (10, 10),
            "model.bev_map.num_layers": 1,
            "train_dataloader.dataset.source.root": str(streets),
            "train_dataloader.dataset.image.train_heights_px": (32,),
            "train_cfg.max_iters": iterations,
            "log_interval": 1,
            **changes,
        },
    )


def weights(path: Path) -> dict[str, torch.Tensor]:
    return read_checkpoint(path)["state_dict"]


@pytest.fixture(scope="module")
def plain(streets: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    return weights(train(settings(streets), tmp_path_factory.mktemp("plain") / "run"))


class CountPasses(Hook):
    """Passes of the image encoder while training, and cameras whose image is not blank."""

    passes: int
    cameras: set[int]

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        if batch_idx == 0:
            type(self).passes, type(self).cameras = 0, set()
            runner.bare_model.img_backbone.register_forward_hook(self._count)
        images = data_batch.images.flatten(3).abs().sum(3)  # [B, T, N]
        self.cameras.update(images[0, 0].nonzero().flatten().tolist())

    @classmethod
    def _count(cls, *_: Any) -> None:
        cls.passes += 1


def test_stored_features_train_to_the_same_bits_without_images(
    streets: Path, plain: dict[str, torch.Tensor], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "drivestack")
    changes = {"cache_features": str(tmp_path / "features"), "custom_hooks": [dict(type=CountPasses)]}
    cached = weights(train(settings(streets, **changes), tmp_path / "cached"))
    assert cached.keys() == plain.keys()
    assert all(torch.equal(cached[name], plain[name]) for name in plain)
    assert CountPasses.passes == 0 and CountPasses.cameras == {0}  # the front one, which the lane head reads itself
    (store,) = (tmp_path / "features").iterdir()
    assert len(FeatureStore(store)) == 8  # four samples and their mirror images
    # another seed takes the same store, also for its own heads
    train(settings(streets, **changes), tmp_path / "again", seed=0)
    assert "features are stored" in caplog.text and list((tmp_path / "features").iterdir()) == [store]


def test_two_processes_fill_the_store_that_one_does(streets: Path, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "import sys\nfrom pathlib import Path\nfrom drivestack.engine.train import train\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\nfrom test_feature_cache import settings\n"
        "train(settings(Path(sys.argv[1]), 1, cache_features=sys.argv[2]), sys.argv[3])\n"
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(program)]
    one_thread = os.environ | {"OMP_NUM_THREADS": "1"}  # in float32 sums depend on how many there are
    arguments = [*command, streets, tmp_path / "two", tmp_path / "run2"]
    subprocess.run(arguments, env=one_thread, check=True, capture_output=True)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        train(settings(streets, 1, cache_features=str(tmp_path / "one")), tmp_path / "run1")
    finally:
        torch.set_num_threads(threads)
    (one,), (two,) = ((tmp_path / name).iterdir() for name in ("one", "two"))
    assert one.name == two.name
    assert all((one / path.name).read_bytes() == path.read_bytes() for path in two.iterdir())


def test_a_memory_learns_above_stored_maps_to_the_same_bits(streets: Path, tmp_path: Path) -> None:
    """All three heads learn; the convolutions of boxes choose kernels by how the map lies in memory."""
    heads = {
        "model.tasks": ["boxes", "occupancy", "lanes"],
        "model.frozen": FROZEN[:3],
        "model.boxes.bev_proposals.num_proposals": 20,
    }
    run = lambda name, **changes: weights(
        train(settings(streets, 3, "perception_tiny_memory", **heads, **changes), tmp_path / name)
    )
    found, expected = run("cached", cache_features=str(tmp_path / "features")), run("plain")
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert any(name.startswith("memory.") for name in found)


def test_resumed_equals_undisturbed(streets: Path, plain: dict[str, torch.Tensor], tmp_path: Path) -> None:
    for iterations in (2, 4):
        last = train(
            settings(streets, iterations, cache_features=str(tmp_path / "features")), tmp_path / "run", resume="auto"
        )
    found = weights(last)
    assert all(torch.equal(found[name], plain[name]) for name in plain)


def test_other_weights_and_other_images_get_a_store_of_their_own(streets: Path, tmp_path: Path) -> None:
    folder = tmp_path / "features"
    stores = []
    other = {"fp32": "bf16", "bf16": "fp32"}[chosen_precision("auto", "cpu")]
    for i, changes in enumerate(({}, {"optim_wrapper.precision": other}, {"train_dataloader.dataset.mirror": False})):
        train(settings(streets, 1, cache_features=str(folder), **changes), tmp_path / str(i))
        stores.append({path.name for path in folder.iterdir()})
    train(settings(streets, 1, cache_features=str(folder)), tmp_path / "seed", seed=1)  # other frozen weights
    assert [len(found) for found in stores] == [1, 2, 3] and len(list(folder.iterdir())) == 4
    assert sorted(len(FeatureStore(path)) for path in folder.iterdir()) == [4, 8, 8, 8]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model.frozen": ("img_backbone.", "img_neck.")}, "bev_map.level_embeds does: freeze it"),
        ({"model.grid_mask": True}, "grid_mask draws other images"),
        ({"train_dataloader.dataset.image.train_heights_px": (32, 64)}, "switch image.train_heights_px off"),
        ({"train_dataloader.dataset.photometric": {}}, "switch photometric off"),
    ],
)
def test_what_is_no_function_of_the_sample_is_refused(
    streets: Path, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        train(settings(streets, 1, cache_features=str(tmp_path / "features"), **changes), tmp_path / "run")


def test_a_model_without_fixed_features_is_named(toy: Any, tmp_path: Path) -> None:
    config = toy.toy_config(1)
    config.cache_features = str(tmp_path / "features")
    with pytest.raises(ConfigError, match=r"ToyModel has no fixed_features\(\); switch cache_features off"):
        train(config, tmp_path / "run")


def test_frozen_takes_names_of_parts_and_of_keys() -> None:
    def still(*frozen: str) -> set[str]:
        model = build_model(load_config("perception_tiny_synthetic", {"model.frozen": frozen}))
        return {name for name, parameter in model.named_parameters() if not parameter.requires_grad}

    assert {name.split(".")[0] for name in still("bev_map.") - still()} == {"bev_map"}
    keys, part = still("pts_bbox_head.transformer."), still("bev_map.encoder.")
    assert part < keys and any(name.startswith("boxes.head.decoder.") for name in keys)


def test_a_damaged_store_is_named(tmp_path: Path) -> None:
    made = FeatureStore.create(tmp_path / "store", ["a"], False, {"x": torch.ones(2, 3)})
    made.write("a", False, {"x": torch.full((2, 3), 4.0)})
    assert torch.equal(FeatureStore(tmp_path / "store").read("a", False)["x"], torch.full((2, 3), 4.0))
    with pytest.raises(DataError, match="no features of sample a, mirrored"):
        made.read("a", True)
    with (tmp_path / "store" / "x.bin").open("ab") as file:
        file.write(b"0")
    with pytest.raises(DataError, match="25 bytes of stored features, the index has 24; remove the folder"):
        FeatureStore(tmp_path / "store")
    (tmp_path / "store" / "index.json").write_text(json.dumps({"tokens": []}))
    with pytest.raises(DataError, match="no index of stored features"):
        FeatureStore(tmp_path / "store")


def test_axes_keep_their_order_in_memory(tmp_path: Path) -> None:
    value = torch.randn(1, 4, 3, 5).to(memory_format=torch.channels_last)[0]
    store = FeatureStore.create(tmp_path, ["a", "b"], True, {"x": value})
    store.write("b", True, {"x": value})
    found = store.read("b", True)["x"]
    assert torch.equal(found, value) and found.stride() == value.stride()
