"""BEV maps on other grids and in other frames."""

import math

import pytest
import torch

from drivestack.bev.map.resample import resample_bev, sample_bev
from drivestack.core.batch import BevFeatures
from drivestack.geometry import BevGrid

GRID = BevGrid(-8.0, -8.0, 8.0, 8.0, num_x=32, num_y=32)


def ramp(grid: BevGrid) -> torch.Tensor:
    """[1, 2, num_y, num_x]: each cell holds its own centre (x, y)."""
    return torch.tensor(grid.cell_centres(), dtype=torch.float32).permute(2, 0, 1)[None]


def lidar_pose(yaw_rad: float, x_m: float, y_m: float) -> torch.Tensor:
    pose = torch.eye(4)
    pose[:2, :2] = torch.tensor([[math.cos(yaw_rad), -math.sin(yaw_rad)], [math.sin(yaw_rad), math.cos(yaw_rad)]])
    pose[:3, 3] = torch.tensor([x_m, y_m, 1.8])
    return pose[None]


@pytest.mark.parametrize("yaw_rad", [0.0, -math.pi / 2, 0.3])
def test_a_cell_of_the_ego_grid_holds_the_lidar_coordinates_of_its_centre(yaw_rad: float):
    target = BevGrid(-3.0, -4.0, 3.0, 4.0, num_x=12, num_y=10)
    ego_from_bev = lidar_pose(yaw_rad, 0.9, -0.2)
    found = resample_bev(BevFeatures(ramp(GRID), GRID), target, ego_from_bev)[0]  # lidar (x, y)
    centres = torch.tensor(target.cell_centres(), dtype=torch.float32)
    ego = torch.cat([centres, torch.full((*centres.shape[:2], 1), 1.8), torch.ones(*centres.shape[:2], 1)], -1)
    expected = (torch.linalg.inv(ego_from_bev[0]) @ ego[..., None])[..., :2, 0]
    torch.testing.assert_close(found.permute(1, 2, 0), expected, atol=1e-4, rtol=0)


def test_outside_the_map_is_zero_and_the_same_grid_is_the_identity():
    maps = torch.rand(2, 3, 32, 32)
    same = torch.eye(2, 3).expand(2, 2, 3)
    torch.testing.assert_close(sample_bev(maps, GRID, GRID, same), maps, atol=1e-5, rtol=0)
    far = BevGrid(100.0, 100.0, 110.0, 110.0, num_x=4, num_y=4)
    assert not sample_bev(maps, GRID, far, same).any()


def test_half_precision_maps_keep_their_dtype_and_exact_positions():
    maps = ramp(GRID).bfloat16()
    found = resample_bev(BevFeatures(maps, GRID), GRID, lidar_pose(0.0, 0.0, 0.0))
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found, maps, atol=0.05, rtol=0)
