"""CB-InternImage's detector trains on both encoders; several views, and windows of large images, become one answer."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from drivestack.backbone.pretrain.detection.composite import ASSISTANT_WEIGHT
from drivestack.backbone.pretrain.detection.heads import dino, mask_rcnn
from drivestack.backbone.pretrain.mm_data import MMData
from drivestack.backbone.pretrain.openmmlab import MMModel
from drivestack.backbone.pretrain.reading import ReadImage
from drivestack.backbone.pretrain.segmentation.heads import upernet
from drivestack.core.errors import ConfigError

ENCODER = dict(channels=16, depths=(1, 1, 1, 1), groups=(1, 2, 4, 8))


def composite() -> MMModel:
    torch.manual_seed(0)
    small = dict(num_queries=20, dn_queries=4, layers=(1, 2), ffn_width=32, max_per_image=10)
    return MMModel(dict(type=dino, encoder=ENCODER, num_classes=3, composite=True, **small))


def test_a_fresh_detector_holds_no_memory_as_it_was_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """mmdet's DINO makes its level embeddings by torch.Tensor(shape)."""
    from mmdet.models import DINO

    make = DINO._init_layers

    def with_garbage(self: DINO) -> None:
        make(self)
        self.level_embed.data.fill_(float("nan"))

    monkeypatch.setattr(DINO, "_init_layers", with_garbage)
    model = composite()
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())


def batch(size: tuple[int, int] = (64, 96), count: int = 2) -> tuple[torch.Tensor, list]:
    from mmdet.structures import DetDataSample
    from mmengine.structures import InstanceData

    samples = []
    for i in range(count):
        sample = DetDataSample(metainfo=dict(img_shape=size, ori_shape=size, batch_input_shape=size, pad_shape=size))
        sample.set_metainfo(dict(scale_factor=(1.0, 1.0)))
        boxes = torch.tensor([[10.0, 10, 40, 40], [50, 20, 90, 60]])[: i + 1]
        sample.gt_instances = InstanceData(bboxes=boxes, labels=torch.arange(i + 1))
        samples.append(sample)
    return torch.rand(count, 3, *size), samples


def test_composite_detector_learns_from_both_halves_and_answers_with_the_leading_one() -> None:
    model = composite()
    images, samples = batch()
    losses = model.net.loss(images, samples)
    halves = {name for name in losses if not name.startswith("assistant.")}
    assert {f"assistant.{name}" for name in halves} | halves == set(losses)
    sum(value for name, value in losses.items() if "loss" in name).backward()
    assert all(p.grad is not None for name, p in model.encoder.assistant.named_parameters() if "levels.3" in name)
    assert model.encoder.lead.gamma1.grad is not None
    model.eval()
    with torch.no_grad():
        features = model.net.extract_feat(images)
        assert [len(level) for level in features] == [2] * 4
        leading = model.net.neck(tuple(model.net.backbone(images)[1]))
    assert all(torch.equal(a, b) for a, b in zip(features, leading))


def test_each_half_is_the_loss_of_its_own_features(monkeypatch: pytest.MonkeyPatch) -> None:
    """With both halves alike, the assisting losses are the leading ones times their weight."""
    model = composite()
    images, samples = batch()
    encode = model.net.backbone.forward
    monkeypatch.setattr(model.net.backbone, "forward", lambda x: (encode(x)[1], encode(x)[1]))
    monkeypatch.setattr(torch, "rand_like", lambda t: torch.full_like(t, 0.9))
    monkeypatch.setattr(torch, "randint_like", lambda t, *_, **__: torch.zeros_like(t))
    losses = model.net.loss(images, samples)
    for name, value in losses.items():
        if not name.startswith("assistant."):
            torch.testing.assert_close(losses[f"assistant.{name}"], value * ASSISTANT_WEIGHT, msg=name)


def test_windows_give_the_same_answer_as_the_whole_where_one_window_is_enough() -> None:
    small = dict(width=16, aux_width=16)
    whole = MMModel(dict(type=upernet, encoder=ENCODER, num_classes=3, **small), "segmentation").eval()
    test = dict(mode="slide", crop_size=(64, 64), stride=(32, 32))
    slide = MMModel(dict(type=upernet, encoder=ENCODER, num_classes=3, test=test, **small), "segmentation").eval()
    slide.load_state_dict(whole.state_dict())
    meta = [dict(img_shape=(64, 64), ori_shape=(64, 64))]
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(slide.net.inference(image, meta), whole.net.inference(image, meta))
        wide = torch.rand(1, 3, 64, 96)
        found = slide.net.inference(wide, [dict(img_shape=(64, 96), ori_shape=(64, 96))])
        parts = [whole.net.inference(wide[..., x : x + 64], meta) for x in (0, 32)]
    expected = torch.cat([parts[0][..., :32], (parts[0][..., 32:] + parts[1][..., :32]) / 2, parts[1][..., 32:]], -1)
    torch.testing.assert_close(found, expected)


def views(pack: str) -> list:
    scales = [[dict(type="Resize", scale=(size, size), keep_ratio=True) for size in (64, 96)]]
    flips = [[dict(type="RandomFlip", prob=prob, direction="horizontal") for prob in (0.0, 1.0)]]
    keys = ("img_path", "ori_shape", "img_shape", "scale_factor", "flip", "flip_direction")
    return [dict(type="TestTimeAug", transforms=[*scales, *flips, [dict(type=pack, meta_keys=keys)]])]


def test_views_of_a_segmentor_do_not_depend_on_the_side_of_the_image() -> None:
    net = dict(type=upernet, encoder=ENCODER, num_classes=3, width=16, aux_width=16)
    torch.manual_seed(0)
    model = MMModel(net, "segmentation", tta=dict(type="SegTTAModel")).eval()
    image = np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8)
    data = MMData([dict(type=ReadImage), *views("PackSegInputs")], task="segmentation", images=[image, image[:, ::-1]])
    with torch.no_grad():
        first, mirrored = (model.predict(data.collate([data[i]]))[0].segmentation for i in range(2))
    assert first.shape == (48, 64)
    assert (first == mirrored[:, ::-1]).mean() > 0.99


def test_views_of_a_detector() -> None:
    torch.manual_seed(0)
    net = dict(type=mask_rcnn, encoder=ENCODER, num_classes=3, width=16, fc_width=16)
    with pytest.raises(ConfigError, match="masks"):
        MMModel(net, tta=dict(type="DetTTAModel", tta_cfg=dict(nms=dict(type="nms", iou_threshold=0.5), max_per_img=9)))
    small = dict(num_queries=20, dn_queries=4, layers=(1, 2), ffn_width=32, max_per_image=10)
    tta = dict(type="DetTTAModel", tta_cfg=dict(nms=dict(type="nms", iou_threshold=0.5), max_per_img=9))
    model = MMModel(dict(type=dino, encoder=ENCODER, num_classes=3, **small), tta=tta).eval()
    image = np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8)
    data = MMData([dict(type=ReadImage), *views("PackDetInputs")], images=[image])
    with torch.no_grad():
        found = model.predict(data.collate([data[0]]))[0].instances
    assert 0 < len(found.scores) <= 9
    assert (found.boxes_xyxy_px <= [64, 48, 64, 48]).all()
