"""Boxes, perspective targets and ego motion agree with upstream's."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from drivestack.bev.published.ego_motion import can_bus_deltas
from drivestack.core.frames import Annotations, CameraView, Frame, past_bev_from_current
from drivestack.data_tools.clips.transforms import BdaDraw, ImagePlacement
from drivestack.data_tools.labels.ground_truth import ground_truth
from drivestack.data_tools.labels.mono_targets import mono_targets
from drivestack.geometry import CameraModel, boxes_from_legacy, pose, quaternion_to_matrix, rotation_z

PC_RANGE = (-51.2, -51.2, -5, 51.2, 51.2, 3)
NAMES = ["car", "pedestrian", "bus", "truck", "traffic_cone", "animal"]


def annotations(centre, rotation, size_lwh, names, lidar, radar, velocity, attributes=None) -> Annotations:
    n = len(names)
    return Annotations(
        names=list(names),
        centre_global_m=np.asarray(centre, float),
        rotation_global=np.asarray(rotation, float),
        size_lwh_m=np.asarray(size_lwh, float),
        velocity_global_mps=np.asarray(velocity, float),
        attributes=attributes or [""] * n,
        num_lidar_points=np.asarray(lidar),
        num_radar_points=np.asarray(radar),
        tokens=[""] * n,
        instance_tokens=[""] * n,
    )


def frame(notes: Annotations | None) -> Frame:
    return Frame("token", "scene", "scene-0000", 0, (), np.eye(4), np.eye(4), annotations=notes)


@pytest.mark.parametrize(("entry", "use_valid_flag"), [("lidarpts", False), ("validflag", True)])
def test_selected_boxes_agree_with_upstream(reference_dir, classes, entry, use_valid_flag):
    data = np.load(reference_dir / "data" / f"ann_info_{entry}.npz")
    lidar = data["in.num_lidar_pts"]
    valid = data["in.valid_flag"]
    # The flag of the info files is "lidar + radar points > 0".
    radar = np.where(valid & (lidar == 0), 1, 0)
    lidar = np.where(valid, lidar, 0) if use_valid_flag else lidar
    notes = annotations(
        data["in.nusc_center"],
        rotation_z(data["in.nusc_yaw"]),
        data["in.nusc_wlh"][:, [1, 0, 2]],
        NAMES,
        lidar,
        radar,
        data["in.gt_velocity"],
    )
    boxes, labels = ground_truth(frame(notes), classes, PC_RANGE, use_valid_flag)
    known = data["out.labels_filtered"] >= 0  # upstream drops unknown classes one step later
    np.testing.assert_array_equal(labels, data["out.labels_filtered"][known])
    expected = boxes_from_legacy(data["out.boxes_filtered"][known].astype(np.float64))
    np.testing.assert_allclose(boxes, expected, atol=1e-5)


def test_bev_augmentation_comes_before_the_range_and_unlabelled_frames_have_no_boxes(classes):
    notes = annotations([[51.0, 0, 0]], [np.eye(3)], [[4, 2, 1.5]], ["car"], [5], [0], [[np.nan, np.nan]])
    assert len(ground_truth(frame(notes), classes, PC_RANGE)[1]) == 1
    assert len(ground_truth(frame(notes), classes, PC_RANGE, bda=BdaDraw(scale=1.05))[1]) == 0
    assert ground_truth(frame(notes), classes, PC_RANGE)[0][0, 7:].tolist() == [0, 0]
    kept, _ = ground_truth(frame(notes), classes, PC_RANGE, bda=BdaDraw(0.1, flip_x=True), keep_unknown_velocity=True)
    assert np.isnan(kept[0, 7:]).all() and np.isfinite(kept[0, :7]).all()
    boxes, labels = ground_truth(frame(None), classes, PC_RANGE)
    assert boxes.shape == (0, 9) and labels.shape == (0,)


def test_perspective_targets_agree_with_upstream(reference_dir, classes):
    data = np.load(reference_dir / "data" / "mono_annotations.npz")
    names = ["car", "pedestrian", "truck", "bus", "traffic_cone", "", "bicycle"]
    attributes = ["vehicle.moving", "pedestrian.standing", "vehicle.stopped", "", "", "", "cycle.without_rider"]
    rotation = quaternion_to_matrix(data["in.quat"])
    notes = annotations(
        data["in.center"],
        rotation,
        data["in.wlh"][:, [1, 0, 2]],
        names,
        data["in.num_lidar"],
        data["in.num_radar"],
        data["in.velocity"][:, :2],
        attributes,
    )
    camera = CameraModel(data["in.intrinsics"], 1600, 900)
    view = CameraView("CAM", camera, np.eye(4), np.eye(4), 0)
    whole = ImagePlacement.of(camera, (0, 0, 1, 1), 900)
    target = mono_targets(notes, view, classes, whole)
    assert target is not None
    np.testing.assert_allclose(target.boxes_xyxy_px, data["out.inst.gt_boxes"], atol=1e-3)
    np.testing.assert_array_equal(target.labels, data["out.inst.gt_classes"])
    np.testing.assert_allclose(target.boxes3d_camera, data["out.bbox3d"], atol=1e-5)
    np.testing.assert_allclose(target.boxes3d_camera[:, :4], data["out.inst.quat"], atol=1e-6)
    np.testing.assert_allclose(target.boxes3d_camera[:, 7:], data["out.inst.size"], atol=1e-6)
    np.testing.assert_array_equal(target.attributes, data["out.inst.attributes"])
    np.testing.assert_allclose(target.speed, data["out.inst.speeds"], atol=1e-6)
    centres = target.boxes3d_camera[:, 4:7].double().numpy()
    uv, depth = camera.project(centres)
    np.testing.assert_allclose(uv, data["out.inst.proj_ctr"], atol=2e-3)
    np.testing.assert_allclose(depth[:, None], data["out.inst.depth"], atol=1e-5)
    np.testing.assert_allclose(np.linalg.inv(camera.intrinsics), data["out.inv_intrinsics"], atol=1e-6)

    # In a crop that ends above the cone and the bicycle these two are gone, and the rest is clipped and scaled.
    window = ImagePlacement.of(camera, (0, 0, 1, 600 / 900), 300)
    cropped = mono_targets(notes, view, classes, window)
    assert cropped.labels.tolist() == [3, 6]
    expected = target.boxes_xyxy_px[:2].clone()
    expected[:, 3] = 600
    torch.testing.assert_close(cropped.boxes_xyxy_px, expected / 2)
    nothing = mono_targets(notes, view, classes, ImagePlacement.of(camera, (0, 0, 1, 0.3), 100))
    assert nothing is None


def test_past_images_see_points_of_the_current_frame_as_upstream_does(reference_dir):
    data = np.load(reference_dir / "data" / "temporal_alignment_v2.npz")

    def read(i: int) -> Frame:
        get = lambda name: data[f"in.infos.{i}.{name}"]
        ego_from_bev = pose(get("lidar2ego_rotation"), get("lidar2ego_translation"))
        global_from_ego = pose(get("ego2global_rotation"), get("ego2global_translation"))
        views = tuple(
            CameraView(
                str(n),
                CameraModel(get("cam_intrinsic")[n], 160, 90),
                ego_from_bev @ pose(get("sensor2lidar_rotation")[n], get("sensor2lidar_translation")[n]),
                global_from_ego,
                0,
            )
            for n in range(3)
        )
        return Frame(str(i), "s", "", 0, views, global_from_ego, ego_from_bev)

    frames = [read(i) for i in range(3)]
    for i, name in enumerate(["m2", "m1", "0"]):
        past_from_current = past_bev_from_current(frames[2], frames[i])
        if name != "0":
            current_from_past = data[f"out.lidaradj2lidarcurr.{name}"]  # float32: 6e-5 m at 1,000 m
            np.testing.assert_allclose(np.linalg.inv(past_from_current), current_from_past, atol=2e-4)
        for n, view in enumerate(frames[i].cameras):
            np.testing.assert_allclose(frames[i].image_from_bev(view), data[f"out.raw_lidar2img.{i}"][n], atol=1e-6)
            aligned = frames[i].image_from_bev(view) @ past_from_current
            # Upstream keeps the motion in float32 (6e-5 m off at 1,000 m, times a focal length of 126 px).
            np.testing.assert_allclose(aligned, data[f"out.aligned_lidar2img.{name}"][n], rtol=1e-5, atol=2e-2)


def test_can_bus_deltas_agree_with_upstream(reference_dir):
    data = np.load(reference_dir / "data" / "can_bus_v1.npz")
    deltas, has_previous = can_bus_deltas(data["in.raw_can_bus"], ["a", "a", "a"])
    np.testing.assert_allclose(deltas, data["out.delta_can_bus"], atol=1e-9)
    np.testing.assert_array_equal(has_previous, data["out.prev_bev_exists"])
    deltas, has_previous = can_bus_deltas(data["in.raw_can_bus"], ["a", "b", "b"])
    assert has_previous.tolist() == [False, False, True]
    assert not deltas[1, :3].any() and deltas[1, 17] == 0
