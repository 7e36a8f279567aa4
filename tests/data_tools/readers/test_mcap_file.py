"""MCAP files record by record: which chunks are opened, what is believed, and how much memory they may take."""

from __future__ import annotations

import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from drivestack.core.errors import DataError
from drivestack.data_tools.readers.recordings import mcap_file
from drivestack.data_tools.readers.recordings.mcap_log import read_mcap
from support.toy_recording import usual

pytest.importorskip("mcap", reason="reading recordings needs mcap (extra mcap)")
pytest.importorskip("mcap_ros2", reason="reading recordings needs mcap-ros2-support (extra mcap)")


def with_blob(path: Path, **options) -> Path:
    """A recording whose first chunk is filled by one message of a LiDAR, after all schemas and channels."""
    from mcap.writer import Writer

    log = usual(path.with_suffix(".plain.mcap"))
    log.done()
    from mcap.reader import make_reader

    with log.path.open("rb") as file, path.open("wb") as out:
        rows = list(make_reader(file).iter_messages(log_time_order=False))
        writer = Writer(out, **options)
        writer.start()
        cloud = writer.register_schema("sensor_msgs/msg/PointCloud2", "ros2msg", b"uint8[] data")
        schemas, channels = {}, {}
        blob = writer.register_channel("/lidar", "cdr", cloud)
        for schema, channel, _ in rows:
            if schema.id not in schemas:
                schemas[schema.id] = writer.register_schema(schema.name, schema.encoding, schema.data)
            if channel.id not in channels:
                channels[channel.id] = writer.register_channel(channel.topic, "cdr", schemas[schema.id])
        writer.add_message(blob, 0, np.random.default_rng(0).bytes(1_500_000), 0)
        for _, channel, message in rows:
            writer.add_message(channels[channel.id], 0, message.data, 0)
        writer.finish()
    log.path.unlink()
    return path


@pytest.mark.parametrize("options", [{}, {"repeat_schemas": False}, {"repeat_channels": False}])
def test_channels_that_are_declared_in_a_chunk_of_other_messages(
    tmp_path: Path, options: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Images whose channels stand in a chunk that a LiDAR fills; it is opened only where the summary lacks them."""
    opened: list[int] = []
    whole = mcap_file._chunk_of
    monkeypatch.setattr(mcap_file, "_chunk_of", lambda path, at: opened.append(at) or whole(path, at))
    path = with_blob(tmp_path / "a.mcap", **options)
    recording = mcap_file.Recording()
    recording.add(path)
    assert {topic: len(rows) for topic, rows in recording.pictures.items()} == {"/cam/front/image_raw/compressed": 10}
    assert len(recording.odometry["/odom"]) == 21 and len(recording.infos) == len(recording.transforms) == 1
    assert recording.others == {"/lidar": "sensor_msgs/msg/PointCloud2"}
    assert len(opened) == (2 if options else 1)
    assert len(read_mcap(path)) == 10


def test_messages_of_a_channel_that_nothing_declares(tmp_path: Path) -> None:
    from mcap.writer import Writer

    with (tmp_path / "a.mcap").open("wb") as out:
        writer = Writer(out, use_chunking=False)
        writer.start()
        writer.add_message(7, 0, b"", 0)
        writer.finish()
    with pytest.raises(DataError, match="a message is of channel 7, which nothing before it declares"):
        read_mcap(tmp_path / "a.mcap")


def test_a_damaged_summary_is_not_trusted(tmp_path: Path) -> None:
    """The name of a topic, changed in the summary alone: what the data says holds."""
    path = with_blob(tmp_path / "a.mcap")
    content = path.read_bytes()
    at = content.rindex(b"/cam/front/image_raw")
    path.write_bytes(content[:at] + b"/cam/XXXXX" + content[at + 10 :])
    assert [view.name for view in read_mcap(path)[0].cameras] == ["front"]


@pytest.mark.parametrize(
    ("compression", "stated", "says"),
    [
        ("zstd", 100, "it says that it holds 100 bytes, and holds more"),
        ("lz4", 100, "it says that it holds 100 bytes, and holds more"),
        ("", 100, "it says that it holds 100 bytes, and holds more"),
        ("zstd", 50_000_001, "it says that it holds 50000001 bytes, and holds fewer"),
        ("lz4", 50_000_001, "it says that it holds 50000001 bytes, and holds fewer"),
        ("zstd", 2 << 30, "it says that it holds 2147483648 bytes"),
        ("snappy", 100, "compression 'snappy' is none of zstd, lz4"),
    ],
)
def test_a_chunk_takes_no_more_memory_than_it_states(tmp_path: Path, compression: str, stated: int, says: str) -> None:
    """A few KB that hold 50 MB of zeros, as their own header says."""
    import lz4.frame
    import zstandard
    from mcap.data_stream import RecordBuilder
    from mcap.records import Chunk

    zeros = b"\x80" + struct.pack("<Q", 50_000_000 - 9) + bytes(50_000_000 - 9)  # one record of an unknown kind
    packed = {"zstd": zstandard.compress, "lz4": lz4.frame.compress}.get(compression, bytes)(zeros)
    path = tmp_path / "a.mcap"
    for size in (len(zeros), stated):
        builder = RecordBuilder()
        Chunk(compression, packed, 0, 0, 0, size).write(builder)
        path.write_bytes(b"\x89MCAP0\r\n" + builder.end() + struct.pack("<BQI", 0x0F, 4, 0))
        if size == len(zeros) and compression != "snappy":
            mcap_file.Recording().add(path)
    size_mb = path.stat().st_size / 1e6
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=rf"a\.mcap: chunk at 8 is damaged \({says}"):
            mcap_file.Recording().add(path)
        peak_mb = tracemalloc.get_traced_memory()[1] / 1e6
    finally:
        tracemalloc.stop()
    assert peak_mb < (110 if stated > 100 else 5 + 3 * size_mb)
