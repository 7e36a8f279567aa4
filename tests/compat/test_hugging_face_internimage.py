"""transformers' Auto classes load InternImage from a folder as the hub has it, without its remote code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from drivestack.backbone import InternImage, load_checkpoint
from drivestack.compat.hugging_face_internimage import register_internimage
from support.class_folders import TINY, tiny_classifier

transformers = pytest.importorskip("transformers")
IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def hub_folder(tmp_path: Path) -> Path:
    """Config and weights in the hub's names."""
    register_internimage()
    torch.manual_seed(0)
    state = tiny_classifier(layer_scale=0.5).state_dict()
    scale = lambda key: key.replace("gamma1", "layer_scale1").replace("gamma2", "layer_scale2")
    save_file(
        {"model." + scale(key): value for key, value in state.items()}, tmp_path / "model.safetensors", {"format": "pt"}
    )
    settings = {**TINY, "layer_scale": 0.5, "num_classes": 3, "model_type": "internimage", "core_op": "DCNv3"}
    settings["auto_map"] = {"AutoConfig": "configuration_internimage.InternImageConfig"}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    return tmp_path


def test_classification_from_a_hub_folder(hub_folder: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    ours = tiny_classifier(layer_scale=0.5).eval()
    model = transformers.AutoModelForImageClassification.from_pretrained(hub_folder).eval()
    found = model(IMAGES, labels=torch.tensor([0, 2]), output_hidden_states=True)
    torch.testing.assert_close(found.logits, ours(IMAGES))
    torch.testing.assert_close(found.loss, torch.nn.functional.cross_entropy(ours(IMAGES), torch.tensor([0, 2])))
    assert [tuple(m.shape) for m in found.hidden_states] == [(2, 16 << i, 16 >> i, 16 >> i) for i in range(4)]
    model.save_pretrained(tmp_path / "saved")
    written = load_file(tmp_path / "saved" / "model.safetensors")
    assert set(written) == set(load_file(hub_folder / "model.safetensors"))
    again = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "saved").eval()
    torch.testing.assert_close(again(IMAGES).logits, found.logits)
    load_checkpoint(ours, tmp_path / "saved")


def test_backbone_from_a_hub_folder(hub_folder: Path) -> None:
    model = register_internimage()[1].from_pretrained(hub_folder, out_indices=(1, 3)).eval()
    of_config = transformers.AutoBackbone.from_config(transformers.AutoConfig.from_pretrained(hub_folder))
    assert type(of_config) is type(model)
    ours = InternImage(**TINY, layer_scale=0.5, out_indices=(1, 3)).eval()
    load_checkpoint(ours, hub_folder)
    torch.testing.assert_close(list(model(IMAGES).feature_maps), ours(IMAGES))
    assert model.channels == [32, 128]
