"""Whole models under torch.compile and torch.export: one graph, the same numbers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from torch import Tensor, nn

import drivestack
from drivestack.backbone import InternImageClassifier, internimage, prepare_inference
from drivestack.core.registries import MODELS
from support.toy_rig import build, clip, scene


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch.manual_seed(0)
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def close(found: Tensor, expected: Tensor) -> None:
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


def one_graph(function, backend="eager"):
    """Compiled; a graph break is an error."""
    return torch.compile(function, fullgraph=True, backend=backend)


def test_internimage_t_is_one_graph():
    model = internimage("T", "classification", num_classes=10).eval()
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        close(one_graph(model)(images), model(images))


def test_prepared_encoder_is_one_graph():
    model = InternImageClassifier(channels=16, depths=(1, 1, 1, 1), groups=(1, 2, 4, 8), num_classes=4).eval()
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        close(one_graph(prepare_inference(model))(images), model(images))


def test_training_step_of_an_encoder_is_one_graph():
    model = InternImageClassifier(channels=16, depths=(1, 1, 1, 1), groups=(1, 2, 4, 8), num_classes=4).train()
    images = torch.randn(2, 3, 64, 64)
    model(images).square().sum().backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    one_graph(model, "aot_eager")(images).square().sum().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-3, atol=1e-4)


def test_exported_encoder_runs_alone():
    model = InternImageClassifier(channels=16, depths=(1, 1, 1, 1), groups=(1, 2, 4, 8), num_classes=4).eval()
    images = torch.randn(2, 3, 64, 96)
    program = torch.export.export(model, (images,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    for batch in (images, images[:1], torch.cat([images] * 2)):
        close(program.module()(batch), model(batch))


def test_tiny_bev_model_is_one_graph():
    """The published tiny configuration, images to boxes; on small images to keep it quick."""
    config = Config.fromfile(Path(drivestack.__file__).parent / "configs/boxes/bevformerv2_tiny_synthetic.py")
    torch.manual_seed(0)
    model = MODELS.build(config.model).eval()
    frames, images = scene(1, num_cameras=6)
    batch = clip(frames, images, 0, (0,))

    def detect(batch):
        levels, features = model.encode_clip(batch)
        queries = model.boxes(features, levels, batch).queries
        return features.bev, queries.cls_logits, queries.box_codes

    with torch.no_grad():
        found, expected = one_graph(detect)(batch), detect(batch)
    close(found[0], expected[0])
    # whatever their order: proposals of nearly the same score may trade places
    queries, wanted = (torch.cat(outputs[1:], -1) for outputs in (found, expected))  # [layers, 1, Q, classes + 10]
    apart = torch.cdist(queries, wanted, compute_mode="donot_use_mm_for_euclid_dist")
    for nearest in (apart.amin(-1), apart.amin(-2)):
        assert nearest.max() <= 1e-5 * wanted.abs().max()


@pytest.mark.parametrize("missing", [False, True])
def test_encoding_with_history_is_one_graph(missing):
    """The graph does not depend on which frames there are."""
    model = build((-1, 0)).eval()
    frames, images = scene(2)
    batch = clip(frames, images, 0 if missing else 1, (-1, 0))
    assert bool(batch.frame_valid.all()) != missing
    encode = lambda batch: model.encode_clip(batch)[1].bev
    with torch.no_grad():
        close(one_graph(encode)(batch), encode(batch))


def test_mirrored_images_in_one_graph():
    model = build().eval()
    frames, images = scene(1)
    batch = replace(clip(frames, images, 0, (0,)), image_flipped=torch.ones(1, dtype=torch.bool))
    encode = lambda batch: model.encode_clip(batch)[1].bev
    with torch.no_grad():
        close(one_graph(encode)(batch), encode(batch))


class Encode(nn.Module):
    """Images and their matrices to the BEV map, the rest of the batch fixed: what torch.export takes."""

    def __init__(self, model, batch):
        super().__init__()
        self.model, self.batch = model, batch

    def forward(self, images: Tensor, image_from_bev: Tensor) -> Tensor:
        batch = replace(self.batch, images=images, image_from_bev=image_from_bev)
        return self.model.encode_clip(batch)[1].bev


def test_exported_bev_encoder_runs_alone():
    model = build().eval()
    frames, images = scene(2)
    batch, other = (clip(frames, images, i, (0,)) for i in range(2))
    encode = Encode(model, batch)
    with torch.no_grad():
        program = torch.export.export(encode, (batch.images, batch.image_from_bev), strict=False)
        alone = program.module()
        close(alone(other.images, other.image_from_bev), encode(other.images, other.image_from_bev))
