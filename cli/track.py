"""The verb that makes tracks of a submission of boxes."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from .options import above_zero, add_source, known_source, share, verb
from .outputs import writing


def add_track(verbs: Any) -> None:
    examples = [
        "drivestack track submission.json --dataroot data/nuscenes --version v1.0-trainval --split val",
        "drivestack score tracks.json --dataroot data/nuscenes --version v1.0-trainval --split val",
    ]
    summary = "link the boxes of a nuScenes submission over time into tracks (a tracking submission)"
    parser = verb(verbs, "track", _run_track, summary, examples)
    parser.add_argument("submission", metavar="FILE", help="of boxes, as predict writes it")
    add_source(parser)
    parser.add_argument("--out", metavar="FILE", default="tracks.json", help="default: %(default)s")
    parser.add_argument("--reach", type=above_zero, metavar="M", help="farthest link on the ground (default: 2.5)")
    parser.add_argument("--min-score", type=share, metavar="P", help="of boxes that are linked (default: 0.2)")
    parser.add_argument(
        "--max-unseen", type=above_zero, metavar="S", help="seconds after which an unseen track ends (default: 1.75)"
    )


def _run_track(options: argparse.Namespace) -> int:
    from ..bev.evaluation.linking import LinkSettings
    from ..bev.evaluation.nuscenes_boxes import read_submission
    from ..bev.evaluation.tracking_submission import TrackingSubmission
    from ..core.errors import ConfigError

    out, path = Path(options.out), Path(options.submission)
    if out.suffix != ".json":
        raise ConfigError(f"{out}: the name must end in .json")
    given = {"reach_m": options.reach, "min_score": options.min_score, "max_unseen_s": options.max_unseen}
    settings = LinkSettings(**{name: value for name, value in given.items() if value is not None})
    with writing(f"track {path}", [out]):
        frames = known_source(options).read()
        read_submission(path, [frame.token for frame in frames])  # refuses a file that breaks a rule
        content = json.loads(path.read_text(encoding="utf-8"))
        made = TrackingSubmission.linked(content["results"], frames, settings, content["meta"])
        made.write(out)
    print(f"wrote {out}: {len(frames)} samples, {made.num_boxes} boxes of {made.num_tracks} tracks")
    return 0
