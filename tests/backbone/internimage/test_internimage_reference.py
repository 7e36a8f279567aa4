"""Layers and tiny networks agree with the released code: outputs, input and parameter gradients."""

from __future__ import annotations

import pytest
import torch

from drivestack.backbone import CBInternImage, DCNv3, InternImage, InternImageClassifier, InternImageMetaFormer
from drivestack.backbone.internimage.classifier import AttentionPooling
from drivestack.backbone.internimage.layers import Downsample, Stem
from drivestack.backbone.internimage.model import InternImageLayer

MODULES = (
    "dcn_k3",
    "dcn_k3_os2",
    "dcn_k3_dw5_cfs",
    "dcn_k3_rc",
    "dcn_k3_d2",
    "dcn_k3_silu_bn",
    "dcn_k3_relu",
    "layer_prenorm",
    "layer_prenorm_ls",
    "layer_postnorm",
    "layer_respostnorm",
    "layer_ls_and_respostnorm",
    "stem",
    "downsample",
    "attnpool",
)
CLASSIFIERS = ("tiny_T", "tiny_LXL", "tiny_H", "tiny_T_remove_center")


def build_module(name: str, hyper: dict) -> torch.nn.Module:
    if name.startswith("dcn"):
        return DCNv3(**hyper)
    if name.startswith("layer"):
        return InternImageLayer(**hyper)
    if name == "stem":
        return Stem(hyper["out_chans"], hyper["in_chans"])
    if name == "downsample":
        return Downsample(hyper["channels"])
    return AttentionPooling(hyper["dim"], hyper["num_heads"], hyper["out_dim"])


def load_model(name, reference, reference_index, cls):
    entry = reference_index["models"][name]
    options = {"clip_projector": True} if entry["clip_head"] else {}
    model = cls(**entry["hyper"], **options)
    assert list(model.state_dict()) == entry["state_dict_order"]
    files = [f"models/{name}"] + (["models/clip_head_shared"] if entry["clip_head"] else [])
    model.load_state_dict(reference.weights(*files))
    return model.eval(), reference.arrays(f"models/{name}")


@pytest.mark.parametrize("name", MODULES)
def test_module(name, reference, reference_index, assert_near):
    module = build_module(name, reference_index["modules"][name]).eval()
    module.load_state_dict(reference.weights(f"modules/{name}"))
    data = reference.arrays(f"modules/{name}")
    x = data["x"].requires_grad_()
    y = module(x)
    assert_near(y, data["y"], "output")
    y.backward(data["grad_y"])
    assert_near(x.grad, data["grad_x"], "input gradient")
    for key, parameter in module.named_parameters():
        if parameter.grad is None:  # parameters that the released code has and does not use
            assert f"grad.{key}" not in data, key
        else:
            assert_near(parameter.grad, data[f"grad.{key}"], key)


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_classifier(name, reference, reference_index, assert_near):
    model, data = load_model(name, reference, reference_index, InternImageClassifier)
    x = data["x"].requires_grad_()
    if "stem" in data:
        assert_near(model.patch_embed(x), data["stem"], "stem", rtol=1e-3)
        for i, feature in enumerate(model.forward_levels(x)):
            assert_near(feature, data[f"stage{i + 1}"], f"stage {i + 1}", rtol=1e-3)
        assert_near(model.forward_pooled(x), data["pooled"], "pooled", rtol=1e-3)
    logits = model(x)
    assert_near(logits, data["logits"], "logits", rtol=1e-3)
    logits.backward(data["grad_logits"])
    assert_near(x.grad, data["grad_x"], "input gradient", rtol=1e-3)
    norms = reference_index["models"][name]["grad_norms"]
    for key, parameter in model.named_parameters():
        if norms[key] > 1e-5:  # smaller ones are zero but for rounding
            assert float(parameter.grad.norm()) == pytest.approx(norms[key], rel=2e-3), key


def test_metaformer(reference, reference_index, assert_near):
    model, data = load_model("tiny_metaformer_H", reference, reference_index, InternImageMetaFormer)
    logits = model(data["x"], data["temporal"], data["spatial"])
    assert_near(logits, data["logits"], "logits", rtol=1e-3)
    logits.backward(data["grad_logits"])
    norms = reference_index["models"]["tiny_metaformer_H"]["grad_norms"]
    for key, parameter in model.named_parameters():
        if norms[key] > 1e-5:
            assert float(parameter.grad.norm()) == pytest.approx(norms[key], rel=2e-3), key


def test_odd_image_size(reference, reference_index, assert_near):
    model, data = load_model("tiny_T", reference, reference_index, InternImageClassifier)
    with torch.no_grad():
        for i, feature in enumerate(model.forward_levels(data["x_odd"])):
            assert_near(feature, data[f"stage{i + 1}_odd"], f"stage {i + 1}", rtol=1e-3)
        assert_near(model(data["x_odd"]), data["logits_odd"], "logits", rtol=1e-3)


def test_composite(reference, reference_index, assert_near):
    model, data = load_model("tiny_CB_H", reference, reference_index, CBInternImage)
    with torch.no_grad():
        for branch, features in enumerate(model(data["x"])):
            for level, feature in enumerate(features):
                assert_near(feature, data[f"branch{branch}_level{level}"], f"{branch}.{level}", rtol=1e-3)


def test_float64_reference_of_a_network(reference, reference_index, assert_near):
    """The same network in float64 stays within float32 rounding of the reference: nothing computes in less."""
    entry = reference_index["models"]["tiny_T"]
    model = InternImageClassifier(**entry["hyper"])
    model.load_state_dict(reference.weights("models/tiny_T"))
    data = reference.arrays("models/tiny_T")
    with torch.no_grad():
        logits = model.double().eval()(data["x"].double())
    assert logits.dtype == torch.float64
    assert_near(logits.float(), data["logits"], "logits")


def test_feature_encoder_is_the_classifier_without_head(reference, reference_index, assert_near):
    entry = reference_index["models"]["tiny_T"]
    options = {key: value for key, value in entry["hyper"].items() if key != "num_classes"}
    trunk = InternImage(**options, out_indices=(1, 3)).eval()
    weights = reference.weights("models/tiny_T")
    trunk.load_state_dict({key: weights[key] for key in trunk.state_dict()})
    data = reference.arrays("models/tiny_T")
    with torch.no_grad():
        maps = trunk(data["x"])
    for feature, stage in zip(maps, ("stage2", "stage4")):
        assert_near(feature.permute(0, 2, 3, 1), data[stage], stage, rtol=1e-3)
