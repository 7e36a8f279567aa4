"""Modules call their children with one argument, and the quick way is taken only where nobody can notice it."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from drivestack.backbone import InternImage, prepare_inference
from drivestack.backbone.cpu import linear, plain
from drivestack.backbone.cpu.linear import PackedLinear, run_linear
from drivestack.backbone.internimage.layers import MLP, Downsample, LayerNorm, Stem
from drivestack.backbone.internimage.model import InternImageLayer
from drivestack.bev.map.attention import BevDeformableAttention, TemporalSelfAttention
from drivestack.bev.map.encoder import FeedForward
from drivestack.compat.dcnv4 import DCNv4
from drivestack.compat.ms_deform_attn import MSDeformAttn

TINY = dict(channels=8, depths=(1, 1, 1, 1), groups=(1, 2, 2, 2))
MODES = {"training": (True, True), "eval": (False, True), "inference": (False, False)}


def away_from_start(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data.normal_(0, 0.1, generator=generator)
    return model.eval()


def set_mode(model: nn.Module, training: bool) -> nn.Module:
    """Batch norms keep to their statistics, so that the numbers are the same in every mode."""
    model.train(training)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    return model


def bev_attention() -> tuple[nn.Module, tuple]:
    shape = (4, 6)
    return BevDeformableAttention(16, 4, dropout=0.0), (
        torch.randn(2, 5, 16),
        torch.randn(2, 24, 16),
        [shape],
        torch.rand(2, 5, 2),
    )


def temporal_attention() -> tuple[nn.Module, tuple]:
    return TemporalSelfAttention(16, 4, dropout=0.0), (torch.randn(1, 24, 16), (4, 6), torch.rand(1, 24, 2, 2))


def block(**options) -> tuple[nn.Module, tuple]:
    return InternImageLayer(8, 2, **options), (torch.randn(1, 6, 6, 8),)


CASES: dict[str, Callable[[], tuple[nn.Module, tuple]]] = {
    "pre-norm": block,
    "post-norm": lambda: block(post_norm=True, drop_path=0.0),
    "scales": lambda: block(layer_scale=0.5, act_layer="ReLU"),
    "H": lambda: block(res_post_norm=True, center_feature_scale=True, dw_kernel_size=5),
    "BatchNorm": lambda: block(norm_layer="BN", act_layer="SiLU"),
    "stem": lambda: (Stem(8), (torch.randn(1, 3, 16, 16),)),
    "downsampling": lambda: (Downsample(8), (torch.randn(1, 6, 6, 8),)),
    "feed-forward": lambda: (FeedForward(16, 32, dropout=0.0), (torch.randn(2, 5, 16),)),
    "decoder attention": bev_attention,
    "temporal attention": temporal_attention,
    "DCNv4": lambda: (DCNv4(16, group=2, dw_kernel_size=3), (torch.randn(1, 64, 16),)),
    "MSDeformAttn": lambda: (
        MSDeformAttn(16, 2, 2, 2),
        (torch.randn(1, 5, 16), torch.rand(1, 5, 2, 2), torch.randn(1, 20, 16), [(4, 4), (2, 2)]),
    ),
}


@pytest.fixture(params=CASES)
def case(request) -> tuple[nn.Module, tuple]:
    torch.manual_seed(0)
    model, inputs = CASES[request.param]()
    return away_from_start(model), inputs


def flat(answer) -> list[Tensor]:
    if answer is None:
        return []
    return [answer] if isinstance(answer, Tensor) else [tensor for part in answer for tensor in flat(part)]


def close(found, expected, share: float = 1e-4) -> None:
    for a, b in zip(flat(found), flat(expected), strict=True):
        assert (a - b).abs().max() <= share * b.abs().max() + 1e-6


@pytest.fixture(params=[False, True], ids=["ordinary processor", "processor that MKL lags on"])
def processor(request, monkeypatch) -> None:
    """oneDNN's operators on every x86 processor that has them: their choice is what is tested."""
    monkeypatch.setattr(linear, "_mkl_lags", lambda: request.param)


