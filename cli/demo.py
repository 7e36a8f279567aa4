"""`make demo`: synthesize held-out scenes, predict, score, draw.

Writes metrics.json, a submission per task (tasks/registry.py), pictures/*.png and clip.gif into one folder. The clip
plays a longer drive than the scenes that are scored, to show what memory does.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..core.errors import DataError, SubmissionError
from ..core.files import remove_stale_files, write_json
from ..core.frames import Frame
from ..core.weights.shipped import FOLDER
from ..data_tools.readers.registry import DataSource
from ..data_tools.synthetic.recipes import RECIPES, SetRecipe
from ..tasks.base import GroundTruth, Predictions, Task
from ..tasks.run import class_names, load_model, parse_device, predict_frames
from .outputs import check_outputs

logger = logging.getLogger("drivestack")

DEMO_CONFIG = "perception_tiny_drive"
DEMO_WEIGHTS = FOLDER / f"{DEMO_CONFIG}.safetensors"
VERSION, SPLIT = "v1.0-trainval", "val"
METRICS, PICTURES, CLIP, DRIVE = "metrics.json", "pictures", "clip.gif", "drive"


def data_folder(recipe: SetRecipe) -> str:
    """The name of the folder of a set."""
    from ..data_tools.synthetic import WORLD_VERSION

    return (
        f"data_v{WORLD_VERSION}_{recipe.seed}_{recipe.num_scenes}x{recipe.keyframes_per_scene}"
        f"_{recipe.image_width_px}px"
    )


def run_demo(
    out: str | Path,
    recipe: SetRecipe = RECIPES["demo"],
    config_name: str = DEMO_CONFIG,
    weights: str | Path | None = DEMO_WEIGHTS,
    perturbation: str | None = None,
    device: str | None = None,
    workers: int = 2,
    num_pictures: int = 6,
    score_threshold: float = 0.3,
    drive: SetRecipe | None = RECIPES["demo_drive"],
    say: Callable[[str], None] = logger.info,
) -> dict[str, Any]:
    """Run the whole demo and return what ``out/metrics.json`` holds.

    weights: None runs random ones, the baseline. perturbation: see data_tools.clips.perturb. num_pictures: with 0
    there is no clip either. drive: what the clip shows, its submissions lie in DRIVE; None: the first scene.
    Raises OutputError, DataError, CheckpointError, ConfigError, SubmissionError, before the work as far as can be.
    """
    from ..data_tools.clips.perturb import perturb_calibration
    from ..engine.config import load_config
    from ..tasks.registry import Boxes, Lanes, Occupancy, Tracks, answer_reader, in_folder
    from ..tasks.tracks import untracked
    from ..view.drawing import View
    from ..view.picture import render_answer_clip

    out = Path(out)
    times_s: dict[str, float] = {}
    # first: a wrong checkpoint, device or perturbation should not cost a minute
    config = load_config(config_name)
    model = load_model(config, weights, seed=recipe.seed)
    if device is not None:
        parse_device(device)
    if perturbation is not None:
        perturb_calibration([], perturbation)
    names, voxels = class_names(config), Occupancy()
    every: dict[str, Task] = {"boxes": Boxes(names), "occupancy": voxels, "lanes": Lanes(), "tracks": Tracks()}
    tracked = "boxes" in model.tasks and not untracked(names, config.get("benchmark", "nuscenes"))
    chosen = {task: every[task] for task in (*model.tasks, *["tracks"] * tracked)}
    paths = in_folder(out, list(chosen))
    drive = drive if num_pictures else None
    drive_paths = in_folder(out / DRIVE, list(chosen)) if drive is not None else {}
    folders = [out, out / PICTURES, *[out / DRIVE] * bool(drive_paths)]
    folders += [voxels.folder(own["occupancy"]) for own in (paths, drive_paths) if "occupancy" in own]
    check_outputs([*paths.values(), *drive_paths.values(), out / METRICS, out / CLIP], folders)

    def predicted(seen: list[Frame], own: dict[str, Path]) -> Predictions:
        keep: dict[str, Any] = {"keep": voxels.keep(own["occupancy"])} if "occupancy" in own else {}
        if perturbation is not None:
            seen = perturb_calibration(seen, perturbation)
        return predict_frames(config, model, seen, device=device, **keep)

    with _timed(times_s, "total"):
        data, also = out / data_folder(recipe), "" if drive is None else f", {drive.keyframes_per_scene} of a drive"
        say(f"1/4 synthesizing {recipe.num_scenes} scenes x {recipe.keyframes_per_scene} keyframes into {data}{also}")
        with _timed(times_s, "synthesize"):
            for one in (recipe, drive) if drive is not None else (recipe,):
                _synthesize(out / data_folder(one), one, workers)
        truth = _truth(data)
        frames = truth.frames
        name = "random weights" if weights is None else Path(weights).name
        millions = sum(p.numel() for p in model.parameters()) / 1e6
        say(f"2/4 {', '.join(model.tasks)} in {len(frames)} keyframes ({name}, {millions:.1f} M parameters)")
        predictions = predicted(frames, paths)
        times_s |= predictions.times_s
        say("3/4 checking the submissions, scores")
        with _timed(times_s, "evaluate"):
            scores = {task: _score(chosen[task], path, predictions, truth, say) for task, path in paths.items()}
        say("4/4 drawing")
        with _timed(times_s, "draw"):
            answer_of = answer_reader(chosen, paths, frames, names, SPLIT)
            pictures = _pictures(out, frames, answer_of, names, num_pictures, score_threshold)
            played = [frame for frame in frames if frame.scene_name == frames[0].scene_name]
            if drive is not None:
                played = _truth(out / data_folder(drive)).frames
                shown = predicted(played, drive_paths)
                for task, path in drive_paths.items():
                    chosen[task].write(path, shown, SPLIT)
                answer_of = answer_reader(chosen, drive_paths, played, names, SPLIT)
            if pictures:
                view = View(camera_width_px=320, score_threshold=score_threshold)
                render_answer_clip(played, answer_of, names, out / CLIP, view)

    submissions = {task: str(path.relative_to(out)) for task, path in paths.items()}
    result = summary(scores) | {
        "config": config_name,
        "weights": None if weights is None else Path(weights).name,
        "weights_made_by": _header(weights),
        "calibration_perturbation": perturbation,
        "seeds": {"scenes": recipe.seed},
        "data": asdict(recipe),
        "times": times_s,
        "files": {
            "submission": submissions.get("boxes"),
            "submissions": submissions,
            "clip": CLIP if pictures else None,
            "pictures": [str(path.relative_to(out)) for path in pictures],
            "data": data_folder(recipe),
            "drive": None if drive is None else data_folder(drive),
        },
    }
    write_json(out / METRICS, result, indent=2)
    return result


@contextmanager
def _timed(times_s: dict[str, float], name: str) -> Iterator[None]:
    begin = time.monotonic()
    yield
    times_s[name] = round(time.monotonic() - begin, 2)


def _truth(data: Path) -> GroundTruth:
    return GroundTruth(DataSource("nuscenes", data, {"version": VERSION, "split": SPLIT}))


def _synthesize(data: Path, recipe: SetRecipe, workers: int) -> None:
    from ..data_tools.synthetic import synthesize

    try:
        synthesize(out_dir=data, workers=workers, **recipe.arguments())
    except ValueError as error:
        raise DataError(str(error)) from error


def _score(
    task: Task, path: Path, predictions: Predictions, truth: GroundTruth, say: Callable[[str], None]
) -> dict[str, Any]:
    task.write(path, predictions, SPLIT)
    if problems := task.check(path, truth):
        raise SubmissionError(f"{path}: {problems[0]}")
    scores = task.score(path, truth)
    say("\n".join(["", task.title, "", *task.table(scores), ""]))
    return scores


def _pictures(
    out: Path, frames: list[Frame], answer_of: Any, names: list[str], num_pictures: int, score_threshold: float
) -> list[Path]:
    """Pictures of frames spread over the data."""
    from ..view.picture import draw_pictures

    shown = [frames[(2 * i + 1) * len(frames) // (2 * num_pictures)] for i in range(min(num_pictures, len(frames)))]
    remove_stale_files(out / PICTURES)
    return draw_pictures(shown, answer_of, names, out / PICTURES, score_threshold, frames)


def summary(scores: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The scores of all tasks as metrics.json has them: those of the boxes, the heads of the others, and their tables
    whole under ``occupancy``, ``lanes`` and ``tracks``."""
    found = dict(scores.get("boxes", {}))
    if "occupancy" in scores:
        voxels = scores["occupancy"]
        found |= {"miou": voxels["miou"]["camera"], "fscore": voxels["fscore"]["camera"]}
        found |= {"rayiou": voxels["rayiou"]["RayIoU"], "occupancy": voxels}
    if "lanes" in scores:
        lanes = scores["lanes"]
        found |= {
            key: lanes[key] for key in ("ols", "ols_occurring", "det_l", "det_t", "top_ll", "top_lt", "lane_fscore")
        }
        found |= {"lane_metric_version": lanes["metric_version"], "lanes": lanes}
    if "tracks" in scores:
        found |= {key: scores["tracks"][key] for key in ("amota", "amotp")} | {"tracks": scores["tracks"]}
    return found


def _header(weights: str | Path | None) -> dict[str, str]:
    """The notes of a safetensors file about its origin: command, seed, commit, data."""
    if weights is None or Path(weights).suffix != ".safetensors":
        return {}
    from ..core.weights.files import read_metadata

    return read_metadata(weights)
