"""Wrapped models save plain names and load plain names; advice on what does not fit is right for the case."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

from drivestack.core.checkpoint import load_checkpoint, load_state, save_safetensors
from drivestack.core.errors import CheckpointError
from drivestack.core.weights.files import read_state_dict
from drivestack.core.weights.names import plain_key, unwrapped, weights_of


class Detector(nn.Module):
    """An encoder, a neck, and a head with what a config decides."""

    def __init__(self, classes: int = 10, cameras: int = 6, queries: int = 9, width: int = 4) -> None:
        super().__init__()
        self.img_backbone = nn.Sequential(nn.Conv2d(3, width, 1), nn.BatchNorm2d(width), nn.Conv2d(width, 4, 1))
        self.img_neck = nn.Conv2d(4, 4, 1)
        self.cams_embeds = nn.Parameter(torch.randn(cameras, 4))
        self.query_embedding = nn.Embedding(queries, 4)
        self.cls_branches = nn.ModuleList([nn.Sequential(nn.Linear(4, 4), nn.Linear(4, classes))])


@pytest.fixture
def source() -> Detector:
    torch.manual_seed(2)
    return Detector()


def prefixed(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {prefix + key: value for key, value in state.items()}


def equal(model: nn.Module, source: Detector) -> bool:
    own, state = weights_of(model), source.state_dict()
    return own.keys() == state.keys() and all(torch.equal(own[key], state[key]) for key in state)


PREFIXES = [
    "_orig_mod.",
    "module._orig_mod.",
    "_orig_mod.module.",
    "_fsdp_wrapped_module.",
    "module._fsdp_wrapped_module._checkpoint_wrapped_module.",
    "module.module.",
    "model.",
    "model._orig_mod.",
    "detector.net._orig_mod.",
    "student.",
]


@pytest.mark.parametrize("prefix", PREFIXES)
def test_prefixes_of_wrappers_and_trainers_are_read_away(source, tmp_path, prefix: str) -> None:
    torch.save({"state_dict": prefixed(source.state_dict(), prefix)}, tmp_path / "w.pth")
    model = Detector()
    assert load_checkpoint(model, tmp_path / "w.pth").clean and equal(model, source)


@pytest.mark.parametrize("wrapper", ["_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "module"])
def test_parts_that_were_wrapped(source, tmp_path, wrapper: str) -> None:
    state = {
        key.replace("img_backbone.", f"img_backbone.{wrapper}.").replace(
            "cls_branches.0.", f"cls_branches.0.{wrapper}."
        ): v
        for key, v in source.state_dict().items()
    }
    torch.save(state, tmp_path / "w.pth")
    model = Detector()
    assert load_checkpoint(model, tmp_path / "w.pth").clean and equal(model, source)


def wrapped_models() -> dict[str, nn.Module]:
    inner, ddp_part, both = Detector(), Detector(), Detector()
    inner.img_backbone = torch.compile(inner.img_backbone)
    inner.img_neck = checkpoint_wrapper(inner.img_neck)
    ddp_part.img_backbone = nn.DataParallel(ddp_part.img_backbone)
    both.img_neck = torch.compile(both.img_neck)
    return {
        "compiled": torch.compile(Detector()),
        "data parallel": nn.DataParallel(Detector()),
        "compiled in parallel": nn.DataParallel(torch.compile(Detector())),
        "parallel, compiled": torch.compile(nn.DataParallel(Detector())),
        "parts": inner,
        "parallel part": ddp_part,
        "part and whole": torch.compile(nn.DataParallel(both)),
    }


@pytest.mark.parametrize("name", wrapped_models())
def test_wrapped_models_load_and_save_plain_names(source, tmp_path, name: str) -> None:
    model = wrapped_models()[name]
    save_safetensors(source, tmp_path / "plain.safetensors")
    assert load_checkpoint(model, tmp_path / "plain.safetensors").clean and equal(model, source)
    save_safetensors(model, tmp_path / "own.safetensors")
    assert read_state_dict(tmp_path / "own.safetensors").keys() == source.state_dict().keys()
    save_safetensors(model.state_dict(), tmp_path / "state.safetensors")
    state = read_state_dict(tmp_path / "state.safetensors")
    again = Detector()
    assert (
        load_state(again, state).clean
        if name != "parallel part"
        else load_checkpoint(again, tmp_path / "state.safetensors").clean
    )
    assert equal(again, source)
    assert isinstance(unwrapped(model), Detector)


def test_names_that_only_look_like_wrappers_stay() -> None:
    assert plain_key("a._orig_modules.b") == "a._orig_modules.b"
    assert plain_key("my_orig_mod.a") == "my_orig_mod.a"
    assert plain_key("_orig_mod.a._fsdp_wrapped_module.b") == "a.b"


def test_two_keys_of_one_weight_are_named(tmp_path) -> None:
    torch.save({"a.weight": torch.ones(1), "_orig_mod.a.weight": torch.zeros(1)}, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=r"w\.pth: a\.weight and _orig_mod\.a\.weight name one weight"):
        read_state_dict(tmp_path / "w.pth")


# ---- advice ----------------------------------------------------------------------------------------------------------


def message(path: Path, state: dict[str, Tensor], model: nn.Module | None = None, **options: object) -> str:
    torch.save(state, path)
    with pytest.raises(CheckpointError) as refused:
        load_checkpoint(model or Detector(), path, **options)
    assert "\n" not in str(refused.value) and str(path) in str(refused.value)
    return str(refused.value)


def test_advice_on_prefixes(source, tmp_path) -> None:
    state = source.state_dict()
    both = {**prefixed(state, "teacher."), **prefixed(state, "student.")}
    text = message(tmp_path / "w.pth", both)
    assert "prefix='student.', 'teacher.'" in text and "use the config" not in text
    assert "no key starts with 'pupil.'" in message(tmp_path / "w.pth", both, prefix="pupil.")


@pytest.mark.parametrize(
    ("model", "advice"),
    [
        (Detector(classes=5), "10 classes, the model has 5"),
        (Detector(cameras=5), "6 cameras, the model has 5"),
        (Detector(queries=20), "9 queries, the model has 20"),
        (Detector(classes=3, cameras=1), "10 classes, the model has 3; 6 cameras, the model has 1"),
    ],
)
def test_advice_on_other_numbers(source, tmp_path, model: Detector, advice: str) -> None:
    order = message(tmp_path / "w.pth", source.state_dict(), model)
    assert all(part in order for part in advice.split("; ")) and "--fine-tune" in order


def test_advice_on_an_encoder_alone(source, tmp_path) -> None:
    encoder = source.img_backbone.state_dict()
    head = {"head.weight": torch.ones(1000, 4), "head.bias": torch.ones(1000)}
    for state in (encoder, {**encoder, **head}, prefixed(encoder, "img_backbone.")):
        text = message(tmp_path / "w.pth", state)
        assert "the image encoder (img_backbone) only" in text and "`train --fine-tune`" in text


@pytest.mark.parametrize(
    ("more", "advice"),
    [
        ({"cls_branches.0.0.lora_A.weight": torch.ones(1)}, "LoRA adapters beside the weights"),
        ({"img_neck.weight_scale": torch.ones(1)}, "quantised weights"),
        ({"img_neck._packed_params._packed_params": torch.ones(1)}, "quantised weights"),
        ({"img_neck.qweight": torch.ones(1)}, "quantised weights"),
        ({"img_neck.extra.weight": torch.ones(1, dtype=torch.int8)}, "quantised weights"),
        ({"_flat_param": torch.ones(1)}, "flat shards of FSDP"),
    ],
)
def test_advice_on_other_kinds_of_weights(source, tmp_path, more: dict[str, Tensor], advice: str) -> None:
    text = message(tmp_path / "w.pth", {**source.state_dict(), **more})
    assert advice in text and "use the config" not in text


def test_advice_on_adapters_alone_and_on_half_a_checkpoint(source, tmp_path) -> None:
    adapters = {"base_model.model.img_neck.lora_A.weight": torch.ones(1)}
    assert "LoRA adapters only" in message(tmp_path / "w.pth", adapters)
    half = dict(list(source.state_dict().items())[2:])
    assert f"{len(half)} of the model's {len(half) + 2} tensors" in message(tmp_path / "w.pth", half)
    assert "no key fits: the checkpoint has a, the model" in message(tmp_path / "w.pth", {"a": torch.ones(1)})


# ---- the meta device -------------------------------------------------------------------------------------------------


def on_meta(**options: int) -> Detector:
    with torch.device("meta"):
        return Detector(**options)


def test_models_on_the_meta_device_get_the_weights(source, tmp_path) -> None:
    save_safetensors({key: value.half() if value.is_floating_point() else value for key, value in
                      source.state_dict().items()}, tmp_path / "w.safetensors")  # fmt: skip
    for model in (on_meta(), nn.DataParallel(on_meta()), torch.compile(on_meta())):
        assert load_checkpoint(model, tmp_path / "w.safetensors").clean
        assert all(value.dtype == torch.float32 and not value.is_meta for value in model.parameters())
        torch.testing.assert_close(unwrapped(model).img_neck.weight, source.img_neck.weight, atol=1e-3, rtol=1e-3)
    first, second, state = on_meta(), on_meta(), source.state_dict()
    load_state(first, state), load_state(second, state)
    assert first.cams_embeds.data_ptr() not in (second.cams_embeds.data_ptr(), source.cams_embeds.data_ptr())


def test_tied_and_frozen_parameters_stay_so_on_the_meta_device() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        model[1].weight = model[0].weight
    model[0].bias.requires_grad_(False)
    load_state(model, {key: torch.ones(value.shape) for key, value in model.state_dict().items()})
    assert model[1].weight is model[0].weight
    assert [p.requires_grad for p in (model[0].weight, model[0].bias)] == [True, False]


def test_what_stays_on_the_meta_device_is_named(source) -> None:
    state = dict(source.state_dict())
    del state["img_neck.bias"]
    for options in ({}, {"may_lack": ("img_neck.",)}):
        with pytest.raises(CheckpointError, match=r"still on meta, without values \(1\): img_neck\.bias"):
            load_state(model := on_meta(), state, **options)
        assert model.img_neck.weight.is_meta  # unchanged
    report = load_state(on_meta(), state, strict=False)
    assert report.without_values == ("img_neck.bias",) and not report.clean
    model = on_meta()
    with torch.device("meta"):
        model.register_buffer("grid", torch.zeros(3), persistent=False)
    with pytest.raises(CheckpointError, match=r"without values \(1\): grid; the model is on the meta device"):
        load_state(model, source.state_dict())


# ---- numbers that are not finite -------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_weights_that_are_not_finite_are_named(source, tmp_path, value: float, dtype: torch.dtype) -> None:
    state = {key: v.to(dtype) if v.is_floating_point() else v for key, v in source.state_dict().items()}
    state["img_neck.weight"][1, 2, 0, 0] = value
    save_safetensors(state, tmp_path / "w.safetensors")
    model = Detector()
    before = model.img_neck.weight.clone()
    for strict in (True, False):
        with pytest.raises(CheckpointError, match=r"w\.safetensors: 1 of \d+ .* NaN or infinity: img_neck\.weight"):
            load_checkpoint(model, tmp_path / "w.safetensors", strict=strict)
    assert torch.equal(model.img_neck.weight, before)


def test_large_values_and_masks_of_minus_infinity_are_fine() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.large = nn.Parameter(torch.full((300,), 3e38))
            self.register_buffer("mask", torch.tensor([0.0, -torch.inf]))

    assert load_state(Masked(), Masked().state_dict()).clean