def test_a_hooked_module_is_called_in_every_mode_with_the_same_numbers(case, processor):
    model, inputs = case
    seen: dict[str, Tensor] = {}

    def watch(name: str, module: nn.Module):
        return module.register_forward_hook(lambda m, i, o: seen.__setitem__(name, flat(o)[0].detach().clone()))

    handles = [watch(name, module) for name, module in model.named_modules()]
    expected_answer = model(*inputs)  # all hooked: nothing is quick
    expected = dict(seen)
    for handle in handles:
        handle.remove()
    assert len(expected) > 2
    for name in expected:
        handle = watch(name, model.get_submodule(name))
        for training, gradients in MODES.values():
            seen.clear()
            with torch.set_grad_enabled(gradients):
                answer = set_mode(model, training)(*inputs)
            assert set(seen) == {name}
            close(seen[name], expected[name])
            close(answer, expected_answer)
        handle.remove()


def test_hooks_for_all_modules_see_every_module(case):
    model, inputs = case
    seen: list[set[nn.Module]] = []
    handle = nn.modules.module.register_module_forward_hook(lambda m, i, o: seen[-1].add(m))
    try:
        for gradients in (True, False):
            seen.append(set())
            with torch.set_grad_enabled(gradients):
                model(*inputs)
    finally:
        handle.remove()
    assert seen[0] == seen[1] and len(seen[0]) > 2


class LoRA(nn.Module):
    """As in peft: the base layer gets all further arguments, the low-rank product is added to what it returns."""

    def __init__(self, base: nn.Linear):
        super().__init__()
        self.base = base
        self.down = nn.Parameter(torch.randn(2, base.in_features) / 4)
        self.up = nn.Parameter(torch.randn(base.out_features, 2) / 4)

    def forward(self, x: Tensor, *args, **kwargs) -> Tensor:
        return self.base(x, *args, **kwargs) + x @ self.down.T @ self.up.T


def replace_linears(model: nn.Module, make: Callable[[nn.Linear], nn.Module]) -> int:
    places = [
        (parent, name)
        for parent in model.modules()
        for name, child in parent.named_children()
        if type(child) is nn.Linear
    ]
    for parent, name in places:
        setattr(parent, name, make(getattr(parent, name)))
    return len(places)


@pytest.mark.parametrize("prepared", [False, True])
def test_adapters_on_every_linear_layer_equal_merged_weights(case, processor, prepared):
    model, inputs = case
    merged = copy.deepcopy(model)
    adapters: list[LoRA] = []

    def adapt(layer: nn.Linear) -> nn.Module:
        adapters.append(LoRA(layer))
        return adapters[-1]

    count = sum(type(module) is nn.Linear for module in model.modules())
    assert replace_linears(model, adapt) == count
    following = iter(adapters)

    def merge(layer: nn.Linear) -> nn.Module:
        adapter = next(following)
        layer.weight.data += adapter.up.data @ adapter.down.data
        return layer

    replace_linears(merged, merge)
    for gradients in (True, False):
        with torch.set_grad_enabled(gradients):
            close((prepare_inference(model) if prepared else model)(*inputs), merged(*inputs), 1e-3)


CHANGES: dict[str, Callable[[nn.Linear], nn.Module]] = {
    "pruned": lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
    "weight norm": parametrizations.weight_norm,
    "old weight norm": lambda layer: nn.utils.weight_norm(layer),
    "spectral norm": lambda layer: parametrizations.spectral_norm(layer).eval(),
}


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("change", CHANGES)
def test_layers_with_computed_weights_follow_their_weights(change, processor):
    torch.manual_seed(0)
    mlp = away_from_start(MLP(8, 16))
    for name in ("fc1", "fc2"):
        setattr(mlp, name, CHANGES[change](getattr(mlp, name)))
    x = torch.randn(3, 8)

    def by_hand() -> Tensor:
        mlp(x)  # hooks of the old kinds compute the weights
        hidden = nn.functional.gelu(nn.functional.linear(x, mlp.fc1.weight, mlp.fc1.bias))
        return nn.functional.linear(hidden, mlp.fc2.weight, mlp.fc2.bias)

    with torch.no_grad():
        close(mlp(x), by_hand())
        for parameter in mlp.parameters():  # a next training step: weights must be computed anew
            parameter.add_(torch.randn_like(parameter))
        close(mlp(x), by_hand())
        close(mlp.add_to(x, x), x + by_hand())


