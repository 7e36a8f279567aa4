"""Outputs, losses and gradients of the InternImage release's own detectors and segmentors, in our models.

tests/reference/openmmlab/INDEX.json says how the numbers were made; two of its six cases lie beside it, the others in
shared/reference/openmmlab where that folder is. Weights have upstream's names: they take the way of a released file.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from drivestack.backbone import load_checkpoint
from drivestack.backbone.pretrain.detection.heads import cascade_mask_rcnn, dino, mask_rcnn
from drivestack.backbone.pretrain.openmmlab import MMModel, toolbox
from drivestack.backbone.pretrain.segmentation.heads import mask2former, segformer, upernet

CASES = {
    "mask_rcnn_t": dict(type=mask_rcnn, width=16, fc_width=32, mask_convs=2, anchor_scale=4),
    "cascade_mask_rcnn_l": dict(
        type=cascade_mask_rcnn, width=16, fc_width=32, mask_convs=2, shared_convs=2, anchor_scale=4
    ),
    "dino_t": dict(
        type=dino,
        num_queries=30,
        dn_queries=12,
        max_per_image=20,
        layers=(2, 3),
        width=32,
        ffn_width=48,
        norm_groups=8,
    ),
    "upernet_t": dict(type=upernet, width=16, aux_width=16, dropout=0.0),
    "segformer_l": dict(type=segformer, width=16, dropout=0.0),
    "mask2former_h": dict(
        type=mask2former,
        width=32,
        num_heads=8,
        ffn_width=48,
        pixel_ffn_width=48,
        num_queries=30,
        layers=(2, 3),
        norm_groups=8,
        num_points=128,
    ),
}
TESTED = ("data_preprocessor", "train_cfg", "test_cfg")  # thresholds and numbers of samples, shrunk in the reference
TWO_STAGE = ("mask_rcnn_t", "cascade_mask_rcnn_l")


@dataclass
class Case:
    name: str
    settings: dict[str, Any]
    arrays: dict[str, np.ndarray]
    model: MMModel
    metas: list[dict[str, Any]]

    @property
    def net(self) -> Any:
        return self.model.net

    @property
    def images(self) -> torch.Tensor:
        return torch.from_numpy(self.arrays["input"])

    def samples(self) -> list[Any]:
        """Data samples without labels, of mmdet or mmseg."""
        if self.model.task == "segmentation":
            from mmseg.structures import SegDataSample as Sample
        else:
            from mmdet.structures import DetDataSample as Sample
        return [Sample(metainfo=dict(meta)) for meta in self.metas]

    def close(self, key: str, mine: Any, atol: float, rtol: float = 0.0) -> None:
        theirs = torch.from_numpy(np.asarray(self.arrays[key]))
        mine = torch.as_tensor(mine).detach().reshape(theirs.shape).to(theirs.dtype)
        torch.testing.assert_close(mine, theirs, atol=atol, rtol=rtol, msg=lambda text: f"{key}: {text}")

    def almost_all_equal(self, key: str, mine: np.ndarray, theirs: np.ndarray, of: int) -> None:
        different = int((mine != theirs).sum())
        assert different <= 0.001 * of, f"{key}: {different} of {of} pixels"


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest, reference_dir: Path, repository_root: Path) -> Case:
    name = request.param
    folder = reference_dir / "openmmlab"
    index = json.loads((folder / "INDEX.json").read_text())
    settings = index["cases"][name]
    shared = repository_root.parent / "shared" / "reference" / "openmmlab"
    if not (folder / settings["weights"]).is_file():
        folder = shared
    if not (folder / settings["weights"]).is_file():
        pytest.skip(f"{name} lies in shared/reference/openmmlab only")
    model = MMModel(
        functools.partial(_net, name, settings)(),
        "segmentation" if "eval.argmax" in settings["stored"] else "instances",
    )
    report = load_checkpoint(model, folder / settings["weights"])
    assert report.loaded == settings["num_tensors"]
    metas = [_meta(image, settings["stored"]["input"][1][2:]) for image in settings["images"]]
    return Case(name, settings, dict(np.load(folder / settings["arrays"])), model, metas)


def _net(name: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Our config of the small model, with the reference's thresholds and its lack of normalisation."""
    theirs = settings["config_mmdet3_mmseg1"]
    encoder = {key: value for key, value in theirs["backbone"].items() if key not in ("type", "out_indices")}
    options = dict(CASES[name])
    build = options.pop("type")

    def small(**_: Any) -> dict[str, Any]:
        with toolbox("instances"):
            config = build(encoder, settings["num_classes"], **options)
        return {**config, **{key: theirs[key] for key in TESTED}}

    return dict(type=small)


