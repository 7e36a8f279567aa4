"""InternImage as a model of timm's: created, loaded, cut open and trained by its functions."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from drivestack.backbone import internimage, save_safetensors
from drivestack.backbone.internimage import variants
from drivestack.compat.timm import TimmInternImage, register_internimage
from support.class_folders import TINY, tiny_classifier

timm = pytest.importorskip("timm")
optim = pytest.importorskip("timm.optim")
IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module", autouse=True)
def names() -> Iterator[list[str]]:
    yield register_internimage()


def tiny(**options: object) -> TimmInternImage:
    return timm.create_model("internimage_t", **{**TINY, "num_classes": 3, **options}).eval()


def test_all_variants_are_registered_once(names: list[str]) -> None:
    assert names == [f"internimage_{variant.lower()}" for variant in variants.VARIANTS]
    assert set(names) <= set(timm.list_models("internimage*"))
    assert "internimage_l.in22k_ft_in1k" in timm.list_models("internimage*", pretrained=True)
    assert register_internimage() == names
    with torch.device("meta"):
        for name in ("internimage_s", "internimage_h"):
            model = timm.create_model(name, num_classes=1000)
            ours = internimage(name[-1].upper(), "classification")
            assert model.state_dict().keys() == ours.state_dict().keys()
    assert timm.data.resolve_model_data_config(model)["input_size"] == (3, 640, 640)


def test_features_head_and_classifier_agree_with_the_whole() -> None:
    for options in ({}, {"clip_projector": True, "center_feature_scale": True}):
        torch.manual_seed(0)
        model = tiny(**options)
        logits = model(IMAGES)
        torch.testing.assert_close(model.forward_head(model.forward_features(IMAGES)), logits)
        pooled = model.forward_head(model.forward_features(IMAGES), pre_logits=True)
        assert pooled.shape == (2, model.head_hidden_size)
        final, maps = model.forward_intermediates(IMAGES)
        torch.testing.assert_close(model.forward_head(final), logits)
        assert [tuple(m.shape) for m in maps] == [(2, 16 << i, 16 >> i, 16 >> i) for i in range(4)]
        model.reset_classifier(5)
        assert model(IMAGES).shape == (2, 5)
        model.reset_classifier(0)
        torch.testing.assert_close(model(IMAGES), pooled)


def test_features_only_gives_the_levels() -> None:
    torch.manual_seed(0)
    whole = tiny()
    torch.manual_seed(0)
    cut = timm.create_model("internimage_t", features_only=True, out_indices=(1, 2), **TINY).eval()
    assert cut.feature_info.channels() == [32, 64] and cut.feature_info.reduction() == [8, 16]
    maps = cut(IMAGES)
    expected = whole.forward_intermediates(IMAGES, [1, -2], intermediates_only=True, stop_early=True)
    torch.testing.assert_close(maps, expected)
    assert not any(name.startswith("levels.3") for name, _ in cut.named_parameters())


@pytest.mark.parametrize("form", ["released", "hugging_face"])
def test_weights_of_the_release_load_by_name(form: str, tmp_path: Path) -> None:
    torch.manual_seed(3)
    ours = tiny_classifier().eval()
    if form == "released":
        path = tmp_path / "weights.pth"
        torch.save({"model": ours.state_dict(), "epoch": 299}, path)
    else:
        path = tmp_path / "model.safetensors"
        save_safetensors({f"model.{key}": value for key, value in ours.state_dict().items()}, path)
    overlay = dict(file=str(path), num_classes=3)
    loaded = tiny(pretrained=True, pretrained_cfg_overlay=overlay)
    torch.testing.assert_close(loaded(IMAGES), ours(IMAGES))
    other = tiny(pretrained=True, pretrained_cfg_overlay=overlay, num_classes=7)
    assert other(IMAGES).shape == (2, 7)
    torch.testing.assert_close(other.forward_features(IMAGES), ours.forward_unpooled(IMAGES))


def test_layer_decay_and_checkpointing_by_timm() -> None:
    model = tiny().train()
    groups = optim.param_groups_layer_decay(model, layer_decay=0.5)
    scales = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    of = lambda name: scales[id(model.get_parameter(name))]
    blocks = [of(f"levels.{i}.blocks.0.dcn.offset.weight") for i in range(4)]
    assert of("patch_embed.conv1.weight") < blocks[0] < blocks[1] < blocks[2] < blocks[3] <= of("head.weight") == 1
    model.set_grad_checkpointing()
    model(IMAGES).sum().backward()
    assert model.get_parameter("patch_embed.conv1.weight").grad is not None


def test_what_internimage_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="in_chans=1"):
        tiny(in_chans=1)
    with pytest.raises(ValueError, match="global_pool='max'"):
        tiny(global_pool="max")
    with pytest.raises(ValueError, match="levels 0 to 3"):
        tiny().forward_intermediates(IMAGES, [4])
