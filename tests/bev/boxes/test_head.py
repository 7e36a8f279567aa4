"""The box head on its BEV map: forward, losses and gradients as upstream, groups, padding queries, odd labels."""

import json
import math

import pytest
import torch

from drivestack.bev.boxes.box_coder import encode_boxes
from drivestack.bev.boxes.head import BoxHead, ExtraQueries, QueryOutputs
from drivestack.bev.map.bev_map import BevMap
from drivestack.core.errors import PredictionError
from drivestack.core.weights.published_keys import published_name
from drivestack.geometry import boxes_from_legacy
from support.maps import tokens_of
from support.published_head import PublishedHead

LAYERS = dict(embed_dims=32, num_layers=2, num_heads=4, ffn_dims=64, dropout=0.0)


def tiny_head(num_groups=1, **settings):
    torch.manual_seed(0)
    return BoxHead(num_query=12, num_groups=num_groups, max_num=20, **LAYERS, **settings)


@pytest.mark.parametrize(("name", "groups"), [("head_v2_t1base_train", 1), ("head_v2_group3_train", 3)])
def test_training_agrees_with_upstream(case, name, groups):
    ref = case(name)
    head = tiny_head(groups)
    model = PublishedHead(BevMap(bev_size=(10, 10), num_cams=3, num_levels=2, **LAYERS), head)
    model.load_state_dict(ref.weights(name))
    feats = [ref[f"in.feats.{i}"].requires_grad_() for i in range(2)]
    sizes = torch.tensor([96, 160]).expand(1, 3, 2)
    bev = model.bev_map.encode_frame(feats, ref["in.lidar2img"].float()[None], sizes, (96, 160))
    torch.testing.assert_close(tokens_of(bev).transpose(0, 1), ref["out.bev_embed"], rtol=0, atol=1e-5)
    outs = head.decode(bev)
    torch.testing.assert_close(outs.cls_logits, ref["out.all_cls_scores"], rtol=0, atol=1e-5)
    # metres: 1e-5 of the range is 1e-3 m
    torch.testing.assert_close(outs.box_codes, ref["out.all_bbox_preds"], rtol=0, atol=1e-4)

    losses = head.loss(outs, [boxes_from_legacy(ref["in.gt_boxes_lidar_bottom"])], [ref["in.gt_labels"]])
    assert set(losses) == {"loss_cls", "loss_bbox", "d0.loss_cls", "d0.loss_bbox"}
    for key, value in losses.items():
        assert value.item() == pytest.approx(ref[f"out.loss.{key}"].item(), rel=1e-5)

    sum(losses.values()).backward()
    actual = {f"grad.feat{i}": level.grad for i, level in enumerate(feats)}
    actual |= {f"grad.param.{published_name(model, key)}": p.grad for key, p in model.named_parameters()}
    expected = {key: value for key, value in ref.arrays.items() if key.startswith(("grad.feat", "grad.param."))}
    assert len(expected) > 20 and set(expected) <= set(actual)
    for key, value in expected.items():
        assert (actual[key] - value).abs().max() <= 1e-4 * value.abs().max(), key


def test_detections_agree_with_upstream(case):
    ref, expected = case("head_v2_t1base_train"), case("head_v2_t1base_eval")
    head = tiny_head().eval()
    outs = QueryOutputs(ref["out.all_cls_scores"], ref["out.all_bbox_preds"], groups=1)
    found = head.predict(outs, ["token"])[0]
    assert found.token == "token"
    boxes = boxes_from_legacy(expected["out.dets.0.boxes"])
    torch.testing.assert_close(torch.from_numpy(found.boxes), boxes, rtol=0, atol=1e-3)
    torch.testing.assert_close(torch.from_numpy(found.scores), expected["out.dets.0.scores"], rtol=0, atol=1e-5)
    assert found.labels.tolist() == expected["out.dets.0.labels"].tolist()


# ---- synthetic outputs -----------------------------------------------------------------------------------------------


@pytest.fixture
def labels():
    torch.manual_seed(1)
    boxes = torch.rand(4, 9) * 4 + 0.5
    return boxes, torch.tensor([0, 3, 3, 9])


def random_outputs(groups=1, queries=12, batch=2, layers=2):
    torch.manual_seed(2)
    shape = (layers, batch, groups * queries)
    return QueryOutputs(
        torch.randn(*shape, 10).requires_grad_(), torch.randn(*shape, 10).requires_grad_(), groups=groups
    )


def total(losses):
    return sum(losses.values())