def _meta(image: dict[str, Any], size: list[int]) -> dict[str, Any]:
    return dict(
        img_shape=tuple(image["img_shape"]),
        ori_shape=tuple(image["ori_shape"]),
        pad_shape=tuple(size),
        batch_input_shape=tuple(size),
        scale_factor=tuple(image["scale_factor_wh"]),
    )


@pytest.fixture(autouse=True)
def narrow_dino(monkeypatch: pytest.MonkeyPatch) -> None:
    """mmdet 3.3's DINO decoder encodes boxes for 256 channels, whatever its width; the reference's are 32 wide."""
    import mmdet.models.layers.transformer.dino_layers as layers

    encode = layers.coordinate_to_encoding
    monkeypatch.setattr(layers, "coordinate_to_encoding", functools.partial(encode, num_feats=16))


def _bits(arrays: dict[str, np.ndarray], what: str, i: int) -> np.ndarray:
    shape = arrays[f"{what}.masks_shape.{i}"]
    return np.unpackbits(arrays[f"{what}.masks_packed.{i}"])[: shape.prod()].reshape(shape)


def test_outputs(case: Case) -> None:
    case.model.eval()
    with torch.no_grad():
        for i, level in enumerate(case.net.backbone(case.images)):
            case.close(f"eval.backbone.{i}", level[:1], 1e-4)
        if case.model.task == "segmentation":
            _check_segmentation(case)
        else:
            _check_detection(case)


def _check_detection(case: Case) -> None:
    net, arrays = case.net, case.arrays
    features = net.extract_feat(case.images)
    if case.name in TWO_STAGE:
        for i, found in enumerate(net.rpn_head.predict(features, case.samples(), rescale=False)):
            case.close(f"eval.proposals.{i}", torch.cat([found.bboxes, found.scores[:, None]], 1), 2e-3)
    else:
        inputs = net.forward_transformer(features, case.samples())
        logits, boxes = net.bbox_head(inputs["hidden_states"], inputs["references"])
        case.close("eval.all_cls_scores", logits, 3e-5)
        case.close("eval.all_bbox_preds", boxes, 3e-6)
    of_boxes, of_scores = (1e-3, 1e-4) if case.name in TWO_STAGE else (3e-4, 1e-5)
    for what, rescale in (("eval", True), ("eval.norescale", False)):
        if f"{what}.boxes.0" not in arrays:
            continue
        for i, sample in enumerate(net.predict(case.images, case.samples(), rescale=rescale)):
            found = sample.pred_instances
            order = torch.argsort(-found.scores, stable=True)
            case.close(f"{what}.boxes.{i}", found.bboxes[order], of_boxes)
            case.close(f"{what}.scores.{i}", found.scores[order], of_scores)
            case.close(f"{what}.labels.{i}", found.labels[order], 0)
            if case.name in TWO_STAGE:
                theirs = _bits(arrays, what, i)
                mine = found.masks[order].numpy()
                case.almost_all_equal(f"{what}.masks.{i}", mine, theirs, int(theirs.sum()))


def _check_segmentation(case: Case) -> None:
    net, head = case.net, case.net.decode_head
    features = net.extract_feat(case.images)
    if case.name == "mask2former_h":
        class_logits, mask_logits = head(features, case.samples())
        case.close("eval.cls_scores", torch.stack(class_logits), 3e-5)
        case.close("eval.mask_logits", torch.stack(mask_logits[-1:]), 1e-3)
        case.close("eval.head_logits", head.class_scores(features, case.metas), 1e-4)
    else:
        case.close("eval.head_logits", head(features), 1e-4)
    logits = net.encode_decode(case.images, case.metas)
    case.close("eval.logits.0", logits[:1], 1e-4)
    resized = F.interpolate(logits, size=case.metas[0]["ori_shape"], mode="bilinear", align_corners=False)
    for key, scores in (("eval.argmax", logits), ("eval.argmax_original_size", resized)):
        theirs = case.arrays[key]
        case.almost_all_equal(key, scores.argmax(1).numpy(), theirs, theirs.size)


