"""Images in tar files in WebDataset's layout: neighbours ``KEY.jpg`` and ``KEY.cls`` (or ``KEY.json``) are a sample.

The tar files are listed once, and each image is then read from its place: so the order is the sampler's, as everywhere
here, and a resumed run reads what an undisturbed one would. Files of one shard are a group: with the sampler's
``run_length`` set, so many neighbours are read one after the other, which network disks like.
"""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ....core.errors import DataError
from ....core.once import warn_once
from ..image_files import MOST_BYTES, is_image_name
from .sources import Source, check_unique

LABELS = (".cls", ".json")
MOST_LABEL_BYTES = 1 << 20
LABEL_KEYS = ("cls", "label", "class", "target")
"""Of a .json file: the first that is there holds the class."""


class ShardSource(Source):
    """Tar files, uncompressed: a folder of them, one, or a list.

    classes: names in the order of the numbers; a sample's class may be a number or one of these names.

    Raises DataError naming shard and member for a file that is no tar or is cut off, a sample without an image or
    class, and one that comes twice.
    """

    def __init__(self, shards: str | Path | Sequence[str | Path], classes: Sequence[str] | None = None) -> None:
        self.class_names = None if classes is None else list(classes)
        self._files = _shard_files(shards)
        self.tokens, self._places, labels, groups = [], [], [], []
        for number, path in enumerate(self._files):
            for token, start, size, label in self._samples(path):
                self.tokens.append(token)
                self._places.append((number, start, size))
                labels.append(label)
                groups.append(path.name)
        check_unique(self.tokens, str(shards))
        self.labels, self.groups = np.array(labels, np.int64), groups

    def _samples(self, path: Path) -> Iterator[tuple[str, int, int, int]]:
        """(token, first byte, bytes, class) of each image."""
        key, image, label, count = "", None, None, 0
        for name, start, size, content in _members(path):
            stem, suffix = _split(name)
            if stem != key:
                if key:
                    yield self._sample(path, key, image, label)
                    count += 1
                key, image, label = stem, None, None
            if is_image_name(Path(name).name):
                if image is not None:
                    raise DataError(
                        f"{path}: {stem} has two images, {image[0]} and {name}; give each a name of its own"
                    )
                image = (name, start, size)
            elif suffix in LABELS:
                label = self._label(f"{path}: {name}", suffix, content)
            else:
                warn_once(f"{path}: files such as {name} are no images and no classes ({', '.join(LABELS)}), not read")
        if key:
            yield self._sample(path, key, image, label)
            count += 1
        if not count:
            raise DataError(f"{path}: holds no samples; fetch it again, or take it out of the set")

    def _sample(
        self, path: Path, key: str, image: tuple[str, int, int] | None, label: int | None
    ) -> tuple[str, int, int, int]:
        if image is None or label is None:
            lost = "image" if image is None else f"class ({' or '.join(LABELS)})"
            raise DataError(f"{path}: {key} has no {lost} beside it; a sample's files have one name and are neighbours")
        return image[0], image[1], image[2], label

    def _label(self, place: str, suffix: str, content: bytes) -> int:
        try:
            text = content.decode("utf-8").strip()
            found = text
            if suffix == ".json":
                values = json.loads(text)
                found = next(values[key] for key in LABEL_KEYS if key in values)
            if self.class_names is not None and found in self.class_names:
                return self.class_names.index(found)
            return int(found)
        except (ValueError, TypeError, StopIteration, RecursionError):
            raise DataError(
                f"{place}: holds no class ({content[:40]!r}); a number, or one of the classes' names"
            ) from None

    def read(self, index: int) -> bytes:
        number, start, size = self._places[index]
        with self._files[number].open("rb") as file:
            file.seek(start)
            data = file.read(size)
        if len(data) < size:
            raise DataError(f"{self.place(index)}: the shard is cut off; fetch it again")
        return data

    def place(self, index: int) -> str:
        return f"{self._files[self._places[index][0]]}: {self.tokens[index]}"


def _shard_files(shards: str | Path | Sequence[str | Path]) -> list[Path]:
    if isinstance(shards, (str, Path)):
        root = Path(shards)
        files = sorted(root.glob("*.tar"), key=lambda path: _natural_order(path.name)) if root.is_dir() else [root]
    else:
        files = [Path(path) for path in shards]
    if not files:
        raise DataError(f"{shards}: no .tar files in it; name a folder of shards, or the shards")
    if missing := [path for path in files if not path.is_file()]:
        raise DataError(f"{missing[0]}: no such shard; fetch it, or take it out of the list")
    return files


def _members(path: Path) -> Iterator[tuple[str, int, int, bytes]]:
    """(name, first byte, bytes, content of a label) of the plain files in a tar."""
    size = path.stat().st_size
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                if not member.isfile() or member.issparse():
                    if not member.isdir():
                        raise DataError(f"{path}: {member.name} is a link or device; only plain files are read")
                    continue
                if member.size > MOST_BYTES or member.offset_data + member.size > size:
                    raise DataError(
                        f"{path}: {member.name} states {member.size} bytes, more than there are; fetch it again"
                    )
                content = b""
                if _split(member.name)[1] in LABELS:
                    if member.size > MOST_LABEL_BYTES:
                        raise DataError(f"{path}: {member.name} has {member.size} bytes, too many for a class")
                    stream = archive.extractfile(member)
                    assert stream is not None  # a plain file
                    content = stream.read()
                yield member.name, member.offset_data, member.size, content
                archive.members = []  # type: ignore[attr-defined]  # TarFile keeps all that it has seen
    except (tarfile.TarError, EOFError, ValueError) as error:
        raise DataError(f"{path}: not a readable, uncompressed tar file ({error}); fetch or unpack it again") from None


def _split(name: str) -> tuple[str, str]:
    """Key and suffix as WebDataset means them: the suffix begins at the first dot of the file's name."""
    folder, slash, file = name.rpartition("/")
    stem, dot, suffix = file.partition(".")
    return folder + slash + stem, (dot + suffix).lower()


def _natural_order(name: str) -> list[Any]:
    """A key that sorts shard-2 before shard-10."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]