def test_equal_groups_cost_as_much_as_one(labels):
    one = random_outputs()
    three = QueryOutputs(one.cls_logits.repeat(1, 1, 3, 1), one.box_codes.repeat(1, 1, 3, 1), groups=3)
    gt = [labels[0]] * 2, [labels[1]] * 2
    torch.testing.assert_close(total(tiny_head().loss(one, *gt)), total(tiny_head(3).loss(three, *gt)))


def test_groups_are_averaged(labels):
    head, outs = tiny_head(3), random_outputs(groups=3)
    gt = [labels[0]] * 2, [labels[1]] * 2
    alone = [
        total(head.loss(QueryOutputs(outs.cls_logits[:, :, s], outs.box_codes[:, :, s], groups=1), *gt))
        for s in (slice(0, 12), slice(12, 24), slice(24, 36))
    ]
    torch.testing.assert_close(total(head.loss(outs, *gt)), sum(alone) / 3)


def test_only_the_first_group_is_asked_at_test_time(labels):
    head = tiny_head(3).eval()
    outs = head.decode(torch.randn(1, 32, 10, 10))
    assert outs.cls_logits.shape == (2, 1, 12, 10) and outs.groups == 1
    train = random_outputs(groups=3, batch=1)
    first = QueryOutputs(train.cls_logits[:, :, :12], train.box_codes[:, :, :12], groups=1)
    assert (head.predict(train, ["a"])[0].boxes == head.predict(first, ["a"])[0].boxes).all()


def test_perfect_predictions_cost_nothing_and_come_back(labels):
    boxes, classes = labels
    codes = torch.zeros(1, 1, 12, 10)
    codes[..., :4, :] = encode_boxes(boxes)
    logits = torch.full((1, 1, 12, 10), -20.0)
    logits[0, 0, range(4), classes] = 20
    head = tiny_head(score_threshold=0.5)
    losses = head.loss(QueryOutputs(logits, codes, groups=1), [boxes], [classes])
    assert total(losses) < 1e-5
    found = head.predict(QueryOutputs(logits, codes, groups=1), ["a"])[0]
    order = found.boxes[:, 0].argsort()
    expected = boxes[boxes[:, 0].argsort()]
    torch.testing.assert_close(torch.from_numpy(found.boxes[order])[:, :6], expected[:, :6], rtol=0, atol=1e-4)


def test_no_labels_leave_background_and_the_graph_intact(labels):
    outs = random_outputs()
    empty = torch.zeros(0, 9), torch.zeros(0, dtype=torch.long)
    losses = tiny_head().loss(outs, [empty[0]] * 2, [empty[1]] * 2)
    assert losses["loss_bbox"] == 0 and losses["loss_cls"] > 0
    total(losses).backward()
    assert outs.box_codes.grad.abs().sum() == 0 and outs.cls_logits.grad.abs().sum() > 0
    # a sample without labels beside one with them
    losses = tiny_head().loss(random_outputs(), [labels[0], empty[0]], [labels[1], empty[1]])
    assert all(value.isfinite() for value in losses.values())


def test_unknown_velocity_is_left_out_or_zero_as_released(labels):
    boxes, classes = labels[0].clone(), labels[1]
    boxes[1, 7:] = math.nan
    zero = boxes.nan_to_num(0)
    outs = random_outputs(batch=1)
    ignore = tiny_head().loss(outs, [boxes], [classes])["loss_bbox"]
    released = tiny_head(unknown_velocity="zero").loss(outs, [boxes], [classes])["loss_bbox"]
    torch.testing.assert_close(released, tiny_head().loss(outs, [zero], [classes])["loss_bbox"])
    assert ignore.isfinite() and ignore < released
    (gradient,) = torch.autograd.grad(ignore, outs.box_codes)
    assert gradient.isfinite().all()
    assert (gradient[-1, 0, :, 8].count_nonzero()) == 3 and gradient[-1, 0, :, 0].count_nonzero() == 4
    with pytest.raises(ValueError, match="ignore"):
        tiny_head(unknown_velocity="drop")


def test_nan_predictions_are_named(labels):
    outs = random_outputs()
    with torch.no_grad():
        outs.box_codes[0, 1, 3, 0] = math.nan
    with pytest.raises(FloatingPointError, match=r"decoder layer 0, sample 1.*box"):
        tiny_head().loss(outs, [labels[0]] * 2, [labels[1]] * 2)


def test_code_weights_weigh_and_stay_frozen(labels):
    weights = [1.0] * 8 + [0.0, 0.0]
    outs = random_outputs(batch=1)
    fast = labels[0].clone()
    fast[:, 7:] += 100
    a, b = (tiny_head(code_weights=weights).loss(outs, [x], [labels[1]])["loss_bbox"] for x in (labels[0], fast))
    torch.testing.assert_close(a, b)
    head = tiny_head()
    assert "code_weights" in head.state_dict() and not head.code_weights.requires_grad


