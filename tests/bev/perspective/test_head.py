"""The perspective head against upstream: outputs, losses, gradients, detections; and what upstream does not have."""

import json
import math

import pytest
import torch

from drivestack.bev.perspective.head import NuscenesDD3D
from drivestack.core.labels import MonoTargets

MAPS = {
    "logits": "logits",
    "box2d_reg": "box2d",
    "centerness": "centerness",
    "quat": "quat",
    "proj_ctr": "proj_ctr",
    "depth": "depth",
    "size": "size",
    "conf": "conf",
    "attr_logits": "attr",
    "speed": "speed",
}
"""Upstream's name of an output: ours."""


def empty_targets() -> MonoTargets:
    zeros = torch.zeros
    return MonoTargets(zeros(0, 4), zeros(0).long(), zeros(0, 10), zeros(0).long(), zeros(0))


@pytest.fixture
def ref(case):
    return case("dd3d_head_train")


@pytest.fixture
def head(ref):
    model = NuscenesDD3D(in_channels=16, num_convs=2)
    model.load_state_dict(ref.weights("dd3d_head_train"))
    return model


@pytest.fixture
def feats(ref):
    return [ref[f"in.feats.{i}"] for i in range(5)]


@pytest.fixture
def targets(ref):
    return [
        MonoTargets(
            ref[f"in.gt{i}.gt_boxes"],
            ref[f"in.gt{i}.gt_classes"],
            ref[f"in.bbox3d_vec{i}"],
            ref[f"in.gt{i}.attributes"],
            ref[f"in.gt{i}.speeds"],
        )
        for i in range(2)
    ]


def test_outputs_agree_with_upstream(ref, head, feats):
    """In float64, the same on every processor: the recorded float32 numbers are themselves 2.1e-5 from it (depths)."""
    outs = head.double()([level.double() for level in feats])
    first = 0
    for level, (h, w) in enumerate(outs.shapes):
        for theirs, ours in MAPS.items():
            if f"out.{theirs}.{level}" in ref.arrays:
                expected = ref[f"out.{theirs}.{level}"].flatten(2)
                actual = outs.maps[ours][..., first : first + h * w]
                torch.testing.assert_close(actual, expected, rtol=1e-6, atol=2.5e-5, check_dtype=False)
        first += h * w


def test_losses_gradients_and_statistics_agree_with_upstream(ref, head, feats, targets):
    leaves = [level.requires_grad_() for level in feats]
    losses = head.loss(head(leaves), ref["in.intrinsics"], targets)
    assert len(losses) == 10
    for key, value in losses.items():
        assert value.item() == pytest.approx(ref[f"out.loss.{key}"].item(), rel=1e-5), key
    sum(losses.values()).backward()
    actual = {f"grad.feat.{i}": level.grad for i, level in enumerate(leaves)}
    actual |= {f"grad.param.{key}": parameter.grad for key, parameter in head.named_parameters()}
    expected = {key: value for key, value in ref.arrays.items() if key.startswith(("grad.feat", "grad.param."))}
    assert len(expected) > 80
    for key, value in expected.items():
        assert (actual[key] - value).abs().max() <= 1e-4 * value.abs().max() + 1e-6, key
    state = head.state_dict()
    for key, value in ref.arrays.items():
        if key.startswith("out.bn_after."):
            torch.testing.assert_close(state[key.removeprefix("out.bn_after.")], value, rtol=1e-5, atol=1e-6)


def test_images_without_objects_agree_with_upstream(ref, head, feats, targets, reference_dir):
    expected = json.loads((reference_dir / "bev" / "dd3d_edge_cases.json").read_text())
    cases = {
        "empty": ([level[:1] for level in feats], ref["in.intrinsics"][:1], [empty_targets()]),
        "mixed": (feats, ref["in.intrinsics"], [targets[0], empty_targets()]),
    }
    for name, (levels, intrinsics, labels) in cases.items():
        losses = head.loss(head(levels), intrinsics, labels)
        assert set(losses) == set(expected[name])
        for key, value in losses.items():
            assert value.item() == pytest.approx(expected[name][key], rel=1e-5), (name, key)
        head.zero_grad()
        sum(losses.values()).backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in head.parameters()), name


