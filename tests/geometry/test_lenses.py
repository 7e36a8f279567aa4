"""Lenses against recorded projections (OpenCV and closed formulas), their inverses, limits, and image operations."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from drivestack.geometry import (
    CameraModel,
    Lens,
    brown_conrady,
    cylinder,
    double_sphere,
    f_theta,
    kannala_brandt,
    mei,
)
from drivestack.geometry.lenses import mirrored_row, pinhole_row, project_rows, ray_rows

VECTORS = json.loads((Path(__file__).parents[1] / "reference/geometry/lens_vectors.json").read_text())["models"]


def camera_of(name: str) -> CameraModel:
    p: dict[str, Any] = VECTORS[name]["params"]
    size = p.get("width", 1920), p.get("height", 1536)
    if name.startswith("brown"):
        return brown_conrady(p["K"], *size, next(p[key] for key in p if key.startswith("D")))
    if name.startswith("kannala"):
        return kannala_brandt(p["K"], *size, p["D_k1_k2_k3_k4"])
    if name.startswith("mei"):
        return mei(p["K"], *size, p["xi"], p["D_k1_k2_p1_p2"])
    if name == "double_sphere":
        return double_sphere([[p["fx"], 0, p["cx"]], [0, p["fy"], p["cy"]], [0, 0, 1]], *size, p["xi"], p["alpha"])
    return f_theta(
        *size, (p["cx"], p["cy"]), p["fw_poly_theta_rad_to_r_px_ascending"], linear=p.get("linear_c_d_e", (1, 0, 0))
    )


def angle_between(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Accurate near zero, unlike an arc cosine."""
    return 2 * np.arcsin(np.linalg.norm(a - b, axis=-1) / 2)


@pytest.mark.parametrize("name", VECTORS)
def test_recorded_projections_there_and_back(name: str) -> None:
    camera, points = camera_of(name), np.array(VECTORS[name]["points_camera"])
    uv, depth = camera.project(points)
    assert np.abs(uv - VECTORS[name]["uv"]).max() < 1e-9
    assert np.array_equal(depth, points[:, 2])
    directions = points / np.linalg.norm(points, axis=1, keepdims=True)
    assert angle_between(camera.unproject(uv), directions).max() < 1e-9


@pytest.mark.parametrize("name", VECTORS)
def test_torch_rows_agree_with_numpy(name: str) -> None:
    camera, points = camera_of(name), np.array(VECTORS[name]["points_camera"])
    rows = torch.from_numpy(camera.row).expand(len(points), -1)
    uv, seen = project_rows(torch.from_numpy(points), rows)
    assert seen.all() and np.abs(uv.numpy() - VECTORS[name]["uv"]).max() < 1e-9
    rays, seen = ray_rows(uv, rows)
    directions = points / np.linalg.norm(points, axis=1, keepdims=True)
    assert seen.all() and angle_between(rays.numpy(), directions).max() < 1e-9


def test_cameras_of_different_lenses_in_one_call() -> None:
    cameras = [camera_of(name) for name in VECTORS] + [CameraModel(np.diag([900.0, 900, 1]), 640, 480)]
    points = torch.tensor([[0.3, -0.2, 2.0], [-0.5, 0.1, 1.0]], dtype=torch.float64)
    rows = torch.stack([torch.from_numpy(c.row) for c in cameras]).repeat_interleave(2, 0)
    uv, seen = project_rows(points.repeat(len(cameras), 1), rows)
    rays, found = ray_rows(uv, rows)
    assert seen.all() and found.all()
    expected = np.concatenate([c.project(points.numpy())[0] for c in cameras])
    assert np.abs(uv.numpy() - expected).max() < 1e-9
    unit = torch.nn.functional.normalize(points, dim=1).repeat(len(cameras), 1)
    assert (rays - unit).abs().max() < 1e-9


def test_folded_points_are_not_seen() -> None:
    entry = VECTORS["brown_conrady_5"]
    camera = camera_of("brown_conrady_5")
    folded = np.array(entry["folded_points"]["points_camera"])
    assert np.isnan(camera.project(folded)[0]).all()
    seen = project_rows(torch.from_numpy(folded), torch.from_numpy(camera.row).expand(len(folded), -1))[1]
    assert not seen.any()
    assert camera.lens is not None and math.degrees(camera.lens.limit_rad) == pytest.approx(
        entry["radial_fold_deg"], abs=0.01
    )


def test_a_fisheye_sees_behind_itself_and_a_pinhole_does_not() -> None:
    behind = np.array([[1.0, 0.0, -0.1]])
    fisheye = kannala_brandt(np.diag([300.0, 300, 1]), 640, 480, (0.01, 0, 0, 0))
    assert np.isfinite(fisheye.project(behind)[0]).all()
    assert np.isnan(fisheye.pinhole.project(behind)[0]).all()
    narrow = f_theta(640, 480, (320, 240), [0, 300.0], max_angle_rad=1.0)
    assert np.isnan(narrow.project([[math.sin(1.01), 0, math.cos(1.01)]])[0]).all()


def test_a_backward_polynomial_is_exact_in_its_own_direction() -> None:
    p = VECTORS["f_theta"]["params"]
    polynomial = [0.0, *p["bw_poly_r_px_to_theta_rad_ascending_fit"][1:]]
    camera = f_theta(p["width"], p["height"], (p["cx"], p["cy"]), backward=polynomial)
    uv = np.array([[p["cx"] + 700.0, p["cy"]], [p["cx"], p["cy"] - 500.0], [p["cx"] + 3.0, p["cy"] + 4.0]])
    rays = camera.unproject(uv)
    radius = np.array([700.0, 500.0, 5.0])
    expected = sum(c * radius**i for i, c in enumerate(polynomial))
    assert np.abs(np.arctan2(np.hypot(rays[:, 0], rays[:, 1]), rays[:, 2]) - expected).max() < 1e-12
    assert np.abs(camera.project(rays * 7)[0] - uv).max() < 1e-9


