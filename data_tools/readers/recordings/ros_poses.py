"""Where frames of a ROS recording are at any time: tracks that are interpolated, and the tree of frames (tf).

Poses are ``parent_from_child``. Between two samples translations are linear and rotations spherical-linear; beyond the
samples, or too far from the nearest one, there is no pose.

Shapes: n samples of a track.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from ....core.errors import DataError
from ....core.once import warn_once
from ....geometry import invert_pose, pose, slerp
from .mcap_file import Transform

_STILL = 1e-9


class Track:
    """Poses of one frame in another over time.

    samples: in any order; of two with one stamp the later one holds. Raises DataError naming ``where`` for a rotation
    that is none.
    """

    def __init__(self, samples: Iterable[Transform], where: str) -> None:
        by_time = {sample.stamp_ns: sample for sample in samples}
        self.stamps_ns = np.array(sorted(by_time), dtype=np.int64)
        self.translation_m = np.array([by_time[t].translation_m for t in self.stamps_ns.tolist()], np.float64)
        quaternion = np.array([by_time[t].quaternion_wxyz for t in self.stamps_ns.tolist()], np.float64)
        length = np.linalg.norm(quaternion, axis=1, keepdims=True)
        if not (np.isfinite(self.translation_m).all() and np.isfinite(length).all() and (length > 1e-6).all()):
            bad = int(np.flatnonzero(~(np.isfinite(self.translation_m).all(1) & (length[:, 0] > 1e-6)))[0])
            raise DataError(
                f"{where}: the pose at {self.stamps_ns[bad]} ns has a NaN or a quaternion of length 0: "
                f"{self.translation_m[bad].tolist()}, {quaternion[bad].tolist()} (w x y z); leave it out"
            )
        self.quaternion = quaternion / length

    @property
    def is_still(self) -> bool:
        """Whether all samples are one pose, as of a fixed joint that is published again and again."""
        turned = np.abs(np.abs(self.quaternion @ self.quaternion[0]) - 1)
        return bool((np.abs(self.translation_m - self.translation_m[0]) < _STILL).all() and (turned < _STILL).all())

    def at(self, stamp_ns: int, max_gap_s: float) -> NDArray[np.float64] | None:
        """[4, 4] at a time; None outside of the samples, and where the nearest is further away than max_gap_s."""
        i = int(np.searchsorted(self.stamps_ns, stamp_ns))
        if i < len(self.stamps_ns) and self.stamps_ns[i] == stamp_ns:
            return pose(self.quaternion[i], self.translation_m[i])
        if i in (0, len(self.stamps_ns)):
            return None
        before, after = int(self.stamps_ns[i - 1]), int(self.stamps_ns[i])
        if min(stamp_ns - before, after - stamp_ns) > max_gap_s * 1e9:
            return None
        share = (stamp_ns - before) / (after - before)
        translation = (1 - share) * self.translation_m[i - 1] + share * self.translation_m[i]
        return pose(slerp(self.quaternion[i - 1], self.quaternion[i], share), translation)


class FrameTree:
    """All frames of a recording (tf and tf_static): each has one parent.

    Raises DataError naming ``where`` for rotations that are none.
    """

    def __init__(self, transforms: Iterable[Transform], where: str) -> None:
        self.where = where
        edges: dict[tuple[str, str], list[Transform]] = {}
        for row in transforms:
            edges.setdefault((row.child, row.parent), []).append(row)
        self._parents: dict[str, list[str]] = {}
        self._fixed: dict[tuple[str, str], NDArray[np.float64]] = {}
        self._moving: dict[tuple[str, str], Track] = {}
        for (child, parent), rows in edges.items():
            edge = f"{where}: transform of {child} in {parent}"
            self._parents.setdefault(child, []).append(parent)
            track = Track(rows, edge)
            if rows[-1].static or track.is_still:
                if rows[-1].static and not track.is_still:
                    warn_once(f"{edge}: tf_static states several; the last one is used")
                self._fixed[child, parent] = pose(track.quaternion[-1], track.translation_m[-1])
            else:
                self._moving[child, parent] = track

    @property
    def frames(self) -> list[str]:
        """All names."""
        return sorted({*self._parents, *(parent for parents in self._parents.values() for parent in parents)})

    def path(self, frame: str) -> list[str]:
        """A frame and its ancestors. Raises DataError for one with two parents, and for a circle."""
        out = [frame]
        while parents := self._parents.get(out[-1], []):
            if len(parents) > 1:
                raise DataError(
                    f"{self.where}: tf gives frame {out[-1]} two parents, {' and '.join(parents)}; keep one of them"
                )
            if parents[0] in out:
                raise DataError(
                    f"{self.where}: tf frames {' -> '.join(out)} -> {parents[0]} go in a circle; correct them"
                )
            out.append(parents[0])
        return out

    def pose(self, target: str, source: str, stamp_ns: int, max_gap_s: float) -> NDArray[np.float64] | None:
        """``target_from_source`` [4, 4] at a time; None where a moving part of the chain has none then.

        Raises DataError for frames that nothing connects, with what there is.
        """
        if target == source:
            return np.eye(4)
        up, down = self.path(source), self.path(target)
        common = next((frame for frame in up if frame in down), None)
        if common is None:
            known = ", ".join(self.frames[:20]) or "none"
            raise DataError(
                f"{self.where}: tf does not connect {source} with {target}; its frames are {known}: name others "
                "(base_frame, fixed_frame), or record tf_static"
            )
        common_from_source = self._along(up[: up.index(common) + 1], stamp_ns, max_gap_s)
        common_from_target = self._along(down[: down.index(common) + 1], stamp_ns, max_gap_s)
        if common_from_source is None or common_from_target is None:
            return None
        return invert_pose(common_from_target) @ common_from_source

    def _along(self, chain: list[str], stamp_ns: int, max_gap_s: float) -> NDArray[np.float64] | None:
        """``last_from_first`` of a chain child, parent, ..."""
        out = np.eye(4)
        for edge in pairwise(chain):
            step = self._fixed.get(edge)
            if step is None:
                step = self._moving[edge].at(stamp_ns, max_gap_s)
            if step is None:
                return None
            out = step @ out
        return out
