"""The voxel head: where its columns lie, what its losses count, and that it learns."""

from dataclasses import dataclass, field

import pytest
import torch
from torch import nn

from drivestack.core.batch import BevFeatures
from drivestack.core.errors import ConfigError, PredictionError
from drivestack.core.labels import OccupancyTargets
from drivestack.geometry import BevGrid
from drivestack.occupancy.head import OccupancyHead
from drivestack.occupancy.rays import unique_by_height

GRID = BevGrid(-42.0, -42.0, 42.0, 42.0, num_x=56, num_y=56)


RAISED = torch.eye(4).expand(2, 4, 4).clone()
RAISED[:, 2, 3] = 1.84  # where a LiDAR stands


@dataclass
class Labels:
    occupancy: list
    tokens: list = field(default_factory=lambda: ["a", "b"])
    ego_from_bev: torch.Tensor = field(default_factory=lambda: torch.eye(4).expand(2, 4, 4))


def head(**settings):
    torch.manual_seed(0)
    return OccupancyHead(8, **({"channels": 16, "coarse_cells": 50, "columns_per_sample": 800} | settings))


def target(seed: int = 0) -> OccupancyTargets:
    """A ground layer and a block that stands on it."""
    semantics = torch.full((200, 200, 16), 17, dtype=torch.uint8)
    semantics[:, :, 2] = 11
    semantics[120:140, 60:90, 3:8] = 4
    mask = torch.rand(200, 200, 16, generator=torch.Generator().manual_seed(seed)) > 0.5
    return OccupancyTargets(semantics, ~mask, mask)


def features(requires_grad: bool = False) -> BevFeatures:
    generator = torch.Generator().manual_seed(1)
    return BevFeatures(torch.randn(2, 8, 56, 56, generator=generator).requires_grad_(requires_grad), GRID)


def test_a_column_shows_what_lies_there_in_the_ego_frame():
    """The map holds its own coordinates; the LIDAR looks to the right of the car, as on nuScenes."""
    net = OccupancyHead(2, num_blocks=0, coarse_cells=200)
    net.unfold = nn.Linear(2, 16 * 18)
    nn.init.zeros_(net.unfold.weight)
    nn.init.zeros_(net.unfold.bias)
    net.unfold.weight.data[0, 0] = net.unfold.weight.data[1, 1] = 1.0  # z 0: class 0 says x, class 1 says y
    centres = torch.tensor(GRID.cell_centres(), dtype=torch.float32).permute(2, 0, 1)[None]
    ego_from_bev = torch.tensor([[0.0, 1, 0, 1], [-1, 0, 0, 0], [0, 0, 1, 1.8], [0, 0, 0, 1]])[None]
    labels = Labels([None], ["a"], ego_from_bev)
    logits = net.logits(net(BevFeatures(centres, GRID), [], labels))[0].detach()
    x_ego, y_ego = -40 + 0.4 * (130 + 0.5), -40 + 0.4 * (80 + 0.5)
    assert logits[130, 80, 0, 0] == pytest.approx(-y_ego, abs=1e-3)  # LIDAR x
    assert logits[130, 80, 0, 1] == pytest.approx(x_ego - 1, abs=1e-3)  # LIDAR y


def test_training_unfolds_the_columns_that_inference_shows():
    net = head(columns_per_sample=None, mask="none").eval()
    labels = Labels([target(), None])
    outputs = net(features(), [], labels)
    whole = net.logits(outputs[:1])[0].reshape(-1, 18)
    expected = nn.functional.cross_entropy(whole, target().semantics.reshape(-1).long())
    torch.testing.assert_close(net.loss(outputs, labels)["loss_occ_cross_entropy"], expected)


@pytest.mark.parametrize("mask", ["camera", "lidar", "none"])
def test_only_voxels_of_the_mask_count(mask):
    net = head(columns_per_sample=None, mask=mask).eval()
    outputs = net(features(), [], Labels([None, None]))
    losses = []
    for corrupt in ("camera", "lidar"):
        changed = target()
        changed.semantics[getattr(changed, f"mask_{corrupt}")] = 0
        losses.append(net.loss(outputs, Labels([changed, None]))["loss_occ_cross_entropy"].item())
    plain = net.loss(outputs, Labels([target(), None]))["loss_occ_cross_entropy"].item()
    assert [abs(value - plain) > 1e-3 for value in losses] == [mask != "lidar", mask != "camera"]


def test_samples_without_labels_add_nothing_and_reach_every_parameter():
    net = head(loss_weights={"cross_entropy": 1.0, "lovasz": 0.5, "semantic_affinity": 1.0, "geometric_affinity": 1.0})
    bev = features(requires_grad=True)
    losses = net.loss(net(bev, [], Labels([None, None])), Labels([None, None]))
    sum(losses.values()).backward()
    assert all(value == 0 for value in losses.values())
    assert all(p.grad is not None for p in net.parameters()) and not bev.bev.grad.any()
    one = net.eval().loss(net(bev, [], Labels([target(), None])), Labels([target(), None]))
    assert set(one) == {f"loss_occ_{n}" for n in ("cross_entropy", "lovasz", "semantic_affinity", "geometric_affinity")}
    assert all(value > 0 for value in one.values())


