"""All 51 published detectors and segmentors: their checkpoints' keys and shapes fit our models, one and all."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
import torch

from drivestack.core.registries import OPTIM_WRAPPER_CONSTRUCTORS
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
