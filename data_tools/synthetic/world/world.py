"""One scene of the synthetic world: streets, scenery, objects, light and the ego drive, from three numbers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from ....core.files import write_json
from .families import FAMILIES, check_streets, family_of
from .layout import Layout, build_layout
from .mesh import Mesh, join
from .motion import EgoDrive
from .network import Network
from .network_lanes import build_network
from .network_population import plan_network_ego, populate_network
from .network_scenery import build_network_scenery
from .population import WorldObject, plan_ego, populate
from .scenery import Scenery, build_scenery

WORLD_VERSION = 2  # raise it whenever the same seed gives other pictures or labels
KEYFRAME_INTERVAL_S = 0.5
_SPLIT_NUMBER = {"train": 0, "val": 1}
_BEFORE_M, _AFTER_M = 62.0, 70.0
_BEFORE_TURNS_M, _AFTER_TURNS_M, _MEAN_SPEED_MPS = 48.0, 58.0, 7.0


@dataclass(frozen=True)
class Light:
    """Sun, sky and haze of a scene; colours are linear RGB."""

    sun_direction: tuple[float, float, float]  # towards the sun, unit length
    sun_colour: tuple[float, float, float]
    ambient_colour: tuple[float, float, float]
    sky_zenith: tuple[float, float, float]
    sky_horizon: tuple[float, float, float]
    haze_per_m: float


@dataclass(frozen=True)
class World:
    """Everything there is to know about a scene. Frame: metres, z up, flat ground at z = 0."""

    seed: int
    split: str
    index: int
    num_keyframes: int
    layout: Layout | Network
    scenery: Scenery
    ego: EgoDrive
    objects: tuple[WorldObject, ...]
    light: Light
    streets: str = "plain"  # a key of families.STREETS

    @property
    def key(self) -> tuple[object, ...]:
        """What the scene is made from, for names."""
        return (self.seed, self.split, self.index, *(() if self.streets == "plain" else (self.streets,)))

    @property
    def keyframe_times_s(self) -> np.ndarray:
        """[num_keyframes] seconds from the start."""
        return np.arange(self.num_keyframes) * KEYFRAME_INTERVAL_S

    def global_from_ego(self, time_s: float) -> np.ndarray:
        """[4, 4] pose of the ego car in the world frame."""
        (x, y), yaw = (v[0] for v in self.ego.poses(time_s))
        out = np.eye(4)
        out[:2, :2] = [[np.cos(yaw), -np.sin(yaw)], [np.sin(yaw), np.cos(yaw)]]
        out[:2, 3] = x, y
        return out

    def mesh_at(self, time_s: float) -> Mesh:
        """All faces at a moment: the scenery followed by every object that is present."""
        parts = [self.scenery.mesh]
        for thing in self.objects:
            centre, yaw, present = thing.motion.poses(np.array([time_s]))
            if present[0]:
                x, y = centre[0]
                parts.append(thing.mesh.moved(x, y, 0.0, yaw[0]))
        return join(parts)

    def save_json(self, path: Path) -> None:
        """Lanes, traffic elements, light and seeds, for labels derived later."""
        lanes = [
            {
                "id": lane.id,
                "centreline": np.round(lane.centreline, 3).tolist(),
                "is_connector": lane.is_connector,
                "predecessors": list(lane.predecessors),
                "successors": list(lane.successors),
            }
            for lane in self.layout.lanes.values()
        ]
        content = {
            "world_version": WORLD_VERSION,
            "seed": self.seed,
            "split": self.split,
            "index": self.index,
            "num_keyframes": self.num_keyframes,
            "layout": self.layout.kind,
            "light": asdict(self.light),
            "lanes": lanes,
            "traffic_elements": [asdict(e) for e in self.layout.elements],
            "objects": [{"instance": o.instance, "name": o.name, "size_lwh": o.size_lwh} for o in self.objects],
        }
        if self.streets != "plain":
            content["streets"] = self.streets
        write_json(path, content)


def build_world(seed: int, split: str, index: int, num_keyframes: int = 20, streets: str = "plain") -> World:
    """The scene number `index` of a split; a pure function of its arguments.

    streets: a key of families.STREETS.
    Raises ValueError for a split other than "train" and "val", and for streets that are unknown or held out.
    """
    if split not in _SPLIT_NUMBER:
        raise ValueError(f"split must be 'train' or 'val', got {split!r}")
    check_streets(streets, split)
    numbers = [seed, _SPLIT_NUMBER[split], index]
    family = family_of(streets, *numbers)
    duration = (num_keyframes - 1) * KEYFRAME_INTERVAL_S
    if family != "plain":
        drawn = _build_network_world(family, numbers, duration)
        return World(seed, split, index, num_keyframes, *drawn, streets)
    rng = np.random.default_rng(numbers)
    speed = float(rng.uniform(0.5, 9.0)) if rng.random() < 0.88 else 0.0
    travel = speed * duration + 3.0
    layout = build_layout(rng, _BEFORE_M + travel + _AFTER_M, (_BEFORE_M - 25, _BEFORE_M + travel + 25))
    scenery = build_scenery(layout, rng)
    ego = plan_ego(layout, _BEFORE_M, speed, rng)
    objects = populate(layout, scenery, ego, duration, rng)
    return World(seed, split, index, num_keyframes, layout, scenery, ego, tuple(objects), _draw_light(rng), streets)


def _build_network_world(
    name: str, numbers: list[int], duration_s: float
) -> tuple[Network, Scenery, EgoDrive, tuple[WorldObject, ...], Light]:
    family = FAMILIES[name]
    rng = np.random.default_rng([*numbers, family.number])
    travel = _MEAN_SPEED_MPS * duration_s
    layout = build_network(rng, family, name, _BEFORE_TURNS_M + travel + _AFTER_TURNS_M)
    scenery = build_network_scenery(layout, rng)
    ego = plan_network_ego(layout, family, _BEFORE_TURNS_M, duration_s, rng)
    return layout, scenery, ego, tuple(populate_network(layout, scenery, ego, duration_s, rng)), _draw_light(rng)


def _draw_light(rng: np.random.Generator) -> Light:
    azimuth, height = rng.uniform(-np.pi, np.pi), np.deg2rad(rng.uniform(24, 62))
    warm = rng.uniform(0, 1)
    strength = rng.uniform(1.0, 1.5)
    cloudy = rng.uniform(0, 1)
    zenith = (1 - cloudy) * np.array([0.16, 0.32, 0.66]) + cloudy * np.array([0.45, 0.5, 0.56])
    horizon = (1 - cloudy) * np.array([0.6, 0.72, 0.85]) + cloudy * np.array([0.72, 0.74, 0.76])
    sun = strength * (1 - 0.45 * cloudy) * np.array([1.0, 0.96 - 0.12 * warm, 0.9 - 0.25 * warm])
    ambient = (0.42 + 0.2 * cloudy) * np.array([0.95, 1.0, 1.06])
    direction = (np.cos(height) * np.cos(azimuth), np.cos(height) * np.sin(azimuth), np.sin(height))

    def plain(values: Iterable[float]) -> tuple[float, float, float]:
        x, y, z = (float(v) for v in values)
        return x, y, z

    return Light(
        plain(direction),
        plain(sun),
        plain(ambient),
        plain(zenith),
        plain(horizon),
        float(rng.uniform(1 / 600, 1 / 250)),
    )
