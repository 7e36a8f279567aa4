"""Drives that turn and held-out towns: what is drawn is physically possible and labelled right."""

from __future__ import annotations

import json
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import pytest

from drivestack.core.street_maps import STREET_KINDS
from drivestack.data_tools.synthetic import build_world, synthesize
from drivestack.data_tools.synthetic.labels.lanes import label_lanes, street_graph
from drivestack.data_tools.synthetic.labels.voxels import FREE, voxel_classes
from drivestack.data_tools.synthetic.sensing.renderer import RayCaster
from drivestack.data_tools.synthetic.sensing.sensors import camera_rig
from drivestack.data_tools.synthetic.world import layout as plain
from drivestack.data_tools.synthetic.world.drive import plan_timetable
from drivestack.data_tools.synthetic.world.families import FAMILIES, HELD_OUT, STREETS
from drivestack.data_tools.synthetic.world.mesh import Semantic
from drivestack.data_tools.synthetic.world.overlap import rectangles_overlap
from drivestack.data_tools.synthetic.world.world import World
from drivestack.geometry import OCC3D_GRID, points_in_boxes, transform_points

SCENES = [("turning", 0), ("turning", 1), ("turning", 2), ("towns", 0), ("towns", 2), ("towns", 4)]
RANGES = ("lane_width_m", "parking_width_m", "sidewalk_width_m", "crossing_deg", "curve_radius_m", "block_m")


@pytest.fixture(scope="module", params=SCENES, ids=lambda key: f"{key[0]}{key[1]}")
def world(request) -> World:
    streets, index = request.param
    return build_world(7, "val", index, 20, streets)


def test_no_range_of_the_towns_meets_one_of_training():
    training = {name for streets, names in STREETS.items() if streets != HELD_OUT for name in names}
    assert training.isdisjoint(STREETS[HELD_OUT])
    for town in STREETS[HELD_OUT]:
        for name in training:
            for field in RANGES:
                ours, theirs = getattr(FAMILIES[town], field), getattr(FAMILIES[name], field)
                if theirs is not None:  # plain streets have one junction at most
                    assert ours[1] < theirs[0] or theirs[1] < ours[0], (town, name, field)


def test_plain_streets_are_as_their_family_says():
    family = FAMILIES["plain"]
    assert family.lane_width_m == (plain.LANE_WIDTH_M, plain.LANE_WIDTH_M)
    assert family.parking_width_m == (plain.PARKING_WIDTH_M, plain.PARKING_WIDTH_M)
    assert family.sidewalk_width_m == (plain.SIDEWALK_WIDTH_M, plain.SIDEWALK_WIDTH_M)
    sharpest = 0.0
    for seed in range(200):
        main = plain.build_layout(np.random.default_rng(seed), 260.0, (40.0, 170.0)).main
        sharpest = max(sharpest, np.abs(np.diff(main.table_heading_rad) / np.diff(main.table_s)).max())
    assert 1 / 60 < sharpest < 1 / family.curve_radius_m[0]


def test_streets_are_drawn_within_the_ranges_of_their_family(world):
    family = FAMILIES[world.layout.kind]
    for street in world.layout.streets:
        for field in ("lane_width_m", "parking_width_m", "sidewalk_width_m"):
            low, high = getattr(family, field)
            assert low <= getattr(street, field) <= high
        curvature = np.abs(np.diff(street.table_heading_rad) / np.diff(street.table_s))
        bent = curvature[curvature > 1e-6]
        if len(bent):  # steps are a little shorter or longer than they were drawn
            assert family.curve_radius_m[0] * 0.98 < 1 / bent.max() and 1 / bent.min() < family.curve_radius_m[1] * 1.02
    for junction in world.layout.junctions:
        headings = [arm.heading_rad for arm in junction.arms]
        for a, b in combinations(headings, 2):
            smaller = np.rad2deg(abs((a - b + np.pi / 2) % np.pi - np.pi / 2))
            assert smaller < 1e-3 or family.crossing_deg[0] - 1e-6 <= smaller <= family.crossing_deg[1] + 1e-6


def test_towns_are_refused_for_training(tmp_path):
    with pytest.raises(ValueError, match=r"'towns' are held out for tests: split must be 'val', got 'train'"):
        synthesize(tmp_path / "set", "train", 1, streets="towns")
    with pytest.raises(ValueError, match=r"streets must be one of plain, turning, mixed, towns, got 'alpine'"):
        synthesize(tmp_path / "set", "val", 1, streets="alpine")
    assert not list(tmp_path.iterdir())