@pytest.mark.parametrize("name", ["brown_conrady_12_thin_prism", "kannala_brandt_fisheye", "mei_omnidirectional"])
def test_resized_cropped_and_flipped_like_the_image(name: str) -> None:
    camera, points = camera_of(name), np.array(VECTORS[name]["points_camera"])
    uv = np.array(VECTORS[name]["uv"])
    resized = camera.resized(camera.width_px // 2, camera.height_px * 2)
    scale = [camera.width_px // 2 / camera.width_px, 2.0]
    assert np.abs(resized.project(points)[0] - uv * scale).max() < 1e-9
    assert np.abs(camera.cropped(30, 20, 100, 100).project(points)[0] - (uv - [30, 20])).max() < 1e-9
    mirrored = camera.flipped().project(points)[0]
    assert np.abs(mirrored - np.stack([camera.width_px - uv[:, 0], uv[:, 1]], 1)).max() < 1e-9


@pytest.mark.parametrize("name", VECTORS)
def test_a_mirrored_lens_sees_the_mirrored_world(name: str) -> None:
    camera, points = camera_of(name), np.array(VECTORS[name]["points_camera"])
    rows = torch.from_numpy(mirrored_row(camera.row, camera.width_px)).expand(len(points), -1)
    mirrored, seen = project_rows(torch.from_numpy(points * [-1, 1, 1]), rows)
    uv = np.array(VECTORS[name]["uv"])
    assert seen.all()
    assert np.abs(mirrored.numpy() - np.stack([camera.width_px - uv[:, 0], uv[:, 1]], 1)).max() < 1e-9


def test_a_row_of_zeros_stands_for_no_lens_and_breaks_nothing() -> None:
    row = torch.from_numpy(camera_of("kannala_brandt_fisheye").row)
    rows = torch.stack([row, torch.zeros_like(row)])
    pixels = torch.tensor([[900.0, 700.0], [3.0, 4.0]], dtype=torch.float64, requires_grad=True)
    rays, _ = ray_rows(pixels, rows)
    rays.sum().backward()
    assert pixels.grad is not None and torch.isfinite(pixels.grad).all() and torch.isfinite(rays).all()
    assert (
        Lens.of_row(rows[1].tolist()) is None and Lens.of_row(row.tolist()) == camera_of("kannala_brandt_fisheye").lens
    )


def test_gradients_reach_pixels_through_the_inverse() -> None:
    for name in VECTORS:
        camera = camera_of(name)
        uv = torch.tensor(VECTORS[name]["uv"][1:4], dtype=torch.float64, requires_grad=True)
        rows = torch.from_numpy(camera.row).expand(3, -1)
        weight = torch.tensor([[0.3, -0.7, 0.2]], dtype=torch.float64)
        (grad,) = torch.autograd.grad((ray_rows(uv, rows)[0] * weight).sum(), uv)
        step = 1e-3
        for axis in range(2):
            shift = torch.zeros(2, dtype=torch.float64)
            shift[axis] = step
            ahead, behind = ray_rows(uv.detach() + shift, rows)[0], ray_rows(uv.detach() - shift, rows)[0]
            numeric = ((ahead - behind) * weight).sum(1) / (2 * step)
            assert torch.allclose(grad[:, axis], numeric, rtol=1e-4, atol=1e-9), name


def test_a_cylinder_has_equal_angles_and_upright_lines() -> None:
    camera = cylinder(360, 100, math.radians(180))
    assert camera.project([[1.0, 0.0, 1.0]])[0][0, 0] == pytest.approx(180 + 90)
    uv, _ = camera.project([[1.0, y, 1.0] for y in (-0.5, 0.0, 0.5)])
    assert np.ptp(uv[:, 0]) < 1e-12
    rays = camera.unproject(uv)
    assert np.allclose(camera.project(rays)[0], uv)


def test_no_distortion_is_a_pinhole_and_wrong_lenses_are_refused() -> None:
    k = np.diag([500.0, 500, 1])
    assert brown_conrady(k, 10, 10, (0, 0, 0, 0, 0)).lens is None
    with pytest.raises(ValueError, match="4, 5, 8 or 12"):
        brown_conrady(k, 10, 10, (0.1, 0.2, 0.3))
    with pytest.raises(ValueError, match="choose from"):
        Lens("banana")
    with pytest.raises(ValueError, match="finite"):
        kannala_brandt(k, 10, 10, (math.nan, 0, 0, 0))
    with pytest.raises(ValueError, match="forward or backward"):
        f_theta(10, 10, (5, 5))
    with pytest.raises(ValueError, match="no projection matrix"):
        _ = kannala_brandt(k, 10, 10, (0.1, 0, 0, 0)).image_from_camera


def test_pixels_outside_what_a_lens_can_see_have_no_ray() -> None:
    fisheye = kannala_brandt(np.array([[100.0, 0, 320], [0, 100, 240], [0, 0, 1]]), 640, 480, (-0.05, 0, 0, 0))
    rays = fisheye.rays()
    assert np.isnan(rays[0, 0]).all() and np.isfinite(rays[240, 320]).all()
    assert pinhole_row(np.eye(3))[0] == 0
