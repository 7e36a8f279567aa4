"""ROS 2 messages in MCAP files, without ROS: what a car's recording says about images, cameras, frames and its motion.

The only file that reads with the packages ``mcap`` and ``mcap-ros2-support`` (extra ``mcap``). Message definitions
stand inside the file, as rosbag2 writes them. Times are those of the messages' headers, in nanoseconds as there: when
the sensor fired, not when a message arrived on disk.

Images stay where they are: McapImage names the place of one message, and reading it opens one chunk.
Format: https://mcap.dev/spec (records), OMG CDR little- and big-endian (message bodies).
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

from ....core.errors import LIBRARY_ERRORS, ConfigError, DataError
from ....core.once import warn_once

INSTALL = "pip install 'drivestack[mcap]'"
IMAGE, INFO = "sensor_msgs/msg/CompressedImage", "sensor_msgs/msg/CameraInfo"
TRANSFORMS, ODOMETRY = "tf2_msgs/msg/TFMessage", "nav_msgs/msg/Odometry"
USED = (IMAGE, INFO, TRANSFORMS, ODOMETRY)

_MAGIC = b"\x89MCAP0\r\n"
_SCHEMA, _CHANNEL, _MESSAGE, _CHUNK, _DATA_END = 0x03, 0x04, 0x05, 0x06, 0x0F
_RECORD = struct.Struct("<BQ")  # opcode, length
_MESSAGE_HEAD = struct.Struct("<HIQQ")  # channel, sequence, log time, publish time
_FOOTER = struct.Struct("<BQQQI")  # opcode, length, start of the summary and of its offsets, checksum
_MOST_BYTES = 1 << 30  # of a chunk; writers use about 1 MB


@dataclass(frozen=True)
class McapImage:
    """One image's file inside an MCAP file (core.frames.EncodedImage)."""

    path: str
    topic: str
    chunk: int
    """Where its chunk's record begins in the file, -1 for a message outside of chunks."""
    offset: int
    """Where the message's record begins, in the uncompressed chunk or the file."""

    @property
    def source(self) -> str:
        inside = f"chunk at {self.chunk}, message at {self.offset}" if self.chunk >= 0 else f"message at {self.offset}"
        return f"{self.path}, {self.topic}, {inside}"

    def read(self) -> bytes:
        """The JPEG or PNG. Raises DataError, OSError where it is not there any more or damaged."""
        if self.chunk >= 0:
            records = _chunk_of(self.path, self.chunk)
            message = _record_at(records, self.offset, self.source)
        else:
            with open(self.path, "rb") as file:
                file.seek(self.offset)
                head = file.read(_RECORD.size)
                length = min(_RECORD.unpack(head)[1], _MOST_BYTES) if len(head) == _RECORD.size else 0
                message = _record_at(head + file.read(length), 0, self.source)
        return image_message(message, self.source).data


@dataclass(frozen=True)
class ImageMessage:
    """A CompressedImage."""

    stamp_ns: int
    frame_id: str
    format: str
    data: bytes


@dataclass(frozen=True)
class Picture:
    """A CompressedImage that stays in its file."""

    stamp_ns: int
    frame_id: str
    format: str
    image: McapImage


@dataclass(frozen=True)
class Transform:
    """``parent_from_child`` at a time."""

    stamp_ns: int
    parent: str
    child: str
    translation_m: tuple[float, float, float]
    quaternion_wxyz: tuple[float, float, float, float]
    static: bool = False


@dataclass
class Recording:
    """What one drive's files hold, by topic."""

    pictures: dict[str, list[Picture]] = field(default_factory=dict)
    infos: dict[str, list[tuple[int, Any]]] = field(default_factory=dict)
    """(header stamp in ns, CameraInfo as decoded) where it differs from the one before."""
    transforms: list[Transform] = field(default_factory=list)
    odometry: dict[str, list[Transform]] = field(default_factory=dict)
    others: dict[str, str] = field(default_factory=dict)
    """Topic -> message type of what is not used."""

    def add(self, path: Path) -> None:
        """All of one file. Raises DataError naming the file for one that cannot be used, ConfigError without the
        packages."""
        seen: dict[str, tuple] = {}  # topic of infos -> content of the last one
        for topic, kind, place, body, decode in _messages(path, self.others):
            if kind == IMAGE:
                image = image_message(body, place.source)
                self.pictures.setdefault(topic, []).append(Picture(image.stamp_ns, image.frame_id, image.format, place))
                continue
            try:
                message = decode(body)
                if kind == INFO:
                    content = _content(message)
                    if seen.get(topic) != content:
                        seen[topic] = content
                        self.infos.setdefault(topic, []).append((_stamp_ns(message.header.stamp), message))
                elif kind == TRANSFORMS:
                    static = topic.rstrip("/").endswith("tf_static")
                    self.transforms += [_transform(row, static) for row in message.transforms]
                else:
                    self.odometry.setdefault(topic, []).append(_odometry(message))
            except (*LIBRARY_ERRORS, struct.error) as error:
                raise DataError(
                    f"{place.source}: not a {kind} ({type(error).__name__}: {error}); record the file again"
                ) from None