def test_unlabelled_images_are_left_out(ref, head, feats, targets):
    """As released: an image without labels counts neither in the losses nor in the batch statistics."""
    both = [torch.cat([level, torch.randn(1, *level.shape[1:])]) for level in feats]
    intrinsics = torch.cat([ref["in.intrinsics"], torch.eye(3)[None]])
    losses = head.loss(head(both, [True, True, False]), intrinsics, [*targets, None])
    for key, value in losses.items():
        assert value.item() == pytest.approx(ref[f"out.loss.{key}"].item(), rel=1e-5), key
    head.zero_grad()
    none = head.loss(head(both, [False] * 3), intrinsics, [None] * 3)
    assert set(none) == set(losses) and all(value == 0 for value in none.values())
    sum(none.values()).backward()
    assert all(p.grad is not None for p in head.parameters()), "every parameter stays in the graph for DDP"


@pytest.mark.parametrize("image", [0, 1])
def test_detections_agree_with_upstream(case, ref, head, feats, image):
    """The recorded run suppressed boxes without area by 0/0; ours drops them at once, so they are left out here."""
    found = case("dd3d_inference_thr_cls")
    expected = {key.split(".")[-1]: v for key, v in found.arrays.items() if key.startswith(f"out.post_nms.{image}.")}
    solid = (expected["boxes"][:, 2:] > expected["boxes"][:, :2]).all(1)
    expected = {key: value[solid] for key, value in expected.items()}
    head.eval()
    head.score_threshold, head.pre_nms_top, head.max_per_image = 0.3, 40, int(solid.sum())
    actual = head.detect(head(feats), ref["in.intrinsics"])[image]
    pairs = {
        "boxes": actual.boxes_xyxy_px,
        "scores": actual.scores,
        "scores_3d": actual.scores_3d,
        "classes": actual.labels,
        "proj_ctr": actual.boxes.proj_ctr,
        "depth": actual.boxes.depth,
        "size": actual.boxes.size_wlh,
        "tvec": actual.boxes.centre,
        "corners": actual.boxes.corners,
        "attributes": actual.attributes,
        "speeds": actual.speeds,
    }
    for key, value in pairs.items():
        torch.testing.assert_close(value, expected[key], rtol=1e-5, atol=1e-4, msg=lambda m, key=key: f"{key}: {m}")


def test_candidates_agree_with_upstream(case, ref, head, feats):
    found = case("dd3d_inference_thr_cls")
    scores, boxes = found["out.pre_nms.0.scores_3d"], found["out.pre_nms.0.boxes"]
    solid = (boxes[:, 2:] > boxes[:, :2]).all(1)
    head.eval()
    head.score_threshold, head.pre_nms_top, head.max_per_image, head.nms_iou = 0.3, 40, 10**6, 1.0
    actual = head.detect(head(feats), ref["in.intrinsics"])[0].scores_3d
    torch.testing.assert_close(actual, scores[solid].sort(descending=True).values)


def test_threshold_may_count_centerness(ref, head, feats):
    head.eval()
    head.score_threshold, head.max_per_image = 0.3, 10**6
    intrinsics = ref["in.intrinsics"]
    plain = head.detect(head(feats), intrinsics)[0]
    head.threshold_with_centerness = True
    strict = head.detect(head(feats), intrinsics)[0]
    assert strict.scores.min() > math.sqrt(0.3) > plain.scores.min()


def test_nothing_seen_is_an_empty_list(ref, head, feats):
    head.eval()
    head.score_threshold = 1.0
    poses = torch.eye(4).repeat(1, 2, 1, 1)
    boxes, scores, labels = head.detect_in_bev(head(feats), ref["in.intrinsics"][None], poses)
    assert boxes[0].shape == (0, 9) and scores[0].shape == labels[0].shape == (0,)


def test_views_come_together_in_the_lidar_frame(ref, head, feats):
    """Two cameras of one sample or of two: the same boxes, each through its own pose."""
    head.eval()
    outs, intrinsics = head(feats), ref["in.intrinsics"]
    poses = torch.eye(4).repeat(2, 1, 1)
    poses[0, :3, :3] = torch.tensor([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]])  # camera z forward is LIDAR x
    poses[1, :3, :3] = poses[0, :3, :3]
    poses[1, 2, 3] = 1.5
    joint = head.detect_in_bev(outs, intrinsics[None], poses[None])
    apart = head.detect_in_bev(outs, intrinsics[:, None], poses[:, None])
    assert len(joint[0]) == 1 and len(apart[0]) == 2
    torch.testing.assert_close(joint[0][0], torch.cat(apart[0]))
    seen = head.detect(outs, intrinsics)[1]
    depth, right, down = seen.boxes.centre[:, 2], seen.boxes.centre[:, 0], seen.boxes.centre[:, 1]
    torch.testing.assert_close(apart[0][1][:, :3], torch.stack([depth, -right, 1.5 - down], 1), rtol=1e-5, atol=1e-5)
    speed = apart[0][1][:, 7:].norm(dim=1)
    torch.testing.assert_close(speed, seen.speeds, rtol=1e-5, atol=1e-6)


