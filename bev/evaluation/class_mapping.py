"""Boxes of a model scored on a data set that has other classes, ranges and cameras: what counts as what, stated.

A mapping is a JSON file:

    {"predictions": {"car": "vehicle", "bus": "vehicle", "pedestrian": "person", "barrier": ""},
     "labels": {"pkw": "vehicle", "lkw": "vehicle", "person": "person", "obstacle": ""},
     "range_m": {"vehicle": 50, "person": 40},
     "in_view": true,
     "cameras": {"front": "CAM_FRONT", "left": "CAM_FRONT_LEFT", "roof": ""},
     "min_points": 1,
     "without_errors": ["mAVE"]}

``predictions`` and ``labels`` name every class that occurs, '' for one that is left out. All else is optional:
``range_m`` (default: the smallest range of the classes that a common class is made of), ``in_view`` (only boxes whose
centre one of the cameras that the model saw has in its image count, labels and predictions alike), ``cameras`` (which
of the training's cameras each of this rig's stands for, '' where the model is not to see it; given at all, it names
every camera of the rig), ``min_points`` (LiDAR and radar points of a label that counts, nuScenes' 1), and
``without_errors`` (errors that are no part of the means).

A common class keeps what all of its parts have: made of cones too, it has no orientation, made of barriers too, front
and back look alike, made of classes that are not nuScenes', it has no attributes. One that takes in bicycles or
motorcycles does not count inside of bicycle racks. Velocity and attributes that no label of the whole set states are
left out of the means.

Shapes: n boxes.
"""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from ...core.errors import ConfigError, NoLabelsError
from ...core.frames import Frame
from ...geometry import invert_pose, transform_points
from .nuscenes_boxes import ScoredBoxes
from .nuscenes_metrics import DETECTION_CVPR_2019, TP_ERRORS, DetectionSettings, evaluate
from .nuscenes_rules import CLASS_ATTRIBUTES
from .nuscenes_submission import CLASS_RANGE_M, OTHER_RANGE_M

LEFT_OUT = ""


@dataclass(frozen=True)
class ClassMapping:
    """See the top of this file; ``read_mapping`` makes one. Raises ConfigError for what contradicts itself."""

    predictions: dict[str, str]
    """Class of the model -> common class, '' left out."""
    labels: dict[str, str]
    """Class of the data set -> common class, '' left out."""
    range_m: dict[str, float] = field(default_factory=dict)
    """Of common classes."""
    in_view: bool = False
    cameras: dict[str, str] = field(default_factory=dict)
    """Camera of this rig -> camera of the training, '' not shown."""
    min_points: int = 1
    without_errors: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        found, labelled = (set(side.values()) - {LEFT_OUT} for side in (self.predictions, self.labels))
        if not found & labelled:
            raise ConfigError("mapping: no common class has both predictions and labels; map some classes to one name")
        for name in sorted(found ^ labelled):
            side, other = ("predictions", "labels") if name in found else ("labels", "predictions")
            raise ConfigError(f"mapping: {name!r} has {side}, but no {other}: its AP would be 0; map its {side} to ''")
        for name, radius in self.range_m.items():
            if name not in found:
                raise ConfigError(f"mapping: range_m of {name!r}, which is no common class; there are {_listed(found)}")
            if not 0 < radius < math.inf:
                raise ConfigError(f"mapping: range_m of {name!r} is {radius}; give a radius in metres above 0")
        if wrong := [name for name in self.without_errors if name not in TP_ERRORS]:
            raise ConfigError(f"mapping: without_errors names {wrong[0]!r}; use names of {', '.join(TP_ERRORS)}")
        if self.min_points < 0:
            raise ConfigError(f"mapping: min_points is {self.min_points}; give 0 or more")
        stands_for = [name for name in self.cameras.values() if name]
        if twice := [name for name, count in Counter(stands_for).items() if count > 1]:
            raise ConfigError(f"mapping: two cameras stand for {twice[0]!r}; each needs one of its own")
        if self.cameras and not stands_for:
            raise ConfigError("mapping: no camera is shown to the model; name those that stand for its own")

    @property
    def common(self) -> tuple[str, ...]:
        """The classes that are scored: those that are nuScenes' in its order, then the others as they come."""
        names = dict.fromkeys(name for name in self.predictions.values() if name)
        return (*(name for name in CLASS_RANGE_M if name in names), *(n for n in names if n not in CLASS_RANGE_M))

    def parts(self, common: str) -> tuple[list[str], list[str]]:
        """Classes of the predictions, and of the labels, that are this common class."""
        first, second = ([n for n, to in side.items() if to == common] for side in (self.predictions, self.labels))
        return first, second

    def ranges_m(self, own_range_m: Mapping[str, float]) -> dict[str, float]:
        """Radius of every common class; own_range_m: of classes of the model, where it is not nuScenes'."""
        known = {**CLASS_RANGE_M, **own_range_m}
        return {
            name: self.range_m.get(name, min(known.get(n, OTHER_RANGE_M) for part in self.parts(name) for n in part))
            for name in self.common
        }

    def writing_ranges_m(self, own_range_m: Mapping[str, float]) -> dict[str, float]:
        """Radius within which boxes of the model's classes must be written to be scored."""
        common, known = self.ranges_m(own_range_m), {**CLASS_RANGE_M, **own_range_m}
        return {name: common.get(to, known.get(name, OTHER_RANGE_M)) for name, to in self.predictions.items()}

    def settings(self, own_range_m: Mapping[str, float], without: Sequence[str] = ()) -> DetectionSettings:
        """How the common classes are scored; without: errors that are left out beside ``without_errors``."""
        undefined, half_turn, racked = {}, [], []
        known = DETECTION_CVPR_2019
        for name in self.common:
            sources = {own for part in self.parts(name) for own in part}
            errors = {*self.without_errors, *without}
            for own in sources:
                errors |= set(known.undefined_errors.get(own, ()))
                errors |= set() if CLASS_ATTRIBUTES.get(own) else {"mAAE"}
            undefined[name] = tuple(error for error in TP_ERRORS if error in errors)
            half_turn += [name] if sources & set(known.half_turn_classes) else []
            racked += [name] if sources & {own for held in known.excluded_in.values() for own in held} else []
        return DetectionSettings(
            class_range_m=self.ranges_m(own_range_m),
            undefined_errors=undefined,
            half_turn_classes=tuple(half_turn),
            excluded_in={category: tuple(racked) for category in known.excluded_in},
            min_points=self.min_points,
        )

    def demand(self, frames: Iterable[Frame], model_classes: Iterable[str] = ()) -> None:
        """Raises ConfigError for a class of the model or of the labels that is not mapped, NoLabelsError where no label
        is of a common class."""
        _demand_mapped("predictions", model_classes, self.predictions)
        names = {name for frame in frames if frame.annotations is not None for name in frame.annotations.names} - {""}
        _demand_mapped("labels", names, self.labels)
        if not any(self.labels[name] for name in names):
            raise NoLabelsError(
                f"no label is of the common classes ({', '.join(self.common)}); it has {_listed(names)}"
            )

    def renamed(self, frames: Sequence[Frame]) -> list[Frame]:
        """Frames as the model sees them: cameras by the names that they stand for, without those that it is not shown.

        Raises ConfigError for a camera that ``cameras`` does not name, where it names any.
        """
        if not self.cameras:
            return list(frames)
        known = {view.name for frame in frames for view in frame.cameras}
        if missing := sorted(known - set(self.cameras)):
            raise ConfigError(f"mapping: camera {missing[0]!r} of the set is not in cameras; '' shows it to no model")
        if strange := sorted(set(self.cameras) - known):
            raise ConfigError(f"mapping: the set has no camera {strange[0]!r}; there are {_listed(known)}")
        return [
            replace(
                frame,
                cameras=tuple(
                    replace(view, name=self.cameras[view.name]) for view in frame.cameras if self.cameras[view.name]
                ),
            )
            for frame in frames
        ]