def image_message(body: bytes, where: str) -> ImageMessage:
    """A CompressedImage from its CDR bytes: header (stamp, frame), format, data. Raises DataError naming the place."""
    try:
        end = {0: ">", 1: "<"}[body[1] & 1]
        seconds, nanoseconds = struct.unpack_from(f"{end}iI", body, 4)
        frame_id, at = _text(body, 12, end)
        kind, at = _text(body, at, end)
        at = -(-at // 4) * 4
        (length,) = struct.unpack_from(f"{end}I", body, at)
        data = body[at + 4 : at + 4 + length]
        if len(data) != length:
            raise ValueError(f"{len(data)} of {length} bytes of the image are there")
    except (struct.error, ValueError, IndexError) as error:
        raise DataError(f"{where}: not a CompressedImage ({error}); record the file again") from None
    return ImageMessage(seconds * 10**9 + nanoseconds, frame_id, kind, data)


def _text(body: bytes, at: int, end: str) -> tuple[str, int]:
    """A CDR string (length with its final zero, letters) at an offset, and where it ends."""
    at = -(-at // 4) * 4
    (length,) = struct.unpack_from(f"{end}I", body, at)
    letters = body[at + 4 : at + 4 + length]
    if len(letters) != length:
        raise ValueError("a text ends after the message")
    return letters.rstrip(b"\0").decode("utf-8"), at + 4 + length


def _stamp_ns(stamp: Any) -> int:
    return int(stamp.sec) * 10**9 + int(stamp.nanosec)


def _transform(row: Any, static: bool) -> Transform:
    t, q = row.transform.translation, row.transform.rotation
    names = row.header.frame_id.lstrip("/"), row.child_frame_id.lstrip("/")
    return Transform(_stamp_ns(row.header.stamp), *names, (t.x, t.y, t.z), (q.w, q.x, q.y, q.z), static)


def _odometry(message: Any) -> Transform:
    t, q = message.pose.pose.position, message.pose.pose.orientation
    names = message.header.frame_id.lstrip("/"), message.child_frame_id.lstrip("/")
    return Transform(_stamp_ns(message.header.stamp), *names, (t.x, t.y, t.z), (q.w, q.x, q.y, q.z))


def _content(info: Any) -> tuple:
    """What a CameraInfo says beside its time, to see where it changes."""
    roi = info.roi
    numbers = (*info.d, None, *info.k, *info.r, *info.p)
    binning = info.binning_x, info.binning_y, roi.x_offset, roi.y_offset, roi.width, roi.height
    return info.header.frame_id, info.width, info.height, info.distortion_model, *numbers, *binning


# ------------------------------------------------------------------------------------------------ records of a file


@dataclass(frozen=True)
class _Channel:
    topic: str
    kind: str
    decode: Callable[[bytes], Any]


def _messages(
    path: Path, others: dict[str, str]
) -> Iterator[tuple[str, str, McapImage, bytes, Callable[[bytes], Any]]]:
    """(topic, type, place, CDR bytes, decoder) of each message of a used type, in the order of the file.

    others: gets topic and type of channels that are not used. A file that was cut short, as a recorder leaves it that
    was killed, is read up to there, with one line that says so.
    """
    records, decoders = _packages()
    schemas: dict[int, Any] = {}
    channels: dict[int, _Channel | None] = {}
    known = schemas, channels, others

    def of_body(body: bytes, chunk: int) -> Iterator[tuple[str, str, McapImage, bytes, Callable[[bytes], Any]]]:
        at = 0
        while at + _RECORD.size <= len(body):
            opcode, length = _RECORD.unpack_from(body, at)
            start, end = at + _RECORD.size, at + _RECORD.size + length
            if end > len(body):
                raise DataError(f"{path}: a record reaches beyond its chunk (at {chunk}); record the file again")
            if opcode in (_SCHEMA, _CHANNEL):
                _register(_declared(opcode, body[start:end], records, path), decoders, known, path)
            elif opcode == _MESSAGE:
                number = _MESSAGE_HEAD.unpack_from(body, start)[0]
                if number not in channels:
                    raise DataError(f"{path}: a message is of channel {number}, which nothing before it declares; "
                                    "record the file again")  # fmt: skip
                if channel := channels[number]:
                    place = McapImage(str(path), channel.topic, chunk, at)
                    yield channel.topic, channel.kind, place, body[start + _MESSAGE_HEAD.size : end], channel.decode
            at = end

    try:
        size, (declared, unused) = path.stat().st_size, _summary_of(path)
        for record in declared:
            _register(record, decoders, known, path)
        with path.open("rb") as file:
            if file.read(len(_MAGIC)) != _MAGIC:
                raise DataError(f"{path}: not an MCAP file; name the .mcap of a recording")
            at = len(_MAGIC)
            while True:
                file.seek(at)
                head = file.read(_RECORD.size)
                opcode, length = _RECORD.unpack(head) if len(head) == _RECORD.size else (0, 0)
                if opcode == _DATA_END:
                    return
                if not opcode or at + _RECORD.size + length > size:
                    warn_once(f"{path}: ends within its data, at byte {at} of {size}: read up to there")
                    return
                if opcode == _CHUNK and at not in unused:
                    yield from of_body(_chunk_of(str(path), at), at)
                elif opcode in (_SCHEMA, _CHANNEL, _MESSAGE):
                    for topic, kind, place, body, decode in of_body(head + file.read(length), -1):
                        yield topic, kind, McapImage(place.path, topic, -1, at), body, decode
                at += _RECORD.size + length
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; name the .mcap of a recording, or its folder") from None
    except struct.error:
        raise DataError(f"{path}: a record is too short for its kind; record the file again") from None


def _declared(opcode: int, body: bytes, records: Any, path: Path) -> Any:
    """The Schema or Channel of a record."""
    try:
        return (records.Schema if opcode == _SCHEMA else records.Channel).read(_stream_of(body))
    except Exception as error:  # of a package, which raises what it likes
        raise DataError(f"{path}: a schema or channel cannot be read ({error}); record the file again") from None


def _register(record: Any, decoders: Any, known: tuple, path: Path) -> None:
    """Takes note of a Schema or Channel."""
    schemas, channels, others = known
    if not hasattr(record, "topic"):
        schemas[record.id] = record
        return
    schema = schemas.get(record.schema_id)
    kind = "" if schema is None else schema.name
    if record.id in channels:
        return
    if kind not in USED:
        others[record.topic], channels[record.id] = kind or "no schema", None
        return
    try:
        decode = decoders.decoder_for(record.message_encoding, schema)
    except Exception as error:  # of a package, which raises what it likes
        raise DataError(f"{path}: schema {kind} cannot be used ({error}); record the file again") from None
    if decode is None:
        raise DataError(
            f"{path}: topic {record.topic} has {kind} as {record.message_encoding}/{schema.encoding}, not as cdr "
            "with ros2msg definitions; convert the recording with `ros2 bag convert` (ROS 1: rosbags-convert)"
        )
    channels[record.id] = _Channel(record.topic, kind, decode)


def _summary_of(path: Path) -> tuple[list[Any], set[int]]:
    """The schemas and channels of a file's summary, and the offsets of chunks that need not be opened.

    Those hold no message of a used type. The records of schemas and channels in them may serve later chunks, so none is
    left out unless the summary declares every channel of the file.
    """
    from mcap.reader import make_reader

    try:
        with path.open("rb") as file:
            summary = make_reader(file).get_summary()
            if summary is None or not _is_summary_whole(file):
                return [], set()
    except OSError:
        raise
    except Exception:  # no summary, or a damaged one: everything is read
        return [], set()
    schemas = summary.schemas
    channels = {n: row for n, row in summary.channels.items() if not row.schema_id or row.schema_id in schemas}
    declared = [*schemas.values(), *channels.values()]
    held = [(index.chunk_start_offset, index.message_index_offsets.keys()) for index in summary.chunk_indexes]
    if len(channels) < len(summary.channels) or not all(numbers <= channels.keys() for _, numbers in held):
        return declared, set()
    used = {n for n, row in channels.items() if row.schema_id and schemas[row.schema_id].name in USED}
    return declared, {offset for offset, numbers in held if numbers and not used & numbers}


def _is_summary_whole(file: BinaryIO) -> bool:
    """Whether the summary has the checksum that the footer states; True where it states none."""
    end = file.seek(-_FOOTER.size - len(_MAGIC), 2) + _FOOTER.size - 4  # of what the checksum is about
    start, _, stated = _FOOTER.unpack(file.read(_FOOTER.size))[2:]
    crc = 0
    at = file.seek(start)
    while at < end and (part := file.read(min(1 << 20, end - at))):
        crc, at = zlib.crc32(part, crc), at + len(part)
    return stated in (0, crc)


# --------------------------------------------------------------------------------------------------- random access

_last_chunk: tuple[tuple[str, int, int, int], bytes] | None = None
"""Of this process: neighbouring cameras of a keyframe lie in one chunk."""


def _chunk_of(path: str, offset: int) -> bytes:
    """The uncompressed records of the chunk at an offset of a file. Raises DataError for one that is damaged."""
    global _last_chunk
    stat = Path(path).stat()
    key = path, stat.st_mtime_ns, stat.st_size, offset
    kept = _last_chunk
    if kept is not None and kept[0] == key:
        return kept[1]
    records, _ = _packages()
    with open(path, "rb") as file:
        file.seek(offset)
        head = file.read(_RECORD.size)
        opcode, length = _RECORD.unpack(head) if len(head) == _RECORD.size else (0, 0)
        if opcode != _CHUNK or not 0 < length <= _MOST_BYTES:
            raise DataError(f"{path}: no chunk at {offset}; the file has changed: read the set again")
        body = file.read(length)
    try:
        chunk = records.Chunk.read(_stream_of(body))
        if chunk.uncompressed_size > _MOST_BYTES:
            raise ValueError(f"it says that it holds {chunk.uncompressed_size} bytes")
        content = _decompressed(chunk.data, chunk.compression, chunk.uncompressed_size)
        if chunk.uncompressed_crc not in (0, zlib.crc32(content)):
            raise ValueError("its checksum is another")
    except Exception as error:  # zstd, lz4, checksum or record: each has exceptions of its own
        raise DataError(f"{path}: chunk at {offset} is damaged ({error}); fetch or record the file again") from None
    _last_chunk = key, content
    return content


def _decompressed(data: bytes, compression: str, size: int) -> bytes:
    """The content of a chunk that states its size. Raises ValueError for another size.

    In a stream, for at once both packages allocate what the compressed data itself states, up to terabytes.
    """
    if compression == "zstd":
        import zstandard

        content = zstandard.ZstdDecompressor().stream_reader(data, read_across_frames=True).read(size + 1)
    elif compression == "lz4":
        import lz4.frame

        content = lz4.frame.LZ4FrameDecompressor().decompress(data, size + 1)
    elif compression:
        raise ValueError(f"compression {compression[:20]!r} is none of zstd, lz4")
    else:
        content = data
    if len(content) != size:
        raise ValueError(f"it says that it holds {size} bytes, and holds {'more' if len(content) > size else 'fewer'}")
    return content


def _record_at(records: bytes, at: int, where: str) -> bytes:
    """The CDR bytes of the message whose record begins there."""
    if at + _RECORD.size <= len(records):
        opcode, length = _RECORD.unpack_from(records, at)
        end = at + _RECORD.size + length
        if opcode == _MESSAGE and end <= len(records) and length >= _MESSAGE_HEAD.size:
            return records[at + _RECORD.size + _MESSAGE_HEAD.size : end]
    raise DataError(f"{where}: no message there; the file has changed: read the set again")


def _stream_of(body: bytes) -> Any:
    from mcap.data_stream import ReadDataStream

    return ReadDataStream(BytesIO(body))


def _packages() -> tuple[Any, Any]:
    """The records of ``mcap``, and a factory of decoders of ``mcap_ros2``."""
    try:
        import mcap.records
        import mcap_ros2.decoder
    except ImportError as error:
        raise ConfigError(f"reading MCAP files needs mcap and mcap-ros2-support ({error}); {INSTALL}") from None
    return mcap.records, mcap_ros2.decoder.DecoderFactory()