def test_it_learns_a_scene_and_predicts_it():
    net = head(num_blocks=1, columns_per_sample=1500)
    labels = Labels([target(), target(1)])
    bev = BevFeatures(torch.zeros(2, 8, 56, 56), GRID)
    where = torch.tensor(GRID.cell_centres(), dtype=torch.float32).permute(2, 0, 1) / 42
    inside = ((where[0] > 0.19) & (where[0] < 0.38) & (where[1] > -0.38) & (where[1] < -0.09)).float()
    bev.bev[:, :2], bev.bev[:, 2] = where, inside
    optimizer = torch.optim.AdamW(net.parameters(), 2e-2)
    for _ in range(40):
        optimizer.zero_grad()
        sum(net.loss(net(bev, [], labels), labels).values()).backward()
        optimizer.step()
    found = net.eval().predict(net(bev, [], labels), labels)
    assert [grid.token for grid in found] == ["a", "b"] and found[0].semantics.dtype == "uint8"
    truth = labels.occupancy[0].semantics.numpy()
    assert (found[0].semantics == truth).mean() > 0.99
    block = truth == 4
    assert (found[0].semantics[block] == 4).mean() > 0.8


def parts(target: OccupancyTargets) -> OccupancyTargets:
    """The same with disjoint and overlapping masks: cameras see the left half, the LiDAR all but the last rows."""
    camera, lidar = torch.zeros_like(target.mask_camera), torch.ones_like(target.mask_camera)
    camera[:, 100:], lidar[180:] = True, False
    return OccupancyTargets(target.semantics, lidar, camera)


def test_mixed_mask_learns_what_cameras_see_and_a_little_from_what_only_the_lidar_met():
    terms = {"cross_entropy": 1.0, "lovasz": 0.5}
    labels = Labels([parts(target()), None])
    nets = {
        mask: head(columns_per_sample=None, mask=mask, loss_weights=terms, **more).eval()
        for mask, more in {"camera": {}, "mixed": dict(hidden_weight=0.3), "lidar": {}}.items()
    }
    outputs = nets["camera"](features(), [], labels)
    seen, mixed = (nets[mask].loss(outputs, labels) for mask in ("camera", "mixed"))
    assert {name: mixed[name] for name in seen} == seen
    own = parts(target())
    only_hidden = OccupancyTargets(own.semantics, own.mask_lidar & ~own.mask_camera, own.mask_camera)
    hidden = nets["lidar"].loss(outputs, Labels([only_hidden, None]))
    for name, weight in terms.items():
        expected = 0.3 * hidden[f"loss_occ_{name}"]
        torch.testing.assert_close(mixed[f"loss_occ_hidden_{name}"], expected, msg=name)
        assert weight


def test_new_terms_leave_the_old_ones_as_they_are_and_reach_every_parameter():
    """Columns are drawn first for what was there before, so a term that is added changes no other."""
    net = head(mask="mixed", ray_loss=dict(num_rays=50))
    plain = head()
    plain.load_state_dict(net.state_dict())
    bev, labels = features(requires_grad=True), Labels([parts(target()), parts(target(1))], ego_from_bev=RAISED)
    found = []
    for own in (plain, net):
        torch.manual_seed(7)
        found.append(own.loss(own(bev, [], labels), labels))
    assert torch.equal(found[0]["loss_occ_cross_entropy"], found[1]["loss_occ_cross_entropy"])
    assert set(found[1]) == {"loss_occ_cross_entropy", "loss_occ_hidden_cross_entropy", "loss_occ_rays"}
    for name in ("loss_occ_hidden_cross_entropy", "loss_occ_rays"):
        grads = torch.autograd.grad(found[1][name], [*net.parameters(), bev.bev], retain_graph=True)
        assert all(grad.isfinite().all() and grad.any() for grad in grads), name
    none = net.loss(net(bev, [], Labels([None, None])), Labels([None, None]))
    assert set(none) == set(found[1]) and all(value == 0 for value in none.values())


def test_a_lidar_in_the_ground_is_said_and_costs_nothing(caplog):
    net = head(ray_loss=dict(num_rays=20))
    labels = Labels([target(), None])  # the origin of the BEV frame lies in the layer of the ground
    losses = net.loss(net(features(), [], labels), labels)
    assert losses["loss_occ_rays"] == 0
    assert any("no ray from (0.0, 0.0, 0.0) m" in text for text in caplog.messages)


@pytest.mark.parametrize("free_bias", [0.0, 1.5])
def test_rays_look_at_the_probabilities_that_inference_gives(free_bias):
    net = head(free_bias=free_bias).eval()
    outputs = net(features(), [], Labels([None, None]))
    expected = net.logits(outputs[:1])[0].log_softmax(-1).reshape(-1, 18)
    voxels = unique_by_height(torch.randint(0, len(expected), (40, 7)))[0]
    torch.testing.assert_close(net._log_probabilities(outputs[0], voxels), expected[voxels])


