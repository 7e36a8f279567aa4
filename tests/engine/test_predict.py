"""Prediction over a data set: order, history, times."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import Dataset

from drivestack.core.answers import Detections, OccupancyGrid, SceneAnswer
from drivestack.core.batch import Batch
from drivestack.core.frames import Frame
from drivestack.data_tools.clips.collate import ClipSample
from drivestack.engine.predict import predict

SCENES = ["a", "b", "a", "b", "b"]


class Clips(Dataset):
    """Five keyframes of two scenes; one camera of 4 x 4 pixels."""

    scene_tokens = sorted(SCENES)

    def __len__(self) -> int:
        return len(SCENES)

    def __getitem__(self, index: int) -> ClipSample:
        eye = np.eye(4, dtype=np.float32)
        token = f"{self.scene_tokens[index]}{index}"
        return ClipSample(
            images=[[np.zeros((3, 4, 4), np.float32)]],
            frame_offsets=(0,),
            image_from_bev=eye[None, None],
            image_flipped=False,
            bda=eye[:3, :3],
            intrinsics=eye[None, :3, :3],
            bev_from_camera=eye[None],
            frame=Frame(token, token[0], token[0], index, (), np.eye(4)),
            camera_names=("front",),
        )


class Remembers(nn.Module):
    """Says in the scores how many calls its history has seen."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.histories: list[int | None] = []

    def predict(self, batch: Batch, history: int | None = None, tasks=None) -> tuple[list[SceneAnswer], int]:
        assert not self.training
        self.histories.append(history)
        empty = np.zeros((0, 9), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64)
        return [SceneAnswer(t, Detections(t, *empty)) for t in batch.tokens], (history or 0) + 1


def test_every_clip_once_in_time_order_with_history(caplog: pytest.LogCaptureFixture) -> None:
    model = Remembers()
    with caplog.at_level(logging.INFO, logger="drivestack"):
        found = predict(model, Clips())
    assert list(found.answers) == ["a0", "a1", "b2", "b3", "b4"]
    assert model.histories == [None, 1, 2, 3, 4]
    assert found.timing["samples"] == 5
    assert set(found.timing) == {"samples", "seconds", "model_seconds_per_sample", "data_seconds_per_sample"}
    assert [record.getMessage().split()[1] for record in caplog.records] == ["1/5", "2/5", "3/5", "4/5", "5/5"]


def test_larger_batches_hand_the_history_on_and_give_the_same_samples() -> None:
    model = Remembers()
    found = predict(model, Clips(), batch_size=2, progress=False)
    assert sorted(found.answers) == ["a0", "a1", "b2", "b3", "b4"]
    assert model.histories == [None, 1, 2]


class Several(Remembers):
    """Answers with more than boxes."""

    def predict(self, batch: Batch, history: int | None = None, tasks=None) -> tuple[list[SceneAnswer], int]:
        answers, history = super().predict(batch, history)
        voxels = np.zeros((2, 2, 1), np.uint8)
        return [replace(own, occupancy=OccupancyGrid(own.token, voxels)) for own in answers], history


def test_large_parts_need_not_be_kept() -> None:
    stored = []

    def keep(answer: SceneAnswer) -> SceneAnswer:
        stored.append(answer.occupancy)
        return replace(answer, occupancy=None)

    found = predict(Several(), Clips(), progress=False, keep=keep)
    assert [grid.token for grid in stored] == list(found.answers) == list(found.answers)
    assert all(answer.occupancy is None for answer in found.answers.values())
