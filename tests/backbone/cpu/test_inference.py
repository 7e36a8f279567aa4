"""Models prepared for inference give the same numbers, and so do oneDNN's matrix products."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

from drivestack.backbone import FPN, InternImageClassifier, ResNet, prepare_inference
from drivestack.backbone.cpu import linear
from drivestack.backbone.cpu.linear import PackedConv2d, PackedLinear, run_linear
from drivestack.backbone.internimage.layers import LayerNorm
from drivestack.bev.map.temporal import ResNetFusion

TINY = dict(channels=16, depths=(1, 1, 2, 1), groups=(1, 2, 4, 8), num_classes=7)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def spread(model: nn.Module) -> nn.Module:
    """Every parameter and running statistic away from its start."""
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                tensor.add_(0.05 * torch.randn_like(tensor) if "running_var" not in name else torch.rand_like(tensor))
    return model.eval()


def close(a: torch.Tensor, b: torch.Tensor, share: float = 1e-5) -> None:
    assert a.shape == b.shape and a.dtype == b.dtype
    assert (a - b).abs().max() <= share * b.abs().max() + 1e-9


@pytest.mark.parametrize(
    "options",
    [
        dict(),
        dict(post_norm=True, layer_scale=0.5),
        dict(layer_scale=0.5, res_post_norm=True, drop_path_rate=0.3, drop_rate=0.2),
        dict(dw_kernel_size=5, center_feature_scale=True, res_post_norm=True, remove_center=True),
        dict(norm_layer="BN", act_layer="SiLU"),
    ],
    ids=["pre-norm", "post-norm", "scaled pre-norm", "H", "BN"],
)
def test_prepared_encoder_gives_the_same_numbers(options):
    model = spread(InternImageClassifier(**TINY, **options))
    before = copy.deepcopy(model.state_dict())
    prepared = prepare_inference(model)
    images = torch.randn(2, 3, 70, 64)
    with torch.no_grad():
        close(prepared(images), model(images))
        with torch.autocast("cpu", torch.bfloat16):
            close(prepared(images), model(images), 0.05)
        close(copy.deepcopy(prepared).double()(images.double()), copy.deepcopy(model).double()(images.double()))
    close(prepared(images), model(images))  # with autograd PyTorch's own layers are used
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert not any(p.requires_grad for p in prepared.parameters())


def test_prepared_models_can_be_copied_and_pickled_after_use():
    prepared = prepare_inference(spread(InternImageClassifier(**TINY)))
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = prepared(images)
        for other in (copy.deepcopy(prepared), pickle.loads(pickle.dumps(prepared))):
            assert torch.equal(other(images), expected)


def test_a_prepared_model_may_be_prepared_again():
    prepared = prepare_inference(spread(InternImageClassifier(**TINY, layer_scale=0.5)))
    images = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        close(prepare_inference(prepared)(images), prepared(images))


def test_batch_norms_fold_into_convolutions():
    resnet = spread(ResNet(depth=50, base_channels=8, stage_with_dcn=(False, False, True, False)))
    neck, fusion = FPN(in_channels=(32, 64, 128, 256), out_channels=8, num_outs=4), ResNetFusion(8, 8, 16, 2)
    model = nn.Sequential(resnet, neck, spread(fusion))
    prepared = prepare_inference(model)
    norms = [m for m in prepared.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == 6  # behind the deformable convolutions
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        expected, found = neck(resnet(images)), prepared[1](prepared[0](images))
        for a, b in zip(found, expected):
            close(a, b, 1e-4)
        close(prepared[2](found[0]), fusion(expected[0]), 1e-4)


class Block(nn.Module):
    """Names that promise conv1 -> bn1 -> conv2 -> bn2, whatever ``order`` of them is computed."""

    def __init__(self, order=lambda m, x: m.bn2(m.conv2(m.bn1(m.conv1(x)))), **changes):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)
        self.bn1, self.bn2 = nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.body = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
        for name, module in changes.items():
            setattr(self, name, module)
        self.order = order

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.order(self, x)


class Tapped(Block):
    def forward(self, x: torch.Tensor, tapped: torch.Tensor | None = None) -> torch.Tensor:
        return self.bn1(self.conv1(x)) if tapped is None else self.conv1(x)


def remaining(model: nn.Module) -> int:
    """How many of its BatchNorms a prepared model still calls; it must give the same numbers."""
    model, x, called = spread(model), torch.randn(2, 4, 5, 6), []
    norms = {name: m for name, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)}
    prepared = prepare_inference(model)
    handles = [m.register_forward_hook(lambda *_, name=name: called.append(name)) for name, m in norms.items()]
    with torch.no_grad():
        close(prepared(x), model(x))
    for handle in handles:
        handle.remove()
    assert called
    return sum(isinstance(prepared.get_submodule(name), nn.BatchNorm2d) for name in set(called))


BLOCKS = {
    "one after the other": (Block(), 0),
    "before the convolution": (Block(lambda m, x: m.conv1(m.bn1(x)) + m.bn2(m.conv2(x))), 1),
    "crossed": (Block(lambda m, x: m.bn1(m.conv2(m.bn2(m.conv1(x))))), 0),
    "result used twice": (Block(lambda m, x: m.bn1(y := m.conv1(x)) + y), 1),
    "one norm for two convolutions": (Block(lambda m, x: m.bn1(m.conv1(x)) + m.bn1(m.conv2(x))), 1),
    "convolution used twice": (Block(lambda m, x: m.bn1(m.conv1(x)) + m.conv1(x)), 1),
    "between them an activation": (Block(lambda m, x: m.bn1(m.conv1(x).relu())), 1),
    "weight used elsewhere": (
        Block(lambda m, x: m.bn1(m.conv1(x)) + nn.functional.conv2d(x, m.conv1.weight, padding=1)),
        1,
    ),
    "branches on values": (Block(lambda m, x: m.bn1(m.conv1(x)) if x.sum() < 1e9 else m.conv1(x)), 1),
    "a sequence": (Block(lambda m, x: m.body(x)), 0),
    "a sequence taken apart": (Block(lambda m, x: m.body(x) + m.body[0](x)), 1),
    "another way with an argument": (Tapped(), 1),
    "a sequence, branches on values": (Block(lambda m, x: m.body(x) if x.sum() < 1e9 else m.body[0](x)), 1),
    "no statistics": (Block(bn1=nn.BatchNorm2d(4, track_running_stats=False)), 1),
    "no parameters": (Block(bn1=nn.BatchNorm2d(4, affine=False)), 0),
}


@pytest.mark.parametrize("case", BLOCKS)
def test_only_what_is_computed_one_after_the_other_is_folded(case):
    model, left = BLOCKS[case]
    assert remaining(model) == left


class Keeping(Block):
    """Keeps what it computes first, as position grids are kept."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.bn1(self.conv1(x))
        if not hasattr(self, "grid"):
            self.grid = torch.ones_like(x)
        return x + self.grid