@contextmanager
def _stored_draws(arrays: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Random numbers of DINO's noise and Mask2Former's points are the reference's; nothing else may draw."""
    names = ("train.dn_p", "train.dn_new_label", "train.dn_sign", "train.dn_part")
    draws = [torch.from_numpy(arrays[name]) for name in names if name in arrays]

    def points(*size: Any, **_: Any) -> torch.Tensor:
        n, m, _two = size[0] if isinstance(size[0], (tuple, list)) else size
        return torch.from_numpy(arrays["train.points"])[:m][None].repeat(n, 1, 1)

    def stored(*_: Any, **__: Any) -> torch.Tensor:
        return draws.pop(0).clone()

    def refused(*_: Any, **__: Any) -> None:
        raise AssertionError("a random order is drawn")

    with monkeypatch.context() as patch:
        for name, function in (
            ("rand", points),
            ("rand_like", stored),
            ("randint_like", stored),
            ("randperm", refused),
        ):
            patch.setattr(torch, name, function)
        yield
    assert not draws


def _labelled(case: Case) -> list[Any]:
    from mmdet.structures.mask import BitmapMasks
    from mmengine.structures import InstanceData, PixelData

    samples = case.samples()
    height, width = case.images.shape[2:]
    for i, sample in enumerate(samples):
        if case.model.task == "segmentation":
            labels = torch.from_numpy(case.arrays["target.semantic"][i].astype(np.int64))
            sample.gt_sem_seg = PixelData(data=labels[None])
            continue
        boxes, labels = (torch.from_numpy(case.arrays[f"target.{part}.{i}"]) for part in ("boxes", "labels"))
        sample.gt_instances = InstanceData(bboxes=boxes, labels=labels)
        if case.name in TWO_STAGE:
            sample.gt_instances.masks = BitmapMasks(_bits(case.arrays, "target", i), height, width)
    return samples


def test_losses_and_gradients(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    net = case.net
    net.train()
    net.zero_grad()
    with _stored_draws(case.arrays, monkeypatch):
        losses = net.loss(case.images, _labelled(case))
    losses = {name.replace("enc_loss", "interm_loss"): value for name, value in losses.items()}  # upstream's names
    terms = {
        name: torch.stack([part.sum() for part in value]) if isinstance(value, (list, tuple)) else value
        for name, value in losses.items()
    }
    total = sum(
        value.sum() if value.ndim and value.numel() > 1 else value.mean()
        for name, value in terms.items()
        if "loss" in name
    )
    total.backward()
    terms["TOTAL"] = total
    assert set(terms) == {key.removeprefix("loss/") for key in case.arrays if key.startswith("loss/")}
    for name, value in terms.items():
        case.close(f"loss/{name}", value, 1e-6, 2e-5)
    _check_gradients(case)
    buffers = dict(net.named_buffers())
    for key in case.settings["buffers_after"]:
        case.close(f"buffer_after/{key}", buffers[_own_name(case, key)], 2e-5)


def _own_name(case: Case, key: str) -> str:
    for pattern, replacement in case.settings["renaming_upstream_to_mmdet3"]:
        key = re.sub(pattern, replacement, key)
    return key


def _check_gradients(case: Case) -> None:
    relative = float(re.search(r"R = (\S+)", case.settings["tolerance"]["grad.norms"])[1])
    norms = {
        name: 0.0 if parameter.grad is None else parameter.grad.double().norm().item()
        for name, parameter in case.net.named_parameters()
    }
    theirs = {_own_name(case, str(n)): v for n, v in zip(case.arrays["grad.names"], case.arrays["grad.norms"])}
    assert norms.keys() == theirs.keys()
    floor = 1e-4 * max(theirs.values())
    off = {name: abs(norms[name] - norm) / max(norm, floor) for name, norm in theirs.items()}
    worst = max(off, key=off.__getitem__)
    assert off[worst] <= relative, f"{worst}: {norms[worst]} instead of {theirs[worst]}"