def _demand_mapped(side: str, names: Iterable[str], known: Mapping[str, str]) -> None:
    if missing := sorted(set(names) - set(known)):
        more = f" (nor {', '.join(missing[1:6])}{', ...' * (len(missing) > 6)})" if missing[1:] else ""
        raise ConfigError(
            f"mapping: {side} have no entry for {missing[0]!r}{more}; map it to a common class, or to '' (left out)"
        )


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "none"


def read_mapping(source: ClassMapping | Mapping[str, Any] | str | os.PathLike[str]) -> ClassMapping:
    """A mapping from its JSON file, or from the same as a dictionary. Raises ConfigError naming file and field."""
    if isinstance(source, ClassMapping):
        return source
    place, content = "mapping", source
    if isinstance(source, (str, os.PathLike)):
        place, content = str(source), _json(Path(source))
    if not isinstance(content, Mapping):
        raise ConfigError(f"{place}: holds no JSON object; write predictions and labels, class -> common class")
    names = [f.name for f in fields(ClassMapping)]
    if unknown := [name for name in content if name not in names]:
        raise ConfigError(f"{place}: unknown key {unknown[0]!r}; it may have {', '.join(names)}")
    if missing := [name for name in names[:2] if name not in content]:
        raise ConfigError(f"{place}: {missing[0]} are missing; write class -> common class, '' for one left out")
    try:
        return msgspec.convert(dict(content), ClassMapping)
    except msgspec.ValidationError as error:
        if isinstance(error.__cause__, ConfigError):
            raise ConfigError(f"{place}: {error.__cause__}") from None
        raise ConfigError(f"{place}: {error}; correct it") from None
    except ConfigError as error:
        raise ConfigError(f"{place}: {error}") from None


def _json(path: Path) -> Any:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if twice := [key for key, count in Counter(key for key, _ in pairs).items() if count > 1]:
            raise ConfigError(f"{path}: {twice[0]!r} is mapped twice; write it once")
        return dict(pairs)

    try:
        return json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=unique)
    except OSError as error:
        raise ConfigError(f"mapping {path}: cannot be read ({error.strerror}); check the path") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"mapping {path}: not valid JSON ({error}); correct it") from None