# ---- extra queries ---------------------------------------------------------------------------------------------------


def extra_queries(batch, number, valid):
    torch.manual_seed(3)
    return ExtraQueries(
        torch.randn(batch, number, 32), torch.randn(batch, number, 32), torch.rand(batch, number, 3), valid
    )


def test_extra_queries_join_every_group(labels):
    head = tiny_head(3)
    outs = head.decode(torch.randn(2, 32, 10, 10), extra_queries(2, 5, torch.ones(2, 5, dtype=torch.bool)))
    assert outs.cls_logits.shape == (2, 2, 3 * 17, 10)
    assert all(v.isfinite() for v in head.loss(outs, [labels[0]] * 2, [labels[1]] * 2).values())


def test_padding_changes_nothing(labels):
    head = tiny_head().eval()
    bev = torch.randn(1, 32, 10, 10, generator=torch.Generator().manual_seed(12))
    valid = torch.tensor([[True, True, False, False, False]])
    padded = extra_queries(1, 5, valid)
    short = ExtraQueries(padded.query[:, :2], padded.query_pos[:, :2], padded.reference[:, :2], valid[:, :2])
    with torch.no_grad():
        a, b = head.decode(bev, padded), head.decode(bev, short)
    torch.testing.assert_close(a.box_codes[:, :, :14], b.box_codes, rtol=0, atol=1e-5)
    for key, value in head.loss(b, [labels[0]], [labels[1]]).items():
        torch.testing.assert_close(head.loss(a, [labels[0]], [labels[1]])[key], value)
    found, expected = head.predict(a, ["a"])[0], head.predict(b, ["a"])[0]
    assert found.labels.tolist() == expected.labels.tolist()


# ---- construction ----------------------------------------------------------------------------------------------------


def test_initial_statistics_are_the_published(reference_dir):
    """Means and deviations of the released t8 model's head, at its size but for encoder and decoder."""
    stats = json.loads((reference_dir / "bev" / "init_stats_heads.json").read_text())["heads"]
    torch.manual_seed(0)
    head = BoxHead(num_groups=11)
    state = PublishedHead(BevMap(num_layers=1), head).state_dict()
    compared = 0
    for key, (shape, mean, std, low, high) in stats.items():
        if not key.startswith("pts_bbox_head."):
            continue
        value = state[key.removeprefix("pts_bbox_head.")]
        assert list(value.shape) == shape, key
        compared += 1
        if value.numel() < 1000:  # too few for statistics: only bounds that both share
            assert value.max() <= max(high * 1.1, high + 1e-3) and value.min() >= min(low * 1.1, low - 1e-3), key
            continue
        error = std / math.sqrt(value.numel())
        assert abs(value.mean().item() - mean) <= 6 * math.sqrt(2) * error, key
        assert value.std().item() == pytest.approx(std, rel=0.05), key
    assert compared > 100
    own = {key for key in state if not key.startswith("transformer.")}
    assert own == {k.removeprefix("pts_bbox_head.") for k in stats if k.startswith("pts_bbox_head.")}


def test_ranges_of_map_and_head():
    pc_range = (-10, -20, -5, 30, 40, 3)
    grid = BevMap(pc_range=pc_range, bev_size=(10, 10), num_cams=3, num_levels=2, **LAYERS).grid
    assert (grid.num_x, grid.num_y, grid.x_max, grid.y_min) == (10, 10, 30, -20)
    head = tiny_head(pc_range=pc_range)
    codes = head.decode(torch.randn(1, 32, 10, 10)).box_codes
    assert (codes[..., 0] >= -10).all() and (codes[..., 0] <= 30).all() and (codes[..., 4] <= 3).all()


def test_found_boxes_may_lie_ten_metres_beside_the_range_unless_stated():
    """As released: (-61.2, -61.2, -10, 61.2, 61.2, 10) for the range of 51.2 m."""
    assert tiny_head().coder.post_center_range == (-61.2, -61.2, -10.0, 61.2, 61.2, 10.0)
    assert tiny_head(pc_range=(-10, -20, -5, 30, 40, 3)).coder.post_center_range == (-20, -30, -10, 40, 50, 10)
    assert tiny_head(post_center_range=[0, 0, 0, 1, 1, 1]).coder.post_center_range == (0, 0, 0, 1, 1, 1)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_outputs_that_are_not_finite_are_no_empty_answer(value: float) -> None:
    outs = random_outputs(groups=1, batch=2)
    outs.box_codes.data[-1, 1, 3, 0] = value
    with pytest.raises(PredictionError, match="sample b: the model's boxes are NaN or infinite"):
        tiny_head().eval().predict(outs, ["a", "b"])
