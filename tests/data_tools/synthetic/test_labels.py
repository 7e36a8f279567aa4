"""Voxel and lane labels of the synthetic world agree with its boxes, its pictures and one another."""

from pathlib import Path

import numpy as np
import pytest

from drivestack.core.labels import ELEMENT_ATTRIBUTES
from drivestack.core.street_maps import STREET_KINDS
from drivestack.data_tools.readers.nuscenes.reader import read_nuscenes
from drivestack.data_tools.synthetic import build_world, synthesize
from drivestack.data_tools.synthetic.labels.lanes import LANE_POINTS, LANE_RANGE_M, label_lanes, street_graph
from drivestack.data_tools.synthetic.labels.voxels import FREE, label_voxels
from drivestack.data_tools.synthetic.sensing.observe import observe, take_picture
from drivestack.data_tools.synthetic.sensing.renderer import RayCaster
from drivestack.data_tools.synthetic.sensing.sensors import RIGS, camera_rig, ego_from_lidar
from drivestack.data_tools.synthetic.world.mesh import Semantic
from drivestack.geometry import OCC3D_GRID, invert_pose, points_in_boxes, transform_points

SEED, SCENE, KEYFRAMES = 5, 3, 3  # a crossing, a red light in view
FLAT = [Semantic.DRIVEABLE_SURFACE, Semantic.OTHER_FLAT, Semantic.SIDEWALK, Semantic.TERRAIN]


class Moment:
    def __init__(self) -> None:
        self.world = build_world(SEED, "train", SCENE, KEYFRAMES)
        self.time_s = float(self.world.keyframe_times_s[0])
        self.rig = camera_rig(320)
        self.world_from_ego = self.world.global_from_ego(self.time_s)
        self.seen = observe(self.world, self.time_s, self.rig, [0])
        lidar = (self.world_from_ego @ ego_from_lidar())[None, :3, 3]
        self.voxels = label_voxels(self.seen, self.world_from_ego, self.rig, lidar)
        self.lanes = label_lanes(self.world.layout, self.seen.caster, self.world_from_ego, self.rig[0])


@pytest.fixture(scope="module")
def moment() -> Moment:
    return Moment()


def test_a_voxel_inside_a_box_has_the_class_of_the_box(moment):
    centres = OCC3D_GRID.centres_of(np.argwhere(moment.voxels.semantics != FREE))
    classes = moment.voxels.semantics[moment.voxels.semantics != FREE]
    found = 0
    for thing in moment.world.objects:
        centre, yaw, present = thing.motion.poses(moment.time_s)
        if not present[0]:
            continue
        length, width, height = thing.size_lwh
        box = np.array([[*centre[0], height / 2, length, width, height - 0.02, yaw[0], 0, 0]])
        world = transform_points(moment.world_from_ego, centres)
        inside = points_in_boxes(world, box).reshape(len(centres), -1)[:, 0]
        kinds = set(classes[inside].tolist())
        assert kinds <= {Semantic[thing.name.upper()]}, (thing.name, kinds)
        found += bool(kinds)
    assert found > 10


def test_every_pixel_ends_in_an_occupied_observed_voxel_of_its_class(moment):
    total = agreeing = 0
    for picture, camera in zip(moment.seen.pictures, moment.rig):
        rays = camera.rays
        near = np.isfinite(picture.depth_m)
        points = transform_points(
            camera.ego_from_camera, rays[near] * (picture.depth_m[near] / rays[near][:, 2])[:, None]
        )
        voxels, inside = OCC3D_GRID.voxels_of(points)
        index = tuple(voxels[inside].T)
        assert moment.voxels.mask_camera[index].all()
        truth, label = picture.semantic[near][inside], moment.voxels.semantics[index]
        assert (label != FREE).all()
        total, agreeing = total + len(truth), agreeing + (truth == label).sum()
    assert agreeing / total > 0.95  # the rest are voxels of two classes


def test_lidar_points_end_in_observed_voxels_and_hidden_space_is_not_observed(moment):
    ego = transform_points(ego_from_lidar(), moment.seen.lidar.points[:, :3])
    voxels, inside = OCC3D_GRID.voxels_of(ego)
    assert moment.voxels.mask_lidar[tuple(voxels[inside].T)].all()
    observed = moment.voxels.mask_lidar | moment.voxels.mask_camera
    assert 0.2 < observed.mean() < 0.9
    behind_walls = moment.voxels.semantics == Semantic.MANMADE
    assert not moment.voxels.mask_camera[behind_walls].all()


def test_ground_lies_where_the_car_stands(moment):
    ix, iy, iz = OCC3D_GRID.voxels_of([1.0, 0.0, 0.0])[0]
    assert moment.voxels.semantics[ix, iy, iz] == Semantic.DRIVEABLE_SURFACE
    assert not np.isin(moment.voxels.semantics[:, :, 4:], FLAT).any()