def test_a_bias_for_free_acts_in_predictions_and_not_where_sampled_columns_are_learned():
    plain, net = head().eval(), head(free_bias=2.0).eval()
    bev, labels = features(), Labels([target(), None])
    outputs = plain(bev, [], labels)
    added = (net.logits(outputs) - plain.logits(outputs)).flatten(0, -2)
    torch.testing.assert_close(added, torch.eye(18)[17].mul(2.0).expand_as(added))
    found, fewer = (own.predict(outputs, labels)[0].semantics for own in (plain, net))
    assert (fewer[found == 17] == 17).all() and (fewer == 17).sum() > (found == 17).sum()
    losses = []
    for own in (plain, net):
        torch.manual_seed(0)
        losses.append(own.loss(outputs, labels)["loss_occ_cross_entropy"])
    assert torch.equal(*losses)


def test_rare_classes_draw_columns_by_the_fourth_root_of_their_frequency():
    """Two kinds of ground, 9:1 in area and 10,000:1 in frequency: weights 1:10, so rare columns are drawn as often."""
    frequency = [1] * 18
    frequency[11], frequency[13] = 10_000, 1
    net = head(column_weights="frequency", class_frequency=frequency, mask="none")
    semantics = torch.full((200, 200, 16), 11, dtype=torch.uint8)
    semantics[:20] = 13
    torch.manual_seed(0)
    counts = torch.ones_like(semantics, dtype=torch.bool)
    ix, iy = net._chosen_columns(counts, semantics, 400)
    assert 0.45 < (ix < 20).float().mean() < 0.6
    assert iy.min() >= 0 and iy.max() < 200
    plain, _ = head(mask="none")._chosen_columns(counts, semantics, 400)
    assert (plain < 20).float().mean() < 0.2


def test_what_cannot_work_is_said():
    with pytest.raises(ConfigError, match="column_weights and class_weights would multiply"):
        head(column_weights="frequency", class_weights="log_frequency")
    with pytest.raises(ConfigError, match="column_weights: 'counts' is no rule"):
        head(column_weights="counts")
    with pytest.raises(ConfigError, match="2 class_frequency for 18 classes"):
        head(class_frequency=[1, 2])
    with pytest.raises(ConfigError, match="hidden_weight must not be negative"):
        head(mask="mixed", hidden_weight=-1.0)
    with pytest.raises(ConfigError, match="mask must be one of camera, lidar, none, mixed"):
        head(mask="radar")
    with pytest.raises(ConfigError, match="'focal' is no loss"):
        head(loss_weights={"focal": 1.0})
    with pytest.raises(ConfigError, match="3 class_weights for 18 classes"):
        head(class_weights=[1.0, 1.0, 1.0])


def test_features_that_are_not_finite_are_no_answer():
    net = head().eval()
    broken = features()
    broken.bev[1, 3, 20, 20] = float("nan")
    labels = Labels([None, None])
    with pytest.raises(PredictionError, match="sample b: the model's occupancy are NaN or infinite"), torch.no_grad():
        net.predict(net(broken, [], labels), labels)


def test_a_sample_weighs_the_same_however_samples_fall_on_processes(monkeypatch):
    """Two processes, of which the other has no labels: DDP halves the gradient, so that the loss is twice as large."""
    net = head(mask="mixed", ray_loss={"weight": 0.2}, columns_per_sample=None).eval()
    losses = []
    for processes in (1, 2):
        monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
        monkeypatch.setattr(torch.distributed, "get_world_size", lambda count=processes: count)
        monkeypatch.setattr(torch.distributed, "all_reduce", lambda value: None)
        torch.manual_seed(0)
        labels = Labels([target(), None], ego_from_bev=RAISED)
        losses.append(net.loss(net(features(), [], labels), labels))
    alone, beside = losses
    assert alone["loss_occ_rays"] > 0 and alone["loss_occ_hidden_cross_entropy"] > 0
    for name, value in alone.items():
        torch.testing.assert_close(beside[name], 2 * value)


def test_frequencies_of_other_classes_are_not_taken():
    labels = Labels([target(), None])
    labels.occupancy[0].semantics[labels.occupancy[0].semantics == 17] = 15
    for rule in (dict(column_weights="frequency"), dict(class_weights="log_frequency")):
        net = head(num_classes=16, free=15, **rule)  # a model that answers needs none
        with pytest.raises(ConfigError, match="class_frequency is needed for classes that are not Occ3D-nuScenes'"):
            net.loss(net(features(), [], labels), labels)
        net = head(num_classes=16, free=15, class_frequency=[5] * 16, **rule)
        assert net.loss(net(features(), [], labels), labels)["loss_occ_cross_entropy"] > 0
