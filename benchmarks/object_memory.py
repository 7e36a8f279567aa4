"""What remembered objects are worth: boxes and tracks with the memory and with its controls, and by greedy linking.

    python -m benchmarks.object_memory data/demo --weights perception_tiny_synthetic

Each frame is encoded once; the box head then runs over every scene in time order, once for each row:

    none         every frame is the first of its scene: no memory
    memory       as the weights have it
    no content   remembered objects come back as places alone, without what the decoder carried
    elsewhere    the memory of another scene: must be harmless
    oracle       the labels of the frame before as memory: the ceiling

The map's memory is at work in all rows but the first. Of each row's boxes two tracks are scored: the ids of the memory,
and ids linked by centre distance (bev/evaluation/linking.py).
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from drivestack.bev.boxes.memory import Objects
from drivestack.bev.evaluation.linking import LinkSettings
from drivestack.bev.evaluation.nuscenes_boxes import boxes_of_entries
from drivestack.bev.evaluation.nuscenes_metrics import evaluate
from drivestack.bev.evaluation.nuscenes_submission import NuScenesSubmission
from drivestack.bev.evaluation.tracking_metrics import evaluate_tracks
from drivestack.bev.evaluation.tracking_submission import TrackedBoxes, TrackingSubmission
from drivestack.core.answers import Detections
from drivestack.core.errors import ConfigError, DrivestackError
from drivestack.core.files import check_writable, write_json
from drivestack.core.frames import Frame
from drivestack.data_tools.clips.collate import collate_clips
from drivestack.data_tools.labels.ground_truth import ground_truth
from drivestack.data_tools.readers.registry import DataSource
from drivestack.engine.config import build_model, load_config
from drivestack.tasks.run import class_names, input_dataset

CONTROLS = ("none", "memory", "no content", "elsewhere", "oracle")
COLUMNS = ("NDS", "mAP", "mAVE", "mAOE", "twice", "AMOTA", "IDS", "FRAG", "linked AMOTA", "IDS", "FRAG")


class Drive:
    """Frames in scene and time order with what a model computes of each alone."""

    def __init__(self, config: Any, model: Any, frames: Sequence[Frame]) -> None:
        ordered = sorted(frames, key=lambda frame: (frame.scene_token, frame.timestamp_us))
        dataset = input_dataset(config, model, ordered)
        self.frames, self.names, self.model = list(dataset.frames), class_names(config), model
        self.batches = [collate_clips([dataset[i]]).without_labels() for i in range(len(self.frames))]
        with torch.inference_mode():
            self.encoded = [model.encode_frame_map(batch) for batch in self.batches]
        for batch in self.batches:
            batch.images = batch.images[:, :, :, :, :1, :1]  # not needed any more

    @torch.inference_mode()
    def run(self, control: str) -> list[Detections]:
        """The boxes of every frame."""
        model, states, found, spare = self.model, {}, [], None
        for i, (batch, (levels, features)) in enumerate(zip(self.batches, self.encoded)):
            (key,) = batch.stream_keys
            first = i == 0 or self.frames[i].scene_token != self.frames[i - 1].scene_token
            if control == "none":
                states = {}
            elif not first and key in states:
                state = states[key]
                if control == "oracle":
                    state = replace(state, objects=self._labels(self.frames[i - 1]).as_plain())
                elif control == "no content":
                    state = replace(state, objects=state.objects | {"content": 0 * state.objects["content"]})
                elif control == "elsewhere" and spare is not None:
                    state = replace(state, objects=spare)
                states = states | {key: state}
            elif first and i:
                spare = next(iter(states.values())).objects  # of the end of the scene before
            fused, new = model.memory(features, batch, states)
            outputs = model.run_head("boxes", fused, levels, batch, model.past_objects(batch, states, new))
            states = new | model.left_behind(outputs, batch, new)
            found += model.boxes.predict(outputs, batch)
        return found

    def _labels(self, frame: Frame) -> Objects:
        head = self.model.boxes.head
        boxes, labels = ground_truth(frame, self.names, head.point_range)
        return self.model.boxes.memory.objects_of_boxes(
            torch.from_numpy(boxes), torch.from_numpy(labels), torch.arange(len(boxes)), len(boxes)
        )

    def scores(self, found: Sequence[Detections], control: str) -> list[float]:
        """The row of COLUMNS."""
        results = NuScenesSubmission.from_detections(found, self.frames, self.names).results
        boxes = evaluate(self.frames, {token: boxes_of_entries(own) for token, own in results.items()})
        row = [boxes["nds"], boxes["map"], boxes["tp_errors"]["mAVE"], boxes["tp_errors"]["mAOE"], self._twice(found)]
        bare = [replace(own, track_ids=None) for own in found]
        for own in (found, bare):
            made = TrackingSubmission.from_detections(own, self.frames, self.names, LinkSettings())
            tracks = {
                token: TrackedBoxes(boxes_of_entries(entries, "tracking"), [box["tracking_id"] for box in entries])
                for token, entries in made.results.items()
            }
            scores = evaluate_tracks(self.frames, tracks)
            numbers = [scores[key] for key in ("amota", "ids", "frag")]
            row += [float("nan")] * 3 if own is found and control in ("none", "elsewhere", "oracle") else numbers
        return row

    @staticmethod
    def _twice(found: Sequence[Detections], score: float = 0.3, apart_m: float = 1.0) -> float:
        """Boxes in a frame that lie near a better one of their class: objects found twice."""
        count = 0
        for own in found:
            kept = own.scores >= score
            xy, labels = own.boxes[kept, :2], own.labels[kept]
            near = (np.linalg.norm(xy[:, None] - xy[None], axis=-1) < apart_m) & (labels[:, None] == labels)
            count += int(np.tril(near, -1).any(1).sum())
        return count / len(found)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataroot", help="a set in the nuScenes schema, split val")
    parser.add_argument("--config", default="perception_tiny_objects")
    parser.add_argument("--weights", default="perception_tiny_synthetic", help="may lack the memories")
    parser.add_argument("--rows", nargs="+", choices=CONTROLS, default=CONTROLS)
    parser.add_argument("--set", nargs="*", default=(), metavar="KEY=VALUE", help="of the object memory, after loading")
    parser.add_argument("--out", type=Path, help="also write the rows here, as JSON")
    options = parser.parse_args(arguments)

    from drivestack.core.checkpoint import load_checkpoint
    from drivestack.core.weights.shipped import weights_file

    config = load_config(options.config)
    model = build_model(config).eval()
    load_checkpoint(model, weights_file(options.weights), may_lack=(*model.teachers, "memory.", "boxes.memory."))
    frames = DataSource("nuscenes", options.dataroot, {"version": "v1.0-trainval", "split": "val"}).read()
    for text in options.set:
        name, _, value = text.partition("=")
        kind = type(getattr(model.boxes.memory, name, None))
        if kind not in (int, float):
            raise ConfigError(f"--set {text}: {name!r} is no number of the object memory")
        try:
            setattr(model.boxes.memory, name, kind(value))
        except ValueError:
            raise ConfigError(f"--set {text}: {value!r} is no {kind.__name__}") from None
    if options.out:
        check_writable(options.out)
    drive = Drive(config, model, frames)
    print(f"{len(frames)} frames of {options.dataroot}, {options.config}, weights {options.weights}", *options.set)
    widths = [max(8, len(name) + 2) for name in COLUMNS]
    print(f"{'':<12}" + "".join(f"{name:>{w}}" for name, w in zip(COLUMNS, widths)), flush=True)
    rows = {}
    for control in options.rows:
        row = rows[control] = drive.scores(drive.run(control), control)
        digits = (3, 3, 3, 3, 2, 3, 0, 0, 3, 0, 0)
        texts = [f"{value:.{d}f}" for value, d in zip(row, digits)]
        print(f"{control:<12}" + "".join(f"{text:>{w}}" for text, w in zip(texts, widths)), flush=True)
    if options.out:
        write_json(
            options.out, {name: [None if math.isnan(x) else x for x in row] for name, row in rows.items()}, indent=1
        )


if __name__ == "__main__":
    try:
        main()
    except DrivestackError as error:
        raise SystemExit(f"error: {error}") from None
