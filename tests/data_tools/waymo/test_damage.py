"""Files with one random change are read, or refused in one line."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from drivestack.core.errors import DrivestackError
from drivestack.data_tools.clips.images import load_image
from drivestack.data_tools.readers.registry import DataSource
from drivestack.data_tools.readers.waymo.tfrecords import record
from drivestack.data_tools.synthetic.files.waymo_writer import write_waymo_v1, write_waymo_v2
from support.waymo_frames import drive

CHANGES = 60


def outcome(root: Path) -> str:
    """What reading all frames and images says, '' for nothing."""
    try:
        for frame in DataSource("waymo", root, {}).read():
            for view in frame.cameras:
                load_image(view, frame.token)
    except DrivestackError as error:
        return str(error)
    return ""


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_damage_is_named_or_harmless(version: str, tmp_path: Path) -> None:
    folder, rng, said = tmp_path / "validation", random.Random(5), []
    write = write_waymo_v1 if version == "v1" else write_waymo_v2
    whole = {path: path.read_bytes() for path in write(drive(num_frames=1), folder)}
    for _ in range(CHANGES):
        path = rng.choice(list(whole))
        content = bytearray(whole[path][12:-4] if version == "v1" else whole[path])
        place = rng.randrange(1200)  # context and poses come first, labels or the table's own columns last
        content[place if rng.random() < 0.5 else len(content) - 1 - place % len(content)] ^= 1 << rng.randrange(8)
        path.write_bytes(record(bytes(content)) if version == "v1" else content)
        said.append(outcome(tmp_path))
        path.write_bytes(whole[path])
    assert CHANGES / 10 < sum(map(bool, said)) < CHANGES
    assert not any("\n" in text for text in said)
    assert all(str(tmp_path) in text or "sample " in text for text in said if text), said
    assert outcome(tmp_path) == ""
