"""`make demo`: synthesize scenes the model has never seen, detect, score officially, draw.

Writes metrics.json, submission.json, pictures/*.png and clip.gif into one folder.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .errors import DataError, SubmissionError
from .files import write_json
from .workflow import draw_pictures, load_model, run_model

logger = logging.getLogger("drivestack")

ROOT = Path(__file__).resolve().parent
DEMO_CONFIG = "bevformerv2_tiny_synthetic"
DEMO_WEIGHTS = ROOT / "weights" / "bevformerv2_tiny_synthetic.safetensors"
VERSION, SPLIT = "v1.0-trainval", "val"


@dataclass(frozen=True)
class DemoRecipe:
    """What decides the demo's scenes. Training uses other seeds and the train split (configs, docs/synthetic.md)."""

    seed: int = 90_001
    num_scenes: int = 10
    keyframes_per_scene: int = 8
    image_width_px: int = 640

    @property
    def folder(self) -> str:
        from .data_tools.synthetic import WORLD_VERSION

        return f"data_v{WORLD_VERSION}_{self.seed}_{self.num_scenes}x{self.keyframes_per_scene}_{self.image_width_px}px"


def run_demo(
    out: str | Path,
    recipe: DemoRecipe | None = None,
    config_name: str = DEMO_CONFIG,
    weights: str | Path | None = DEMO_WEIGHTS,
    perturbation: str | None = None,
    device: str | None = None,
    workers: int = 2,
    num_pictures: int = 6,
    score_threshold: float = 0.3,
    say: Callable[[str], None] = logger.info,
) -> dict[str, Any]:
    """Run the whole demo and return what ``out/metrics.json`` holds.

    weights: None runs random ones, the baseline. perturbation: see data_tools.perturb.
    Raises DataError, CheckpointError, ConfigError, SubmissionError.
    """
    from .bev.metrics import evaluate_nuscenes
    from .bev.submission_check import check_submission
    from .data_tools.nuscenes_reader import read_nuscenes
    from .data_tools.perturb import perturb_calibration
    from .data_tools.synthetic import synthesize
    from .data_tools.visualise import View, render_clip
    from .engine.config import load_config

    out, recipe = Path(out), recipe or DemoRecipe()
    times_s: dict[str, float] = {}

    def timed(name: str, since: float) -> None:
        times_s[name] = round(time.monotonic() - since, 2)

    config = load_config(config_name)
    model = load_model(config, weights, seed=recipe.seed)  # first: a wrong checkpoint should not cost a minute

    start = begin = time.monotonic()
    data = out / recipe.folder
    say(f"1/4 synthesizing {recipe.num_scenes} scenes x {recipe.keyframes_per_scene} keyframes into {data}")
    try:
        synthesize(
            out_dir=data,
            split=SPLIT,
            num_scenes=recipe.num_scenes,
            keyframes_per_scene=recipe.keyframes_per_scene,
            seed=recipe.seed,
            image_width_px=recipe.image_width_px,
            workers=workers,
        )
    except ValueError as error:
        raise DataError(str(error)) from error
    timed("synthesize", begin)

    frames = read_nuscenes(data, VERSION, SPLIT)
    seen = frames if perturbation is None else perturb_calibration(frames, perturbation)
    parameters = sum(p.numel() for p in model.parameters())
    name = "random weights" if weights is None else Path(weights).name
    say(f"2/4 detecting in {len(frames)} keyframes ({name}, {parameters / 1e6:.1f} M parameters)")
    outcome = run_model(config, model, seen, device)
    times_s |= outcome.times_s

    begin = time.monotonic()
    say("3/4 checking the submission, official evaluation")
    submission_path = out / "submission.json"
    outcome.submission().write(submission_path)
    problems = check_submission(submission_path, [frame.token for frame in frames])
    if problems:
        raise SubmissionError(f"{submission_path}: {problems[0]}")
    scores = evaluate_nuscenes(submission_path, data, VERSION, SPLIT)
    timed("evaluate", begin)

    begin = time.monotonic()
    say("4/4 drawing")
    chosen = [frames[(2 * i + 1) * len(frames) // (2 * num_pictures)] for i in range(min(num_pictures, len(frames)))]
    pictures = draw_pictures(chosen, outcome.detections, outcome.class_names, out / "pictures", score_threshold)
    scene = [frame for frame in frames if frame.scene_name == frames[0].scene_name]
    view = View(camera_width_px=320, score_threshold=score_threshold)
    render_clip(scene, outcome.detections, outcome.class_names, out / "clip.gif", view)
    timed("draw", begin)
    timed("total", start)

    result = scores | {
        "config": config_name,
        "weights": None if weights is None else Path(weights).name,
        "weights_made_by": _header(weights),
        "calibration_perturbation": perturbation,
        "seeds": {"scenes": recipe.seed},
        "data": asdict(recipe),
        "times": times_s,
        "files": {
            "submission": submission_path.name,
            "clip": "clip.gif",
            "pictures": [str(path.relative_to(out)) for path in pictures],
            "data": recipe.folder,
        },
    }
    write_json(out / "metrics.json", result, indent=2)
    return result


def _header(weights: str | Path | None) -> dict[str, str]:
    """What a safetensors file says about its making: command, seed, commit, data."""
    if weights is None or Path(weights).suffix != ".safetensors":
        return {}
    from .backbone.checkpoint import read_metadata

    return read_metadata(weights)
