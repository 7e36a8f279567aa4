"""Draws docs/frames.png, the picture of geometry/README.md: `python docs/draw_frames.py`."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from drivestack.geometry import box_corners_bev

COLOURS = {"x": "#d62728", "y": "#2ca02c", "z": "#1f77b4"}


def axes_at(ax, origin, x_dir, y_dir, name, length=1.6):
    """One frame: its x and y arrows as they look from above."""
    for direction, label in ((x_dir, "x"), (y_dir, "y")):
        tip = np.add(origin, np.multiply(direction, length))
        ax.annotate("", tip, origin, arrowprops=dict(arrowstyle="-|>", color=COLOURS[label], lw=2))
        ax.text(
            *np.add(origin, np.multiply(direction, length + 0.3)), label, color=COLOURS[label], ha="center", va="center"
        )
    ax.plot(*origin, "o", color=COLOURS["z"], ms=5)
    ax.text(
        origin[0] - 0.9,
        origin[1] - 1.45 if name.startswith("ego") else origin[1] - 0.55,
        name,
        fontsize=9,
        weight="bold",
    )


def top_view(ax):
    """Vehicle from above, drawn with the BEV frame's y (forward) to the top of the page."""
    ax.add_patch(plt.Rectangle((-0.95, -1.0), 1.9, 4.7, fill=False, lw=1.5, ec="0.4"))
    axes_at(ax, (0, 0), (0, 1), (-1, 0), "ego (rear axle, on the ground)")
    axes_at(ax, (0, 5.2), (1, 0), (0, 1), "LIDAR (roof; drawn ahead of the car)")
    axes_at(ax, (5.2, 1.4), (1, 0), (0, 0.001), "CAM_FRONT: y points into the ground,")
    ax.annotate("", (5.2, 3.0), (5.2, 1.4), arrowprops=dict(arrowstyle="-|>", color=COLOURS["z"], lw=2))
    ax.text(5.2, 3.3, "z", color=COLOURS["z"], ha="center")
    ax.text(4.3, 0.3, "z is the viewing direction", fontsize=9)
    ax.set_title("Axes seen from above (dots: z up)")
    ax.set_xlim(-4, 10)
    ax.set_ylim(-2, 8)
    ax.set_aspect("equal")
    ax.axis("off")


def bev_view(ax):
    """A BEV grid with a box, indices and yaw."""
    for k in range(9):
        ax.plot([0, 8], [k, k], color="0.85", lw=0.8)
        ax.plot([k, k], [0, 8], color="0.85", lw=0.8)
    box = np.array([[5.0, 4.5, 0, 3.4, 1.6, 1.5, np.deg2rad(40), 0, 0]])
    corners = box_corners_bev(box)[0]
    ax.fill(*corners.T, fc="#ffdd99", ec="k")
    ax.plot(*corners[:2].T, color="#d62728", lw=3)
    ax.annotate("", (5 + 2.6 * np.cos(0.698), 4.5 + 2.6 * np.sin(0.698)), (5, 4.5), arrowprops=dict(arrowstyle="-|>"))
    ax.plot([5, 7], [4.5, 4.5], "k--", lw=0.8)
    ax.text(6.0, 4.62, "yaw", fontsize=9)
    ax.text(3.3, 1.6, "l along the heading,\nw across, red: front", fontsize=9)
    ax.text(0.5, 0.5, "0", ha="center", va="center")
    ax.text(1.5, 0.5, "1", ha="center", va="center")
    ax.text(0.5, 1.5, "num_x", ha="center", va="center", fontsize=7)
    ax.text(4, -0.7, "ix grows with x  →", ha="center")
    ax.text(-0.6, 4, "iy grows with y  →", va="center", rotation=90)
    ax.set_title("BEV map: flattened index = iy · num_x + ix")
    ax.set_aspect("equal")
    ax.axis("off")


if __name__ == "__main__":
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 5.2))
    top_view(left)
    bev_view(right)
    figure.tight_layout()
    figure.savefig(Path(__file__).with_name("frames.png"), dpi=80)