# ---- construction ----------------------------------------------------------------------------------------------------


def test_keys_and_initial_statistics_are_the_published(reference_dir):
    stats = json.loads((reference_dir / "bev" / "init_stats_heads.json").read_text())["heads"]
    stats = {k.removeprefix("fcos3d_bbox_head."): v for k, v in stats.items() if k.startswith("fcos3d_bbox_head.")}
    torch.manual_seed(0)
    model = NuscenesDD3D()
    state = model.state_dict()
    assert sum(p.numel() for p in model.parameters()) == 7405973
    for key, (shape, mean, std, low, high) in stats.items():
        value = state[key].float()
        assert list(value.shape) == shape, key
        if value.numel() < 2000 or std == 0:
            assert value.max() == pytest.approx(high, rel=0.05, abs=1e-6), key
            assert value.min() == pytest.approx(low, rel=0.05, abs=1e-6), key
        else:
            assert abs(value.mean().item() - mean) <= 9 * std / math.sqrt(value.numel()), key
            assert value.std().item() == pytest.approx(std, rel=0.03), key
    norms = {key for key in state if ".norm." in key}
    assert len(norms) == 3 * 4 * 5 * 5
    assert {key for key in state if key not in norms} == {key for key in stats if ".norm." not in key}


def test_prior_starts_from_small_losses(feats, ref, targets):
    """docs/quirks.md#no-focal-prior: with a prior the class loss starts two orders of magnitude lower."""
    torch.manual_seed(0)
    released = NuscenesDD3D(in_channels=16, num_convs=2)
    torch.manual_seed(0)
    ours = NuscenesDD3D(in_channels=16, num_convs=2, cls_prior=0.01)
    a, b = (m.loss(m(feats), ref["in.intrinsics"], targets)["loss_cls"] for m in (released, ours))
    assert a > 10 and b < 3


def test_fewer_levels_other_classes_and_no_3d(targets, ref):
    sizes = [(1.9, 4.6, 1.7), (0.7, 0.7, 1.8)]
    model = NuscenesDD3D(
        2, in_channels=8, channels=6, num_convs=1, strides=(8, 16, 32), canonical_sizes_wlh=sizes, box3d_on=False
    )
    assert model.sizes_of_interest[-1] == (128, 1e8)
    levels = [torch.randn(2, 8, 16 // s, 32 // s) for s in (1, 2, 4)]
    for target in targets:
        target.labels = target.labels % 2
    losses = model.loss(model(levels), ref["in.intrinsics"], targets)
    assert set(losses) == {f"loss_{n}" for n in ("cls", "box2d_reg", "centerness", "attr", "speed")}
    assert all(value.isfinite() for value in losses.values())
    assert model.detect(model.eval()(levels), ref["in.intrinsics"])[0].boxes is None
    with pytest.raises(ValueError, match="3 levels"):
        model(levels[:2])
    with pytest.raises(ValueError, match=r"6 levels .* got 5"):
        NuscenesDD3D(strides=(4, 8, 16, 32, 64, 128))
    with pytest.raises(ValueError, match="canonical"):
        NuscenesDD3D(2)


def test_it_learns_to_find_the_objects(ref, feats, targets):
    """Overfits two images: boxes of the labels come back through detection."""
    torch.manual_seed(0)
    model = NuscenesDD3D(in_channels=16, num_convs=2, cls_prior=0.01)
    optimiser = torch.optim.Adam(model.parameters(), 5e-3)
    for _ in range(80):
        losses = model.loss(model(feats), ref["in.intrinsics"], targets)
        optimiser.zero_grad()
        sum(losses.values()).backward()
        optimiser.step()
    found = model.detect(model.train()(feats), ref["in.intrinsics"])[0]
    boxes = targets[0].boxes_xyxy_px
    sizes = (boxes[:, 2:] - boxes[:, :2]).amax(1)
    gap = torch.cdist(found.boxes_xyxy_px[found.scores > 0.3], boxes).amin(0)
    assert (gap < sizes).sum() >= 3, gap