def test_centrelines_run_over_driveable_ground_in_range(moment):
    lanes = moment.lanes
    assert len(lanes.centrelines) > 10 and lanes.is_connector.any()
    for line in lanes.centrelines:
        assert line.shape == (LANE_POINTS, 3) and line.dtype == np.float32
        for axis, (low, high) in enumerate(LANE_RANGE_M):
            assert (line[:, axis] >= low - 1e-3).all() and (line[:, axis] <= high + 1e-3).all()
        voxels, inside = OCC3D_GRID.voxels_of(line)
        below = moment.voxels.semantics[tuple(voxels[inside].T)]
        # what is no street there is something that stands on it
        assert not np.isin(below, [Semantic.SIDEWALK, Semantic.TERRAIN, Semantic.OTHER_FLAT, FREE]).any()


def test_lanes_run_beside_the_street_graph(moment):
    graph, layout = street_graph(moment.world.layout), moment.world.layout
    assert [STREET_KINDS[kind] for kind in graph.kinds] == ["main_road"] + ["side_road"] * (len(layout.streets) - 1)
    points = np.concatenate(graph.lines)
    for lane in layout.lanes.values():
        away = np.linalg.norm(lane.centreline[:, None, :2] - points, axis=2).min(1)
        assert away.max() < layout.main.lanes_half_m + 5.0  # connectors cut corners


def test_connected_lanes_touch_and_lanes_that_touch_head_on_are_connected(moment):
    lines, links = moment.lanes.centrelines, moment.lanes.lane_lane
    ends, starts = np.stack([line[-1] for line in lines]), np.stack([line[0] for line in lines])
    gaps = np.linalg.norm(ends[:, None] - starts[None], axis=-1)
    assert links.sum() > 10
    assert (gaps[links == 1] < 0.01).all()
    np.testing.assert_array_equal(gaps < 0.01, links == 1)


def test_a_traffic_element_lies_on_its_pixels(moment):
    """Removing what stands in the box changes the picture there: the box is on the light or sign."""
    lanes, rig = moment.lanes, camera_rig(1600)
    labels = label_lanes(moment.world.layout, moment.seen.caster, moment.world_from_ego, rig[0])
    assert len(labels.attributes) and lanes.lane_element.shape == (len(lanes.centrelines), len(lanes.attributes))
    picture = take_picture(
        moment.seen.caster, rig[0], moment.world_from_ego, moment.world.light, np.random.default_rng(0)
    )
    elements = {e.state: e for e in moment.world.layout.elements}
    for (left, top, right, bottom), attribute in zip(labels.elements_xyxy_px, labels.attributes):
        u, v = int((left + right) / 2), int((top + bottom) / 2)
        assert picture.semantic[v, u] == Semantic.MANMADE
        element = elements[ELEMENT_ATTRIBUTES[attribute]]
        camera_from_world = invert_pose(moment.world_from_ego @ rig[0].ego_from_camera)
        nearest = min(
            transform_points(camera_from_world, np.array([e.centre]))[0, 2]
            for e in moment.world.layout.elements
            if abs(transform_points(camera_from_world, np.array([e.centre]))[0, 2] - picture.depth_m[v, u]) < 1.0
        )
        assert abs(nearest - picture.depth_m[v, u]) < 1.0, element.id


@pytest.mark.parametrize("rig", RIGS)
def test_a_set_with_all_labels_is_read_back(tmp_path: Path, rig: str):
    root = synthesize(
        tmp_path / "set", "train", 1, keyframes_per_scene=2, seed=SEED, image_width_px=160, rig=rig, workers=1,
        progress=False, labels=("occupancy", "lanes", "street_map"),
    )  # fmt: skip
    frames = read_nuscenes(root, "v1.0-trainval", "train")
    for frame in frames:
        assert len(frame.cameras) == len(RIGS[rig]) and frame.cameras[0].name == next(iter(RIGS[rig]))
        assert Path(frame.occupancy_path).parts[-4:-1] == ("gts", frame.scene_name, frame.token)
        assert len(frame.lanes.centrelines) == len(frame.lanes.lane_lane) > 0
        assert len(frame.street_map.lines) == len(frame.street_map.kinds) > 0
    if rig == "argoverse2":
        front, other = frames[0].cameras[:2]
        assert front.camera.height_px == other.camera.width_px == 160


def test_a_world_is_labelled_the_same_twice(moment):
    again = Moment()
    for name in ("semantics", "mask_lidar", "mask_camera"):
        np.testing.assert_array_equal(getattr(again.voxels, name), getattr(moment.voxels, name))
    np.testing.assert_array_equal(again.lanes.lane_lane, moment.lanes.lane_lane)
    assert RayCaster(moment.world.mesh_at(0.0)).mesh.semantic.dtype == np.uint8
