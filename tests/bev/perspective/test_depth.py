"""The depth teacher: bins, what it leaves out, gradients, and that nothing but training meets it."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from drivestack.bev.perspective.depth import DepthTeacher, depth_abs_rel
from drivestack.core.checkpoint import load_checkpoint, save_safetensors
from drivestack.core.errors import CheckpointError, ConfigError
from drivestack.core.labels import DepthTargets
from drivestack.core.once import forget_warnings
from drivestack.lane_topology.head import LaneTopologyHead
from support import toy_rig, toy_streets

NUM_CAMERAS, H, W = 3, toy_rig.HEIGHT // 8, toy_rig.WIDTH // 8


def labelled(depth=None, seed=0):
    """A batch of one with random depths and a level of features for each of two strides."""
    frames, images = toy_rig.scene(1)
    if depth is None:
        random = lambda *shape: torch.rand(shape, generator=torch.Generator().manual_seed(seed))
        near = random(NUM_CAMERAS, 1, 1) * 60 + 0.3 + 0.2 * random(NUM_CAMERAS, H, W)
        depth = DepthTargets(near, near.clone())
    return replace(toy_rig.clip(frames, images, 0, (0,)), depth=[depth])


def features(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(1, NUM_CAMERAS, 32, H // f, W // f, generator=generator) for f in (1, 2)]


def test_a_label_is_shared_by_the_two_bins_around_it_and_decodes_to_itself():
    teacher = DepthTeacher(32)
    depths = torch.tensor([1.0, 1.07, 5.0, 17.3, 59.99, 60.0])
    shares = teacher.soft_labels(depths)
    assert shares.shape == (6, 32)
    torch.testing.assert_close(shares.sum(-1), torch.ones(6))
    assert ((shares > 0).sum(-1) <= 2).all() and shares[0, 0] == 1
    middles = torch.logspace(0, np.log10(60), 32)
    torch.testing.assert_close((shares @ middles.log()).exp(), depths, rtol=1e-4, atol=1e-4)
    logits = shares.clamp(min=1e-30).log().T[None, None, :, None]  # [1, 1, 32, 1, 6]
    batch = replace(labelled(), intrinsics=torch.diag(torch.tensor([300.0, 300, 1]))[None, None])
    torch.testing.assert_close(teacher.depth_m(logits, batch).flatten(), depths, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("depth", "bin"), [(0.2, 0), (1.0, 0), (60.0, 31), (60.001, 31), (1e6, 31)])
def test_depths_at_and_beyond_the_range_are_its_end_bins(depth, bin):
    shares = DepthTeacher(32).soft_labels(torch.tensor([depth]))[0]
    assert shares[bin] == pytest.approx(1) and shares.isfinite().all()


@pytest.mark.parametrize("range_m", [(2.0, 58.0), (1.0, 35.0)])
def test_bins_follow_the_range_not_metres(range_m):
    """A bin is a share of the range: not floor(depth) - start, which is right for bins of one metre only."""
    teacher = DepthTeacher(32, num_bins=112, range_m=range_m)
    for i in range(112):
        middle = range_m[0] * (range_m[1] / range_m[0]) ** (i / 111)
        assert teacher.soft_labels(torch.tensor([middle], dtype=torch.float64))[0, i] == pytest.approx(1, abs=1e-4)


def test_the_focal_length_decides_how_far_a_bin_is():
    teacher, batch = DepthTeacher(32), labelled()
    double = batch.intrinsics.clone()
    double[..., :2, :2] *= 2
    logits = teacher(features())[0]
    torch.testing.assert_close(
        teacher.depth_m(logits, replace(batch, intrinsics=double)), 2 * teacher.depth_m(logits, batch)
    )
    assert torch.equal(
        teacher.labels(replace(batch, intrinsics=double), H, W).scaled_m, teacher.labels(batch, H, W).scaled_m / 2
    )


def by_loop(teacher, levels, batch):
    """The loss, one cell after the other."""
    (depth,), total = batch.depth, 0.0
    for logits, factor in zip(teacher(levels), (1, 2)):
        terms = []
        for n in range(NUM_CAMERAS):
            k = batch.intrinsics[0, n]
            scale = 300 / float((k[0, 0] * k[1, 1]).sqrt())
            for i in range(logits.shape[3]):
                for j in range(logits.shape[4]):
                    cells = np.s_[n, i * factor : (i + 1) * factor, j * factor : (j + 1) * factor]
                    near, far = float(depth.nearest_m[cells].min()), float(depth.farthest_m[cells].max())
                    if not np.isfinite(near) or far > 1.5 * near:
                        continue
                    at = 31 * np.log(np.clip(near * scale, 1, 60)) / np.log(60)
                    low = min(int(at), 30)
                    log_p = logits[0, n, :, i, j].log_softmax(0)
                    terms.append(-(1 - (at - low)) * log_p[low] - (at - low) * log_p[low + 1])
        total = total + sum(terms) / max(len(terms), 1)
    return 0.5 * total / 2


def test_the_loss_is_that_of_a_loop_and_sky_and_edges_are_left_out():
    teacher = DepthTeacher(32)
    near = torch.rand(NUM_CAMERAS, H, W, generator=torch.Generator().manual_seed(1)) * 3 + 5
    far = near * 1.2
    near[0], far[0] = torch.inf, 0.0  # no label
    near[1, :2], far[1, :2] = torch.inf, torch.inf  # sky
    far[2, 0, 0] = torch.inf  # an edge against the sky
    far[2, 3] = 40.0  # edges
    batch, levels = labelled(DepthTargets(near, far)), [x.requires_grad_() for x in features()]
    found, expected = teacher.loss(levels, batch)["loss_depth"], by_loop(teacher, levels, batch)
    torch.testing.assert_close(found, expected.to(found), rtol=1e-5, atol=1e-6)
    found.backward()
    own = levels[0].grad[0].abs().sum(1)  # [N, h, w]
    assert not own[0].any() and not own[1, :2].any() and own[2, 0, 0] == 0 and not own[2, 3].any()
    assert (own[1, 2:] > 0).all()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in teacher.parameters())


def test_learning_lowers_the_error_on_the_labels():
    torch.manual_seed(0)
    teacher, batch = DepthTeacher(32), labelled()
    near = 4 + 20 * features()[0][0, :, 0].sigmoid()
    batch = replace(batch, depth=[DepthTargets(near / 300 * 40, near / 300 * 40)])
    optimiser = torch.optim.Adam(teacher.parameters(), lr=0.05)
    before = teacher.errors(features(), batch)[0]
    for _ in range(150):
        optimiser.zero_grad()
        teacher.loss(features(), batch)["loss_depth"].backward()
        optimiser.step()
    after = teacher.errors(features(), batch)[0]
    inside = int(((near * 300 / 40 * 40 / 300 >= 1) & (near <= 60)).sum())
    assert before[1] == after[1] == inside and after[0] < 0.5 * before[0]


def test_samples_without_labels_add_nothing_and_reach_every_parameter(caplog):
    forget_warnings()
    teacher, one = DepthTeacher(32), labelled()
    bare = replace(one, depth=[])
    levels = [x.requires_grad_() for x in features()]
    loss = teacher.loss(levels, bare)["loss_depth"]
    assert loss == 0 and "depth=True" in caplog.text
    loss.backward()
    assert all(p.grad is not None and not p.grad.any() for p in teacher.parameters())
    pair = toy_rig.join(one, bare)
    both = [torch.cat([x, y]) for x, y in zip(features(), features(1))]
    torch.testing.assert_close(teacher.loss(both, pair), teacher.loss(features(), one))


def test_the_control_learns_the_depth_of_another_image():
    torch.manual_seed(0)
    teacher, control = DepthTeacher(32), DepthTeacher(32, shuffled=True)
    control.load_state_dict(teacher.state_dict())
    batch = labelled()
    (own,) = batch.depth
    rolled = [DepthTargets(own.nearest_m.roll(1, 0), own.farthest_m.roll(1, 0))]
    torch.testing.assert_close(control.loss(features(), batch), teacher.loss(features(), replace(batch, depth=rolled)))
    assert control.loss(features(), batch) != teacher.loss(features(), batch)
    assert control.errors(features(), batch) == teacher.errors(features(), batch)  # scored on its own depth


def test_a_level_that_does_not_fit_and_settings_that_cannot_be_are_refused():
    with pytest.raises(ConfigError, match="strides of 8, 16"):
        DepthTeacher(32).loss([torch.zeros(1, NUM_CAMERAS, 32, 3, 5)] * 2, labelled())
    with pytest.raises(ConfigError, match="neck gives 1"):
        DepthTeacher(32)(features()[:1])
    for wrong in ({"range_m": (0.0, 60.0)}, {"num_bins": 1}, {"max_ratio": 0.5}, {"range_m": (60, 1)}):
        with pytest.raises(ConfigError):
            DepthTeacher(32, **wrong)


def test_a_model_learns_depth_and_answers_without_it():
    plain = dict(dropout=0.0, grid_mask=False)
    net, alone = toy_rig.build(depth_teacher=dict(type=DepthTeacher), **plain), toy_rig.build(**plain)
    missing, unexpected = net.load_state_dict(alone.state_dict(), strict=False)
    assert not unexpected and {name.split(".")[0] for name in missing} == {"depth_teacher"}
    batch = labelled()
    losses, expected = net.loss(batch), alone.loss(batch)
    assert losses.pop("loss_depth") > 0
    for name, value in expected.items():
        assert torch.equal(losses[name], value), name
    net.eval(), alone.eval()
    found, same = (m.predict(batch)[0][0].boxes for m in (net, alone))
    np.testing.assert_array_equal(found.boxes, same.boxes)
    np.testing.assert_array_equal(found.scores, same.scores)


def test_the_gradient_reaches_the_image_encoder_and_abs_rel_is_read_from_batches():
    net = toy_rig.build(depth_teacher=dict(type=DepthTeacher, weight=1.0))
    net.loss(labelled())["loss_depth"].backward()
    assert all(p.grad is not None and p.grad.any() for p in net.depth_teacher.parameters())
    assert any(p.grad is not None and p.grad.any() for p in net.img_backbone.parameters())
    assert not any(p.grad is not None and p.grad.any() for p in net.boxes.parameters())
    errors = depth_abs_rel(net, [labelled(), labelled(seed=1)])
    assert len(errors) == 2 and all(0 < e < 100 for e in errors)
    with pytest.raises(ConfigError, match="depth=True"):
        depth_abs_rel(net, [replace(labelled(), depth=[])])
    with pytest.raises(ConfigError, match="no depth_teacher"):
        depth_abs_rel(toy_rig.build(), [labelled()])


def test_weights_with_a_teacher_load_into_a_model_without_and_say_so(tmp_path):
    net, alone = toy_rig.build(depth_teacher=dict(type=DepthTeacher)), toy_rig.build(seed=1)
    save_safetensors(net, tmp_path / "w.safetensors")
    report = load_checkpoint(alone, tmp_path / "w.safetensors")
    assert report.clean and "4 tensors of teachers" in str(report)
    for key, value in alone.state_dict().items():
        assert torch.equal(value, net.state_dict()[key]), key
    save_safetensors(alone, tmp_path / "old.safetensors")
    with pytest.raises(CheckpointError, match="depth_teacher"):
        load_checkpoint(net, tmp_path / "old.safetensors")
    assert load_checkpoint(net, tmp_path / "old.safetensors", may_lack=net.teachers).clean


def test_the_second_group_of_lane_queries_comes_and_goes_as_teachers_do(tmp_path):
    toy = dict(type=LaneTopologyHead, **{k: v for k, v in toy_streets.SMALL.items() if k != "in_channels"})
    net, alone = (toy_rig.build(lane_head=dict(toy, one_to_many=many)) for many in (dict(), None))
    for own, other in ((net, alone), (alone, net)):
        save_safetensors(own, tmp_path / "w.safetensors")
        assert load_checkpoint(other, tmp_path / "w.safetensors", may_lack=other.teachers).clean


def test_stored_features_leave_nothing_to_teach():
    frozen = ("img_backbone.", "img_neck.", "bev_map.")
    net = toy_rig.build(depth_teacher=dict(type=DepthTeacher), grid_mask=False, frozen=frozen)
    with pytest.raises(ConfigError, match="depth_teacher=None"):
        net.fixed_state()