def _ground(world: World) -> RayCaster:
    return RayCaster(world.scenery.mesh)


def _below(caster: RayCaster, points: np.ndarray) -> np.ndarray:
    """Class of the ground under points [n, 2]."""
    start = np.c_[points, np.full(len(points), 0.3)].astype(np.float32)
    hits = caster.first_hits(start, np.tile(np.array([0, 0, -1], np.float32), (len(points), 1)))
    return caster.mesh.semantic[hits.face]


def test_lanes_stay_on_the_road_and_leave_room_for_a_car(world):
    caster = _ground(world)
    for lane in world.layout.lanes.values():
        line = lane.centreline[:, :2]
        way = np.gradient(line, axis=0)
        left = np.stack([-way[:, 1], way[:, 0]], 1) / np.linalg.norm(way, axis=1, keepdims=True)
        for offset in (-0.9, 0.0, 0.9):
            assert (_below(caster, line + offset * left) == Semantic.DRIVEABLE_SURFACE).all(), (lane.id, offset)


def test_connectors_join_lanes_without_a_gap_or_a_kink(world):
    lanes = world.layout.lanes
    assert any(lane.is_connector for lane in lanes.values())
    for lane in lanes.values():
        for name in lane.successors:
            after = lanes[name]
            assert lane.id in after.predecessors and lane.is_connector != after.is_connector
            assert np.linalg.norm(lane.centreline[-1] - after.centreline[0]) < 1e-6
            out, into = lane.centreline[-1] - lane.centreline[-2], after.centreline[1] - after.centreline[0]
            turn = np.arctan2(out[0] * into[1] - out[1] * into[0], out[:2] @ into[:2])
            assert abs(np.rad2deg(turn)) < 12, (lane.id, name)  # a lane's end is straight, a connector is 24 pieces
    for junction in world.layout.junctions:
        assert 3 <= len(junction.arms) <= 4
    ends = {street.name for street, _ in world.layout.dead_ends()}
    for lane in lanes.values():  # who arrives at a junction can leave it
        assert lane.successors or any(lane.id.startswith(name) for name in ends)


def test_the_car_drives_along_lanes_that_follow_one_another_and_not_too_fast(world):
    lanes, route = world.layout.lanes, world.layout.route
    assert all(b in lanes[a].successors for a, b in pairwise(route))
    times = np.arange(0.0, 9.5, 0.1)
    axle, yaw = world.ego.poses(times)
    path = np.concatenate([lanes[name].centreline[:, :2] for name in route])
    dense = np.concatenate([np.linspace(a, b, 20) for a, b in pairwise(path)])
    assert np.linalg.norm(axle[:, None] - dense[None], axis=-1).min(1).max() < 0.1
    speed = np.diff(world.ego.arc_length(times)) / 0.1
    assert (speed >= 0).all()
    assert np.abs(speed * np.diff(np.unwrap(yaw)) / 0.1).max() < 3.1
    assert np.abs(np.diff(speed[::4]) / 0.4).max() < 3.0
    moving = speed > 1.0
    if not moving.any():
        return  # parked
    heading = np.arctan2(*(np.diff(axle, axis=0)[moving] / 0.1).T[::-1])
    off = np.angle(np.exp(1j * (heading - yaw[1:][moving])))
    assert np.abs(off).max() < np.deg2rad(12)  # no sideways car


def test_nothing_touches_anything_between_keyframes_either(world):
    for time_s in np.arange(0.0, 9.6, 0.25):
        axle, ego_yaw = (v[0] for v in world.ego.poses(time_s))
        middle = axle + 1.45 * np.array([np.cos(ego_yaw), np.sin(ego_yaw)])
        rows = [(*middle, ego_yaw, 2.3, 0.95)]
        for thing in world.objects:
            centre, yaw, present = thing.motion.poses(time_s)
            if present[0]:
                rows.append((*centre[0], yaw[0], thing.size_lwh[0] / 2, thing.size_lwh[1] / 2))
        r = np.array(rows)
        a, b = np.triu_indices(len(r), 1)
        assert not rectangles_overlap(r[a, :2], r[a, 2], r[a, 3:], r[b, :2], r[b, 2], r[b, 3:]).any(), time_s