def test_what_a_forward_keeps_is_not_kept_while_it_is_recorded():
    model = spread(Keeping())
    prepared = prepare_inference(model)
    assert not hasattr(model, "grid") and not hasattr(prepared, "grid")
    x = torch.randn(1, 4, 5, 6)
    with torch.no_grad():
        close(prepared(x), model(x))


def test_hooked_shared_and_training_norms_are_not_folded():
    hooked, seen = Block(), []
    hooked.conv1.register_forward_hook(lambda m, i, o: seen.append(o))
    hooked.bn2.register_forward_hook(lambda m, i, o: seen.append(o))
    assert remaining(hooked) == 2 and len(seen) == 4
    norm = nn.BatchNorm2d(4)
    assert remaining(nn.Sequential(nn.Conv2d(4, 4, 1), norm, nn.Conv2d(4, 4, 1), norm)) == 1

    class KeepsTraining(nn.BatchNorm2d):
        def train(self, mode: bool = True) -> nn.Module:
            return super().train(True)

    prepared = prepare_inference(nn.Sequential(nn.Conv2d(4, 4, 1), KeepsTraining(4)))
    assert prepared[1].training


def test_scales_of_adapted_and_shared_layers_stay():
    """Branch scales are folded into plain layers of their own only."""
    tied = spread(InternImageClassifier(**TINY, layer_scale=0.5))
    blocks = tied.levels[2].blocks
    blocks[1].mlp.fc2.weight, blocks[1].dcn = blocks[0].mlp.fc2.weight, blocks[0].dcn  # a parameter, a module
    blocks[0].mlp.fc2.register_forward_hook(lambda m, i, o: o + 1)
    images = torch.randn(1, 3, 32, 32)
    before = copy.deepcopy(tied.state_dict())
    with torch.no_grad():
        close(prepare_inference(tied)(images), tied(images))
    assert all(torch.equal(before[key], value) for key, value in tied.state_dict().items())