def evaluate_mapped(
    frames: Sequence[Frame],
    predictions: Mapping[str, ScoredBoxes],
    mapping: ClassMapping,
    own_range_m: Mapping[str, float] | None = None,
    cameras: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Scores of the common classes, as nuscenes_metrics.evaluate gives them, with ``across_sets`` beside.

    frames: with labels, cameras as the set names them. own_range_m: of classes of the model, where it is not nuScenes'.
    cameras: those that the model saw, for ``in_view``; default: all that ``mapping.cameras`` shows, or all.

    ``across_sets``: ``ranges_m``; ``classes`` (common -> ``predictions``, ``labels``); ``left_out`` (of both sides:
    class -> how many were mapped to '', '' itself for labels without a class); ``in_view``, ``out_of_view`` and
    ``uncounted`` (beyond the range, without points, in racks; of both sides); ``without_errors`` (left out of the means
    because the mapping says so, or no label of the set states them); ``unlabelled`` (common classes of AP 0 because no
    label counts).
    Raises ConfigError for classes that are not mapped, and what ``evaluate`` does.
    """
    labelled = [frame for frame in frames if frame.annotations is not None]
    mapping.demand(labelled, {name for boxes in predictions.values() for name in boxes.names})
    if cameras is None and mapping.cameras:
        cameras = [name for name, stands_for in mapping.cameras.items() if stands_for]
    left_out = {"predictions": Counter[str](), "labels": Counter[str]()}
    hidden, kept = {"predictions": 0, "labels": 0}, {"predictions": 0, "labels": 0}

    def common(side: str, names: Sequence[str], frame: Frame | None, centres: NDArray[np.float64]) -> list[str]:
        """The names [n] as common classes, '' for what does not count, which is counted."""
        known = mapping.predictions if side == "predictions" else mapping.labels
        mapped = [known.get(name, LEFT_OUT) for name in names]
        left_out[side].update(name for name, to in zip(names, mapped) if not to)
        if mapping.in_view and frame is not None:
            seen = in_view(frame, centres, cameras)
            hidden[side] += sum(1 for name, visible in zip(mapped, seen) if name and not visible)
            mapped = [name if visible else LEFT_OUT for name, visible in zip(mapped, seen)]
        kept[side] += sum(map(bool, mapped))
        return mapped

    truths = []
    for frame in labelled:
        notes = frame.annotations
        assert notes is not None
        names = common("labels", notes.names, frame, notes.centre_global_m)
        truths.append(replace(frame, annotations=replace(notes, names=names)))
    by_token = {frame.token: frame for frame in labelled}
    found = {
        token: replace(boxes, names=common("predictions", boxes.names, by_token.get(token), boxes.centre_global_m))
        for token, boxes in predictions.items()
        if token in by_token
    }
    unstated = errors_not_stated(truths)
    scores = evaluate(truths, found, mapping.settings(own_range_m or {}, unstated))
    counted = {"predictions": scores["num_predictions"], "labels": scores["num_ground_truths"]}
    scores["across_sets"] = {
        "classes": {n: dict(zip(("predictions", "labels"), mapping.parts(n))) for n in mapping.common},
        "ranges_m": mapping.ranges_m(own_range_m or {}),
        "left_out": {side: dict(sorted(counts.items())) for side, counts in left_out.items()},
        "in_view": mapping.in_view,
        "out_of_view": hidden,
        "uncounted": {side: kept[side] - sum(counted[side].values()) for side in kept},
        "without_errors": {"stated": list(mapping.without_errors), "unknown_in_labels": unstated},
        "unlabelled": [name for name in mapping.common if name not in counted["labels"]],
    }
    return scores


def errors_not_stated(frames: Sequence[Frame]) -> list[str]:
    """Errors of what no label of a common class states in the whole set: velocities, attributes."""
    velocity = attribute = False
    for notes in (frame.annotations for frame in frames if frame.annotations is not None):
        counts = np.array([bool(name) for name in notes.names], dtype=bool)
        velocity = velocity or bool(np.isfinite(notes.velocity_global_mps[counts]).all(1).any())
        attribute = attribute or any(a for a, name in zip(notes.attributes, notes.names) if name)
    return [error for error, known in (("mAVE", velocity), ("mAAE", attribute)) if not known]


def in_view(frame: Frame, centres_global_m: NDArray[np.float64], cameras: Sequence[str] | None) -> NDArray[np.bool_]:
    """[n]: whether the image of one of the named cameras (None: of any) shows each point [n, 3] of the global frame."""
    seen = np.zeros(len(centres_global_m), dtype=bool)
    for view in frame.cameras:
        if cameras is not None and view.name not in cameras:
            continue
        pixels, _ = view.camera.project(transform_points(invert_pose(view.global_from_camera), centres_global_m))
        width, height = view.image_size_px
        with np.errstate(invalid="ignore"):  # NaN: beyond what the lens, or a pinhole, sees
            seen |= (pixels >= 0).all(-1) & (pixels[..., 0] < width) & (pixels[..., 1] < height)
    return seen