def test_voxels_in_a_box_have_its_class(world):
    time_s = 4.5
    pose = world.global_from_ego(time_s)
    voxels = voxel_classes(world.mesh_at(time_s), pose)
    centres = transform_points(pose, OCC3D_GRID.centres_of(np.argwhere(voxels != FREE)))
    classes, found = voxels[voxels != FREE], 0
    for thing in world.objects:
        centre, yaw, present = thing.motion.poses(time_s)
        if not present[0]:
            continue
        length, width, height = thing.size_lwh
        box = np.array([[*centre[0], height / 2, length, width, height - 0.02, yaw[0], 0, 0]])
        kinds = set(classes[points_in_boxes(centres, box).reshape(len(centres), -1)[:, 0]].tolist())
        assert kinds <= {Semantic[thing.name.upper()]}, (thing.name, kinds)
        found += bool(kinds)
    assert found > 8


def test_lane_labels_are_linked_where_they_touch(world):
    time_s = 4.5
    labels = label_lanes(
        world.layout, RayCaster(world.mesh_at(time_s)), world.global_from_ego(time_s), camera_rig(160)[0]
    )
    ends, starts = (np.stack([line[k] for line in labels.centrelines]) for k in (-1, 0))
    gaps = np.linalg.norm(ends[:, None] - starts[None], axis=-1)
    np.testing.assert_array_equal(gaps < 0.01, labels.lane_lane == 1)


def test_drives_turn_and_people_stop():
    worlds = [build_world(3, "val", index, 20, "turning") for index in range(4)]
    turned = [np.abs(np.diff(np.unwrap(w.ego.poses(w.keyframe_times_s)[1]))).max() for w in worlds]
    assert sum(np.rad2deg(turned) > 8) >= 2
    people = [thing for w in worlds for thing in w.objects if thing.attribute == "pedestrian.moving"]
    attributes = [{thing.attribute_at(t) for t in np.arange(0, 9.5, 0.5)} for thing in people]
    assert sum("pedestrian.standing" in found for found in attributes) >= 2


def test_a_timetable_brakes_stands_and_goes_on():
    path = np.stack([np.arange(0.0, 101.0), np.zeros(101)], 1)
    table = plan_timetable(path, 8.0, 10.0, [(40.0, 3.0)])
    stop = table.times_s[np.searchsorted(table.s_m, 39.9)]
    times = np.arange(0.0, stop + 6.0, 0.05)
    speed = table.speed_mps(times)
    assert speed[0] == pytest.approx(8.0, abs=0.1) and speed.max() < 8.01
    assert 2.8 < (speed < 0.05).sum() * 0.05 < 3.6
    assert np.diff(speed[::8]).min() / 0.4 > -2.6 and speed[-1] > 2.0
    assert table.passing(60.0, 1.5).at(1.5) == pytest.approx(60.0)


def test_a_set_of_turning_streets_is_written_and_repeated(tmp_path: Path):
    sizes = {
        "num_scenes": 2,
        "keyframes_per_scene": 2,
        "image_width_px": 96,
        "seed": 4,
        "labels": ["lanes"],
        "progress": False,
    }
    one = synthesize(tmp_path / "one", "val", streets="turning", workers=1, **sizes)
    two = synthesize(tmp_path / "two", "val", streets="turning", workers=2, **sizes)
    assert json.loads((one / "synthetic_manifest.json").read_text())["streets"] == "turning"
    files = sorted(p.relative_to(one) for p in one.rglob("*") if p.is_file())
    assert files == sorted(p.relative_to(two) for p in two.rglob("*") if p.is_file())
    assert all((one / f).read_bytes() == (two / f).read_bytes() for f in files)
    with pytest.raises(ValueError, match=r"streets: has turning, requested plain"):
        synthesize(one, "val", workers=1, **sizes)


def test_mixed_scenes_are_those_of_their_family():
    kinds = set()
    for index in (3, 4):
        mixed = build_world(5, "train", index, 2, "mixed")
        alone = build_world(5, "train", index, 2, "turning" if mixed.layout.kind == "turning" else "plain")
        assert mixed.scenery.mesh.vertices.tobytes() == alone.scenery.mesh.vertices.tobytes()
        kinds.add(mixed.layout.kind == "turning")
    assert kinds == {True, False}


@pytest.mark.parametrize("streets", ["turning", "towns"])
def test_street_maps_have_every_street_and_its_kind(streets: str) -> None:
    world = build_world(3, "val", 0, 4, streets)
    graph = street_graph(world.layout)
    assert len(graph.lines) == len(graph.kinds) == len(world.layout.streets)
    names = {STREET_KINDS[kind] for kind in graph.kinds}
    assert "main_road" in names and names <= {"main_road", "side_road"}