class Subclass(Tensor):
    """As of quantised or distributed weights."""


def with_forward(layer: nn.Linear) -> nn.Linear:
    ordinary = layer.forward
    layer.forward = lambda x: 2 * ordinary(x)  # what accelerate and others do
    return layer


def with_subclass(layer: nn.Linear) -> nn.Linear:
    layer.weight = nn.Parameter(layer.weight.detach().as_subclass(Subclass))
    return layer


@pytest.mark.parametrize(
    "change",
    [
        *CHANGES.values(),
        with_forward,
        with_subclass,
        lambda layer: layer.register_forward_pre_hook(lambda m, i: None) and layer,
        lambda layer: layer.register_full_backward_hook(lambda m, i, o: None) and layer,
        lambda layer: layer.register_full_backward_pre_hook(lambda m, o: None) and layer,
        lambda layer: type("Own", (nn.Linear,), {})(8, 16),
    ],
)
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_what_is_not_plain(change):
    layer = nn.Linear(8, 16)
    assert plain.is_plain(layer, nn.Linear)
    assert not plain.is_plain(change(layer), nn.Linear)


def test_a_prepared_layer_is_called_when_it_is_hooked():
    packed, x, seen = PackedLinear(nn.Linear(8, 16)), torch.randn(3, 8), []
    packed.register_forward_hook(lambda m, i, o: seen.append(o))
    with torch.no_grad():
        y = run_linear(packed, x, nn.GELU(), torch.randn(3, 16))
    assert len(seen) == 1 and seen[0].shape == y.shape and not torch.equal(seen[0], y)


def test_other_activations_and_dropouts_are_not_skipped():
    torch.manual_seed(0)
    mlp, x = away_from_start(MLP(8, 16, drop=0.5)), 10 * torch.randn(64, 8)
    mlp.act = nn.GELU("tanh")
    for prepared in (mlp, prepare_inference(mlp)):
        with torch.no_grad():
            exact = nn.functional.linear(nn.functional.gelu(mlp.fc1(x)), mlp.fc2.weight, mlp.fc2.bias)
            tanh = mlp.fc2(nn.functional.gelu(mlp.fc1(x), approximate="tanh"))
            found = prepared(x)
        assert (found - tanh).abs().max() < 0.1 * (exact - tanh).abs().max()
    mlp.drop.train()  # Monte Carlo dropout: only the dropouts are in training mode
    with torch.no_grad():
        assert not torch.equal(mlp(x), mlp(x)) and not torch.equal(mlp.add_to(x, x), mlp.add_to(x, x))


def test_norms_refuse_what_pytorchs_norm_refuses():
    with torch.no_grad(), pytest.raises(RuntimeError):
        LayerNorm(8)(torch.randn(3, 8).double())
    assert LayerNorm(8, bias=False)(torch.randn(3, 8)).shape == (3, 8)
    with torch.no_grad():
        assert LayerNorm(8, elementwise_affine=False)(torch.randn(3, 8)).shape == (3, 8)


def test_dynamic_quantisation_finds_our_linear_layers():
    torch.manual_seed(0)
    model, x = away_from_start(InternImage(**TINY)), torch.randn(1, 3, 32, 32)
    count = sum(isinstance(m, nn.Linear) for m in model.modules())
    quantised = torch.ao.quantization.quantize_dynamic(model, {nn.Linear})
    found = [m for m in quantised.modules() if isinstance(m, torch.ao.nn.quantized.dynamic.Linear)]
    assert len(found) == count >= 20
    with torch.no_grad():
        for run in (quantised, prepare_inference(quantised)):
            close(run(x), model(x), 0.1)
