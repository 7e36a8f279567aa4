"""Waymo's own detection metric on two files of its messages; runs in the official package's environment alone.

    PYTHON_OF_THAT_ENVIRONMENT benchmarks/waymo_judge.py PREDICTIONS GROUND_TRUTHS OUT.json

PREDICTIONS: a .tar.gz of messages Submission; GROUND_TRUTHS: a message Objects, boxes with their difficulty. Nothing of
drivestack is imported: files are parsed by the official classes, scores are those of the official TensorFlow operator.
Written to OUT.json: {"let" and "standard": {breakdown: [AP, APH, APL]}}. Called by waymo_official.py.
"""

import json
import os
import sys
import tarfile

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import numpy as np
from waymo_open_dataset.metrics.ops import py_metrics_ops
from waymo_open_dataset.metrics.python import config_util_py
from waymo_open_dataset.protos import breakdown_pb2, metrics_pb2, submission_pb2

IOU = {"let": [0.0, 0.5, 0.3, 0.3, 0.3], "standard": [0.0, 0.7, 0.5, 0.5, 0.5]}  # by type; unknown first


def settings(name):
    """The settings of the camera-only challenge's tool, or of the standard one."""
    config = metrics_pb2.Config()
    config.box_type = 1  # TYPE_3D
    config.matcher_type = metrics_pb2.MatcherProto.TYPE_HUNGARIAN
    config.iou_thresholds.extend(IOU[name])
    config.score_cutoffs.extend([0.01 * i for i in range(100)] + [1.0])
    for breakdown in (breakdown_pb2.Breakdown.OBJECT_TYPE, breakdown_pb2.Breakdown.RANGE):
        config.breakdown_generator_ids.append(breakdown)
        config.difficulties.add().levels.extend([1, 2])
    if name == "let":
        let = config.let_metric_config
        let.enabled = True
        let.sensor_location.x, let.sensor_location.y, let.sensor_location.z = 1.43, 0.0, 2.18
        let.longitudinal_tolerance_percentage = 0.1
        let.min_longitudinal_tolerance_meter = 0.5
        let.align_type = 2  # TYPE_RANGE_ALIGNED
    return config


def columns(objects, frames):
    """Arrays of messages Object; frames: number of each (context, timestamp), extended here."""
    boxes, types, scores, zones, levels, index = [], [], [], [], [], []
    for own in objects:
        box = own.object.box
        boxes.append([box.center_x, box.center_y, box.center_z, box.length, box.width, box.height, box.heading])
        types.append(own.object.type)
        scores.append(own.score)
        zones.append(own.overlap_with_nlz)
        levels.append(own.object.detection_difficulty_level)
        index.append(frames.setdefault((own.context_name, own.frame_timestamp_micros), len(frames)))
    return (
        np.array(boxes, np.float32).reshape(-1, 7),
        np.array(types, np.uint8),
        np.array(scores, np.float32),
        np.array(zones, bool),
        np.array(levels, np.uint8),
        np.array(index, np.int64),
    )


def main():
    predictions, truths, out = sys.argv[1:]
    found = []
    with tarfile.open(predictions) as archive:
        for member in archive:
            shard = submission_pb2.Submission()
            shard.ParseFromString(archive.extractfile(member).read())
            found.extend(shard.inference_results.objects)
    labels = metrics_pb2.Objects()
    with open(truths, "rb") as file:
        labels.ParseFromString(file.read())
    frames = {}
    gt_box, gt_type, _, _, gt_level, gt_frame = columns(labels.objects, frames)
    pd_box, pd_type, pd_score, pd_zone, _, pd_frame = columns(found, frames)
    result = {}
    for name in IOU:
        config = settings(name)
        ap, aph, apl = py_metrics_ops.detection_metrics(
            prediction_bbox=pd_box,
            prediction_type=pd_type,
            prediction_score=pd_score,
            prediction_frame_id=pd_frame,
            prediction_overlap_nlz=pd_zone,
            ground_truth_bbox=gt_box,
            ground_truth_type=gt_type,
            ground_truth_frame_id=gt_frame,
            ground_truth_difficulty=gt_level,
            config=config.SerializeToString(),
        )[:3]
        names = config_util_py.get_breakdown_names_from_config(config)
        result[name] = {key: [float(ap[i]), float(aph[i]), float(apl[i])] for i, key in enumerate(names)}
    with open(out, "w", encoding="utf-8") as file:
        json.dump(result, file)


if __name__ == "__main__":
    main()
