"""Draws docs/occupancy_axes.png, the picture of docs/occupancy.md, with voxels of a synthetic set:

drivestack synthesize data/small --scenes 2 --keyframes 2 && python docs/draw_occupancy.py data/small
"""

import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

from drivestack.data_tools.labels.files import read_occupancy
from drivestack.geometry import OCC3D_GRID
from drivestack.view.voxels import Viewpoint, render_voxels

X, Y, Z, CAR = "#d62728", "#2ca02c", "#1f77b4", "0.35"
ROAD, WALL, PARKED = "#7b8196", "#c9b999", "#f09a2c"
LIDAR_M, CAMERA_M, LIDAR_LATER_M = (0.9, 1.84), (1.7, 1.5), (13.4, 1.84)


def arrow(ax, start, end, colour, label):
    ax.annotate("", end, start, arrowprops=dict(arrowstyle="-|>", color=colour, lw=2))
    ax.annotate(label, end, (4, 4), textcoords="offset points", color=colour, weight="bold")


def from_above(ax):
    """The grid with the EGO frame, forward (x) to the right."""
    grid = OCC3D_GRID
    for k in range(0, 201, 10):
        at = grid.x_min + k * grid.voxel_m[0]
        ax.plot([at, at], [grid.y_min, grid.y_max], color="0.88", lw=0.7)
        ax.plot([grid.x_min, grid.x_max], [at, at], color="0.88", lw=0.7)
    ax.add_patch(plt.Rectangle((-1.0, -0.9), 4.1, 1.8, fc=CAR, ec=CAR))
    arrow(ax, (0, 0), (16, 0), X, "x forward")
    arrow(ax, (0, 0), (0, 14), Y, "y left")
    for x, y, text in ((-39, -39, "[0, 0, :]"), (25, -39, "[199, 0, :]"), (-39, 36, "[0, 199, :]")):
        ax.text(x, y, text, fontsize=9, family="monospace")
    title = "semantics[ix, iy, iz] from above: 200 x 200 voxels\nof 0.4 m in the EGO frame (not the LIDAR's)"
    ax.set_title(title, fontsize=10)
    ax.set_xlabel("x = -40 + (ix + 0.5) * 0.4  metres")
    ax.set_ylabel("y = -40 + (iy + 0.5) * 0.4  metres")
    ax.set_xlim(grid.x_min, grid.x_max)
    ax.set_ylim(grid.y_min, grid.y_max)
    ax.set_aspect("equal")


def street():
    """{0: free, 1: road, 2: parked car, 3: house} of a slice along the street, [ix, iz] from x = -4 m on."""
    kinds = np.zeros((60, 16), int)
    kinds[:, 2] = 1
    kinds[30:41, 3:6] = 2
    kinds[31:40, 4:5] = 0  # surfaces only: inside it is free, and unseen
    kinds[54, 3:] = 3
    return kinds


def seen(kinds, origins_m, steepest):
    """Voxels that a straight line from one of the places reaches before it meets another surface; the road is flat,
    so it hides only what is below."""
    centre_m = np.stack(np.meshgrid(np.arange(60) * 0.4 - 3.8, np.arange(16) * 0.4 - 0.8, indexing="ij"), -1)
    out = np.zeros(kinds.shape, bool)
    for origin in origins_m:
        away = centre_m - origin
        ahead = (np.abs(away[..., 1]) < steepest * np.abs(away[..., 0])) & ((away[..., 0] > 0) | (steepest > 0.5))
        for ix, iz in np.argwhere(ahead):
            line = np.add(origin, np.linspace(0, 1, 400)[:, None] * away[ix, iz])
            cells = np.unique(np.floor((line - [-4.0, -1.0]) / 0.4).astype(int), axis=0)
            others = cells[((cells >= 0) & (cells < kinds.shape)).all(1) & (cells != [ix, iz]).any(1)]
            out[ix, iz] |= iz >= 2 and not (kinds[tuple(others.T)] > 1).any()
    return out


def slice_along(ax, origins_m, steepest, title):
    kinds = street()
    mask = seen(kinds, origins_m, steepest)
    for ix, iz in np.ndindex(kinds.shape):
        colour = ["white", ROAD, PARKED, WALL][kinds[ix, iz]]
        ax.add_patch(plt.Rectangle((ix * 0.4 - 4, iz * 0.4 - 1), 0.4, 0.4, fc=colour, ec="0.8", lw=0.4))
        if not mask[ix, iz]:
            ax.add_patch(plt.Rectangle((ix * 0.4 - 4, iz * 0.4 - 1), 0.4, 0.4, fc="k", ec="none", alpha=0.35))
    ax.add_patch(plt.Rectangle((-1.0, 0.25), 4.1, 0.8, fc="white", ec=CAR, lw=1.5))
    ax.add_patch(plt.Rectangle((-0.3, 1.05), 2.2, 0.5, fc="white", ec=CAR, lw=1.5))
    for origin in origins_m:
        ax.plot(*origin, "o", color=X, ms=5)
    arrow(ax, (0, 0), (2.6, 0), X, "x")
    arrow(ax, (0, 0), (0, 2.2), Z, "z")
    ax.set_title(title, fontsize=10)
    ax.set_xlim(-4, 20)
    ax.set_ylim(-1, 5.4)
    ax.set_yticks([-1, 0, 5.4], ["-1 (iz = 0)", "0", "5.4"])
    ax.set_aspect("equal")


def rendered(ax, labels, mask, title):
    ax.imshow(render_voxels(labels.semantics, mask, Viewpoint.behind(760, 560), background=(245, 245, 245)))
    ax.set_title(title, fontsize=10)
    ax.axis("off")


if __name__ == "__main__":
    label_files = sorted(Path(sys.argv[1]).glob("gts/*/*/labels.npz"))
    labels = read_occupancy(label_files[-1])
    figure = plt.figure(figsize=(15, 11), dpi=80)
    rows = figure.add_gridspec(3, 2, height_ratios=(1, 1, 2.35), width_ratios=(1, 1.35))
    from_above(figure.add_subplot(rows[:2, 0]))
    slice_along(
        figure.add_subplot(rows[0, 1]),
        [CAMERA_M],
        0.36,
        "mask_camera: what the cameras see now, up to and including the first surface (dark: 0, not seen)",
    )
    slice_along(
        figure.add_subplot(rows[1, 1]),
        [LIDAR_M, LIDAR_LATER_M],
        0.6,
        "mask_lidar: what LiDAR rays of the whole drive passed or hit (dots: two of its places; dark: 0)",
    )
    lower = rows[2, :].subgridspec(1, 2, wspace=0.02)
    rendered(figure.add_subplot(lower[0]), labels, labels.mask_camera, "the same labels, faded where mask_camera is 0")
    rendered(figure.add_subplot(lower[1]), labels, labels.mask_lidar, "faded where mask_lidar is 0")
    figure.tight_layout()
    figure.canvas.draw()
    picture = Image.fromarray(np.asarray(figure.canvas.buffer_rgba())[..., :3])
    picture.quantize(256, Image.Quantize.FASTOCTREE).save(Path(__file__).with_name("occupancy_axes.png"), optimize=True)
