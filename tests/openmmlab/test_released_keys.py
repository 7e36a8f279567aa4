"""All 51 published detectors and segmentors: their checkpoints' keys and shapes fit our models, one and all."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
import torch

from drivestack.core.registries import OPTIM_WRAPPER_CONSTRUCTORS
from drivestack.core.weights.published_keys import published_name
from drivestack.engine.config import build_model, load_config

REFERENCE = Path(__file__).parents[1] / "reference" / "openmmlab" / "keys"
KEYS = {
    name: keys
    for task in ("detection", "segmentation")
    for name, keys in json.loads(gzip.decompress((REFERENCE / f"{task}.json.gz").read_bytes())).items()
}


def config_of(published: str) -> str:
    """Our config has the file name of upstream's, without the folder."""
    return published.split("__")[1]


@pytest.mark.parametrize("published", KEYS)
def test_strict(published: str) -> None:
    config = load_config(config_of(published))
    with torch.device("meta"):
        model = build_model(config)
    state = {key: torch.empty(shape, device="meta") for key, shape in KEYS[published].items()}
    state, _ = model.adapt_checkpoint(state)
    own = model.state_dict()
    assert {key: tuple(value.shape) for key, value in state.items()} == {
        key: tuple(value.shape) for key, value in own.items()
    }
    constructor = OPTIM_WRAPPER_CONSTRUCTORS.get("LayerDecayOptimizerConstructor")
    wrapper = config.optim_wrapper
    policies = constructor(dict(wrapper), wrapper.paramwise_cfg).policies(model)
    assert policies.keys() == dict(model.named_parameters()).keys()
    fresh = [key for key in own if not key.startswith("backbone.")]
    assert all(key.startswith(tuple(config.new_parts)) for key in fresh), "a classifier's weights would be refused"


TABLES = json.loads(gzip.decompress((REFERENCE.parents[1] / "backbone" / "layer_decay.json.gz").read_bytes()))
RECIPES = {
    "dino_4scale_internimage_l_1x_coco_layer_wise_lr": "detection_L",
    "dino_4scale_internimage_h_objects365_coco_ss": "detection_H",
    "dino_4scale_cbinternimage_h_objects365_coco_ss": "detection_CB_H",
    "upernet_internimage_t_512_160k_ade20k": "segmentation_T",
}


@pytest.mark.parametrize("name", RECIPES)
def test_the_released_recipe_gives_the_released_rates_of_whole_models(name: str) -> None:
    table = TABLES[RECIPES[name]]
    config = load_config(name)
    with torch.device("meta"):
        model = build_model(config)
    config.optim_wrapper.optimizer.weight_decay = table["base_wd"]
    options = {key: table["paramwise_cfg"][key] for key in ("layer_decay_rate", "offset_lr_scale")}
    constructor = OPTIM_WRAPPER_CONSTRUCTORS.get("LayerDecayOptimizerConstructor")
    paramwise = {**config.optim_wrapper.paramwise_cfg, **options}
    policies = constructor({**config.optim_wrapper, "paramwise_cfg": paramwise}, paramwise).policies(model)
    mine = {published_name(model, key): [p.lr_scale, p.weight_decay] for key, p in policies.items()}
    mine["bbox_head.transformer.level_embeds"] = mine.get("level_embed")
    expected = {key: row[1:] for key, row in table["group_lrscale_wd_per_param"].items() if mine.get(key)}
    assert {key: mine[key] for key in expected} == expected
    backbone = [key for key in mine if key.startswith("backbone.")]
    assert len(expected) >= min(len(backbone), 70)
