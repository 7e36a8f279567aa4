"""Weights of another task shape: each rule alone, then the shipped weights in models of an own rig and own classes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from safetensors.torch import save_file
from torch import nn

from drivestack.core.checkpoint import load_checkpoint, read_state_dict, save_safetensors
from drivestack.core.errors import CheckpointError
from drivestack.engine.config import build_model, load_config
from drivestack.engine.fine_tune import (
    Side,
    adapt,
    camera_rows,
    class_rows,
    fine_tune,
    names_of,
    resize_queries,
    tile_queries,
)
from drivestack.engine.grid_weights import resize_bev_queries, resize_line
from support import toy_rig

OWN_CLASSES = ("two_wheeler", "car", "obstacle", "pedestrian", "van")
OWN_RANGE = [-20.0, -20.0, -4.0, 20.0, 28.0, 3.0]
OWN_GRID = (12, 10)
NUSCENES = tuple(load_config("bevformerv2_tiny_synthetic").class_names)

# ------------------------------------------------------------------------------------------------------------- rules


def test_bev_queries_keep_their_place_in_space() -> None:
    y, x = torch.meshgrid(torch.arange(6.0), torch.arange(4.0), indexing="ij")
    queries = torch.stack([x, y], -1).flatten(0, 1)  # [24, 2], linear in space
    resized = resize_bev_queries(queries, (6, 4), (12, 8)).unflatten(0, (12, 8))
    inside = resized[1:-1, 1:-1]  # beyond the outermost centres the edge is repeated
    expected = torch.stack(torch.meshgrid(torch.arange(12.0), torch.arange(8.0), indexing="ij")[::-1], -1)
    torch.testing.assert_close(inside, ((expected + 0.5) / 2 - 0.5)[1:-1, 1:-1])
    assert torch.equal(resize_bev_queries(queries, (6, 4), (6, 4)), queries)
    torch.testing.assert_close(resize_line(queries[:4, :1], 8)[1:-1, 0], (torch.arange(1.0, 7) + 0.5) / 2 - 0.5)


def test_a_wider_grid_keeps_each_cell_where_it_was() -> None:
    """From +-42 m to +-51 m with cells of 1.5 m: the old cells to the bit, and around them the border repeated."""
    queries, rows = torch.randn(56 * 56, 3), torch.randn(56, 2)
    old, new = ((-42.0, 42.0), (-42.0, 42.0)), ((-51.0, 51.0), (-51.0, 51.0))
    wide = resize_bev_queries(queries, (56, 56), (68, 68), old, new).unflatten(0, (68, 68))
    assert torch.equal(wide[6:-6, 6:-6], queries.unflatten(0, (56, 56)))
    assert torch.equal(wide[:6, 6:-6], queries.unflatten(0, (56, 56))[:1].expand(6, -1, -1))
    line = resize_line(rows, 68, old[0], new[0])
    assert torch.equal(line[6:-6], rows) and torch.equal(line[-6:], rows[-1:].expand(6, -1))
    finer = resize_line(torch.arange(56.0)[:, None], 34, old[0], (-25.5, 25.5))  # a place is worth its number
    torch.testing.assert_close(finer[:, 0], (torch.arange(34) * 1.5 - 24.75 + 42) / 1.5 - 0.5)


def test_the_mean_map_of_a_memory_keeps_its_places() -> None:
    old, new = ((-42.0, 42.0), (-42.0, 42.0)), ((-51.0, 51.0), (-51.0, 51.0))
    mean, count = torch.randn(3, 56, 56), torch.tensor(700)
    source = Side({"memory.running_mean": mean, "memory.num_updates": count}, spans=old)
    target = Side({"memory.running_mean": torch.zeros(3, 68, 68), "memory.num_updates": torch.tensor(0)}, spans=new)
    adapted, report = adapt(source, target)
    assert torch.equal(adapted["memory.running_mean"][:, 6:-6, 6:-6], mean) and adapted["memory.num_updates"] == 700
    assert report.resized == {"memory.running_mean": "(56, 56) to (68, 68) cells, by place"} and report.new == {}


def test_a_grid_of_as_many_cells_in_another_shape_is_resized() -> None:
    def side(num_y: int, num_x: int) -> Side:
        names = ("bev_embedding", "positional_encoding.row_embed", "positional_encoding.col_embed")
        sizes = (num_y * num_x, num_y, num_x)
        return Side({f"h.{name}.weight": torch.randn(size, 2) for name, size in zip(names, sizes)})

    source, target = side(4, 6), side(6, 4)
    adapted, report = adapt(source, target)
    queries = "h.bev_embedding.weight"
    assert torch.equal(adapted[queries], resize_bev_queries(source.state[queries], (4, 6), (6, 4)))
    assert report.resized[queries] == "(4, 6) to (6, 4) cells" and len(report.resized) == 3
    adapted, report = adapt(source, side(4, 6))
    assert torch.equal(adapted[queries], source.state[queries]) and len(report.taken) == 3


def test_camera_rows_in_order_and_by_name() -> None:
    rows = torch.tensor([[1.0], [2.0], [6.0]])
    assert camera_rows(rows, 2)[0].tolist() == [[1], [2]]
    assert camera_rows(rows, 5)[0].tolist() == [[1], [2], [6], [3], [3]]
    named, how = camera_rows(rows, 3, ("front", "left", "rear"), ("rear", "roof", "front"))
    assert named.tolist() == [[6], [3], [1]] and "by name" in how and "1 as the mean" in how
    assert camera_rows(rows, 2, ("front", "left", "rear"), ("a", "b"))[0].tolist() == [[1], [2]]  # no name in common
    assert camera_rows(rows, 2, ("front",), ("front", "x"))[0].tolist() == [[1], [2]]  # names do not fit the rows


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("values", [1, 3])
def test_class_rows_go_by_name(axis: int, values: int) -> None:
    stored = torch.arange(float(values * 3)).view(-1, 1).expand(-1, 2).movedim(0, axis)  # classes a, b, c
    own = torch.full((values * 2, 2), -1.0).movedim(0, axis)
    rows = class_rows(stored, own, ("a", "b", "c"), ("c", "new"), axis).movedim(axis, 0)
    assert rows[:, 0].tolist() == [number for v in range(values) for number in (3 * v + 2, -1)]
    assert (own == -1).all()


def test_queries_are_cut_repeated_in_groups_or_completed() -> None:
    stored, key = torch.arange(6.0).view(3, 2), "head.query_embedding.weight"
    assert torch.equal(resize_queries(stored, torch.zeros(2, 2)), stored[:2])
    tiled = resize_queries(stored, torch.zeros(9, 2), groups=3)
    assert torch.equal(tiled, tile_queries(stored, 9)) and torch.equal(tiled[3:6], stored)
    assert torch.equal(resize_queries(stored, torch.zeros(4, 2), groups=2), stored[[0, 1, 2, 0]])
    completed = resize_queries(stored, torch.full((8, 2), -1.0), groups=2)
    for group in completed.unflatten(0, (2, 4)):
        assert torch.equal(group[:3], stored) and (group[3] == -1).all()
    report = adapt(Side({key: stored}), Side({key: torch.zeros(4, 2)}), {key: 2})[1]
    assert report.resized == {key: "3 to 4 queries"}
    report = adapt(Side({key: stored}), Side({key: torch.zeros(4, 3)}))[1]
    assert "is [3, 2], the model's [4, 3]" in report.new[key]


def test_hidden_layers_with_as_many_channels_as_classes_are_no_class_layers() -> None:
    keys = [f"pts_bbox_head.cls_branches.0.{i}.weight" for i in (0, 6)]
    source = Side({key: torch.tensor([[1.0], [2.0]]) for key in keys}, classes=("a", "b"))
    target = Side({key: torch.zeros(2, 1) for key in keys}, classes=("b", "c"))
    adapted, report = adapt(source, target)
    assert adapted[keys[0]].tolist() == [[1], [2]] and adapted[keys[1]].tolist() == [[2], [0]]
    assert report.taken == keys[:1] and report.by_class == keys[1:]
    assert (report.classes_taken, report.classes_new) == (["b"], ["c"])


def test_what_the_checkpoint_does_not_say_is_said() -> None:
    key = "pts_bbox_head.cls_branches.0.0.bias"
    target = Side({key: torch.zeros(2)}, classes=("a", "b"))
    adapted, report = adapt(Side({key: torch.ones(2), "old.x": torch.ones(1)}), target)
    assert adapted[key].tolist() == [1, 1] and "does not say its classes" in str(report)
    assert report.left_out == {"old": 1} and "left out: old (1)" in str(report)


def test_names_come_from_notes_or_from_the_shipped_config(tmp_path: Path, repository_root: Path) -> None:
    weights = repository_root / "weights" / "bevformerv2_tiny_synthetic.safetensors"
    assert names_of(weights) == {"classes": NUSCENES}
    notes = {"classes": json.dumps(["a"]), "cameras": json.dumps(["front"]), "config": "bevformerv2_tiny_synthetic"}
    save_safetensors({"x": torch.ones(1)}, tmp_path / "a.safetensors", notes)
    assert names_of(tmp_path / "a.safetensors") == {"classes": ("a",), "cameras": ("front",)}
    torch.save({"meta": {"CLASSES": ("b",)}, "state_dict": {}}, tmp_path / "a.pth")
    assert names_of(tmp_path / "a.pth") == {"classes": ("b",)}
    torch.save({"meta": {"config": "somebodys"}, "state_dict": {}}, tmp_path / "b.pth")
    assert names_of(tmp_path / "b.pth") == {}


# ---------------------------------------------------------------------------------------------------- shipped weights


def own_variant(name: str) -> Config:
    """The config with five classes, another range and grid, five cameras and fewer queries."""
    config = load_config(name, {"pc_range": OWN_RANGE, "bev_size": OWN_GRID, "class_names": list(OWN_CLASSES)})
    config.model.bev_map.num_cams = 5
    config.model.boxes.head.num_query = 30
    config.model.boxes.bev_proposals.num_proposals = 10
    if "lane_head" in config.model:
        config.model.lane_head.num_queries = 12
    return config


@pytest.mark.parametrize("name", ["bevformerv2_tiny_synthetic", "perception_tiny_synthetic"])
def test_shipped_weights_start_a_model_of_own_classes_and_rig(name: str, repository_root: Path) -> None:
    weights = repository_root / "weights" / f"{name}.safetensors"
    torch.manual_seed(0)
    model = build_model(own_variant(name))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(CheckpointError, match="--fine-tune"):
        load_checkpoint(model, weights)
    report = fine_tune(model, weights, classes=OWN_CLASSES)
    stored, now = read_state_dict(weights), model.state_dict()

    assert (report.classes_taken, report.classes_new) == (["car", "pedestrian"], ["two_wheeler", "obstacle", "van"])
    rows = {"pts_bbox_head.cls_branches.2.6.weight", "bev_proposals.heat.weight", "bev_proposals.heat.bias"}
    assert rows <= set(report.by_class)
    for key in rows:
        for mine in ("car", "pedestrian"):
            assert torch.equal(now[key][OWN_CLASSES.index(mine)], stored[key][NUSCENES.index(mine)].float())
        assert torch.equal(now[key][0], before[key][0])
    score = "hybrid_queries.score_proj.weight"  # [C, K]
    assert torch.equal(now[score][:, 1], stored[score][:, NUSCENES.index("car")].float())
    assert report.resized["pts_bbox_head.bev_embedding.weight"] == "(56, 56) to (12, 10) cells, by place"
    assert report.resized["pts_bbox_head.transformer.cams_embeds"] == "6 to 5 cameras in order"
    assert report.resized["pts_bbox_head.query_embedding.weight"] == "120 to 90 queries"
    encoder = [key for key in now if key.startswith("img_backbone.")]
    assert set(encoder) <= set(report.taken)
    assert all(torch.equal(now[key], stored[key].to(now[key].dtype)) for key in encoder)
    assert report.new == {} and report.left_out == {}
    assert set(report.taken) | set(report.resized) | set(report.by_class) == set(now)

    frames, images = toy_rig.scene(1, num_cameras=5)
    batch = replace(toy_rig.clip(frames, images, 0, (0,)), gt_labels=[torch.tensor([1, 4])])
    losses = model.train()(batch, mode="loss")
    total = sum(value for key, value in losses.items() if "loss" in key)
    total.backward()
    assert torch.isfinite(total)


def test_heads_that_one_side_lacks_start_anew_or_are_left_out(repository_root: Path) -> None:
    weights = repository_root / "weights" / "perception_tiny_synthetic.safetensors"
    boxes_only = build_model(load_config("bevformerv2_tiny_synthetic"))
    report = fine_tune(boxes_only, weights, classes=NUSCENES)
    assert set(report.left_out) == {"occupancy_head", "lane_head"} and report.new == {} and report.resized == {}
    assert "100.0 %" in str(report)

    weights = weights.with_name("bevformerv2_tiny_synthetic.safetensors")
    report = fine_tune(build_model(load_config("perception_tiny_synthetic")), weights, classes=NUSCENES)
    assert {key.partition(".")[0] for key in report.new} == {"occupancy_head", "lane_head"}
    assert "occupancy_head (" in str(report)


def test_an_encoder_alone_starts_a_detector(tmp_path: Path, repository_root: Path) -> None:
    state = read_state_dict(repository_root / "weights" / "bevformerv2_tiny_synthetic.safetensors")
    encoder = {k.removeprefix("img_backbone."): v for k, v in state.items() if k.startswith("img_backbone.")}
    torch.save({"model": {**encoder, "head.weight": torch.zeros(3, 4)}}, tmp_path / "classifier.pth")
    model = build_model(load_config("bevformerv2_tiny_synthetic"))
    report = fine_tune(model, tmp_path / "classifier.pth")
    assert set(report.taken) == {f"img_backbone.{key}" for key in encoder}
    assert "left out the classification head" in str(report)


def test_another_encoder_is_refused_with_both_sides(repository_root: Path) -> None:
    config = load_config("bevformerv2_tiny_synthetic")
    config.model.img_backbone.update(channels=16)
    model = build_model(config)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    words = r"nothing of img_backbone fits.*channels 32, depths 1-2-5-2.*channels 16, depths 1-2-5-2"
    with pytest.raises(CheckpointError, match=words):
        fine_tune(model, repository_root / "weights" / "bevformerv2_tiny_synthetic.safetensors")
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    with pytest.raises(CheckpointError, match="nothing of the model fits"):
        fine_tune(nn.Linear(2, 2), repository_root / "weights" / "bevformerv2_tiny_synthetic.safetensors")


def test_the_wide_map_starts_with_every_old_cell_in_its_place(repository_root: Path) -> None:
    weights = repository_root / "weights" / "perception_tiny_synthetic.safetensors"
    model = build_model(load_config("perception_tiny_wide_synthetic"))
    report = fine_tune(model, weights, classes=NUSCENES)
    assert report.new == {} and len(report.resized) == 3
    old = read_state_dict(weights)["pts_bbox_head.bev_embedding.weight"].float().unflatten(0, (56, 56))
    wide = model.bev_map.bev_embedding.weight.unflatten(0, (68, 68))
    assert torch.equal(wide[6:-6, 6:-6], old)
    assert (model.bev_map.grid.cell_x_m, model.lane_head.grid.x_max) == (1.5, 51.2)


def test_the_range_that_ran_counts_before_that_of_the_config(tmp_path: Path) -> None:
    """A training with --set model.bev_map.pc_range=... still names the shipped config."""
    from drivestack.engine.fine_tune import _notes_of, _range_in

    named = {"config": "perception_tiny_synthetic"}
    own = [-30.0, -30.0, -5.0, 30.0, 30.0, 3.0]
    assert list(_range_in(named)) == [-42.0, -42.0, -5.0, 42.0, 42.0, 3.0] and _range_in({}) is None
    assert _range_in({**named, "pc_range": own}) == own
    assert list(_range_in({**named, "pc_range": "damaged"})) == list(_range_in(named))
    save_file({"x": torch.zeros(1)}, tmp_path / "w.safetensors", {**named, "pc_range": json.dumps(own)})
    assert _range_in(_notes_of(tmp_path / "w.safetensors")) == own