@pytest.mark.parametrize("options", [dict(), dict(layer_scale=0.5), dict(norm_layer="BN")])
def test_models_made_in_inference_mode_are_prepared(options):
    images = torch.randn(1, 3, 32, 32)
    with torch.inference_mode():
        model = spread(InternImageClassifier(**TINY, **options))
        prepared = prepare_inference(model)
        close(prepared(images), model(images))
        close(prepared.to(torch.float64)(images.double()), model(images).double(), 1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("activation", [None, "gelu", "relu"])
@pytest.mark.parametrize("bias", [True, False])
def test_linear_is_pytorchs(dtype, activation, bias):
    layer = nn.Linear(24, 40, bias=bias).to(dtype)
    packed = PackedLinear(layer)
    act = {None: None, "gelu": nn.GELU(), "relu": nn.ReLU()}[activation]
    tolerance = {torch.float32: 1e-6, torch.float64: 1e-14, torch.bfloat16: 1e-2}[dtype]
    for x in (torch.randn(3, 5, 24, dtype=dtype), torch.randn(24, 6, dtype=dtype).t(), torch.randn(0, 24, dtype=dtype)):
        expected = layer(x) if act is None else act(layer(x))
        with torch.no_grad():
            for either in (layer, packed):
                torch.testing.assert_close(run_linear(either, x, act), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_linear_adds_a_residual(dtype):
    layer, x = nn.Linear(24, 40).to(dtype), torch.randn(3, 5, 24, dtype=dtype)
    for residual in (torch.randn(3, 5, 40, dtype=dtype), torch.randn(5, 3, 40, dtype=dtype).transpose(0, 1)):
        with torch.no_grad():
            expected = residual + layer(x)
            for either in (layer, PackedLinear(layer)):
                found = run_linear(either, x, residual=residual)
                close(found, expected, 1e-2 if dtype == torch.bfloat16 else 1e-6)
                promoted = run_linear(either, x, residual=residual.float()).dtype
                assert promoted == torch.promote_types(dtype, torch.float32)


@pytest.mark.parametrize("bias", [True, False])
def test_linear_learns(monkeypatch, bias):
    """Large products go through a convolution on some processors; here all of them do."""
    monkeypatch.setattr(linear, "_mkl_lags", lambda: True)
    monkeypatch.setattr(linear, "CONVOLUTION_PAYS", 100)
    layer, reference = nn.Linear(6, 4, bias=bias), nn.Linear(6, 4, bias=bias)
    reference.load_state_dict(layer.state_dict())
    for shape in ((5, 6), (2, 3, 5, 6), (1, 6), (40, 6)):
        x = torch.randn(shape, requires_grad=True)
        y, expected = run_linear(layer, x, nn.GELU()), nn.functional.gelu(reference(x))
        close(y.detach(), expected.detach())
        inputs, seed = (x, layer.weight), torch.randn_like(y)
        first = torch.autograd.grad(y, inputs, seed, create_graph=True)
        wanted = torch.autograd.grad(expected, (x, reference.weight), seed, create_graph=True)
        for a, b in zip(first, wanted):
            close(a.detach(), b.detach())
        (second,), (second_wanted,) = (torch.autograd.grad(g[0].square().sum(), x) for g in (first, wanted))
        close(second, second_wanted, 1e-4)


def test_packed_layers_notice_new_weights():
    for layer, x in ((nn.Linear(8, 16), torch.randn(3, 8)), (nn.Conv2d(8, 16, 3, stride=2), torch.randn(1, 8, 9, 9))):
        packed = (PackedLinear if isinstance(layer, nn.Linear) else PackedConv2d)(layer)
        with torch.no_grad():
            close(packed(x), layer(x))
            other = {key: torch.randn_like(value) for key, value in packed.state_dict().items()}
            packed.load_state_dict(other)
            layer.load_state_dict(other)
            close(packed(x), layer(x))


def test_packed_layers_stand_side_by_side():
    first, second = nn.Linear(8, 16), nn.Linear(8, 4)
    x = torch.randn(2, 3, 8)
    with torch.no_grad():
        close(PackedLinear(first, second)(x), torch.cat([first(x), second(x)], -1))


@pytest.mark.parametrize("prepared", [False, True])
def test_transforms_see_the_whole_function(prepared):
    """Forward-mode derivatives and vmap go through although nothing records gradients."""
    model = nn.Sequential(nn.Linear(6, 4), LayerNorm(4))
    spread(model)
    run = prepare_inference(model) if prepared else model
    x, direction = torch.randn(3, 6), torch.randn(3, 6)
    with torch.no_grad():
        _, slope = torch.func.jvp(run, (x,), (direction,))
        step = 1e-3 * direction
        close(slope, (run(x + step) - run(x - step)) / 2e-3, 1e-2)
        close(torch.vmap(run)(x), run(x), 1e-4)
