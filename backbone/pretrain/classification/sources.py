"""Where images and their classes come from: folders, list files, zip archives, memory.

A source lists its images when it is made and reads them one by one, by their number. Others: shards.py, inaturalist.py.
"""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ....core.archives import is_plain_name, open_zip, read_member
from ....core.errors import DataError
from ....core.once import warn_once
from ..image_files import MOST_BYTES, SUFFIXES, image_bytes, is_image_name
from .batch import UNLABELLED

MOST_ZIP_MEMBERS = 20_000_000  # ImageNet-22K has 14 million images
PARTS = ("train", "val")
HELD_OUT = 10
"""Of a folder without train/ and val/, one image in so many is for validation."""


class Source(ABC):
    """Images with classes.

    tokens: of each image, its path in the source. labels: [n] int64, UNLABELLED where there is none. class_names: in
    the labels' order, None where the source knows numbers only.
    """

    tokens: Sequence[str]
    labels: NDArray[np.int64]
    class_names: Sequence[str] | None = None
    groups: Sequence[str] | None = None
    """Of each image, what it lies near to on the disk (its shard), for samplers; None where that is no matter."""

    @abstractmethod
    def read(self, index: int) -> bytes:
        """The image's file. Raises DataError, naming it."""

    def place(self, index: int) -> str:
        """The image in messages."""
        return self.tokens[index]

    def metadata(self, index: int) -> tuple[Sequence[float], Sequence[float]] | None:
        """When ([4]) and where ([3]) an image was taken; None from a source that does not say."""
        return None


class FolderSource(Source):
    """A folder of classes, each a folder of images, at any depth: ROOT/PART/CLASS/**/IMAGE, or ROOT/CLASS/**/IMAGE.

    part: "train" or "val". Where ROOT has neither folder, the images of ROOT/CLASS are parted by a hash of their path:
    one in ten is "val"; with None all are taken. Classes are numbered by their names' order, or as in ``classes``.

    Raises DataError for a folder that is missing or holds no class, a class without images, or one not in ``classes``.
    """

    def __init__(self, root: str | Path, part: str | None = None, classes: Sequence[str] | None = None) -> None:
        self.root = Path(root)
        if part not in (None, *PARTS):
            raise DataError(f"part {part!r}: choose one of {', '.join(PARTS)}, or leave it out")
        if not self.root.is_dir():
            raise DataError(f"{self.root}: no such folder; name the folder that holds the classes' folders")
        has_parts = part is not None and any((self.root / name).is_dir() for name in PARTS)
        if has_parts:
            self.root /= str(part)
            if not self.root.is_dir():
                raise DataError(
                    f"{self.root}: no such folder, though the other part is there; make it, or name its root"
                )
        elif part is not None:
            warn_once(
                f"{root}: has no train/ and val/ folders: one image in {HELD_OUT} (by its path) is for validation"
            )
        found = sorted(entry.name for entry in os.scandir(self.root) if entry.is_dir() and entry.name[0] != ".")
        if not found:
            raise DataError(f"{self.root}: holds no folder of a class; lay images out as {self.root}/CLASS/IMAGE")
        self.class_names = list(classes) if classes is not None else found
        if unknown := [name for name in found if name not in set(self.class_names)]:
            raise DataError(
                f"{self.root}: class folder {unknown[0]!r} is none of the {len(self.class_names)} classes "
                f"({_some(self.class_names)}); remove it, or train for it"
            )
        if absent := [name for name in self.class_names if name not in found]:
            warn_once(f"{self.root}: no folder for {len(absent)} of {len(self.class_names)} classes ({_some(absent)})")
        number = {name: i for i, name in enumerate(self.class_names)}
        tokens: list[str] = []
        labels: list[int] = []
        for name in found:
            own = self._images(name)
            if not own:
                raise DataError(
                    f"{self.root / name}: a class without images ({', '.join(SUFFIXES[:4])}, ...); add some, or remove "
                    "the folder"
                )
            if part is not None and not has_parts:
                own = _own_part(self.root / name, own, part)
            tokens += own
            labels += [number[name]] * len(own)
        if not tokens:
            raise DataError(f"{self.root}: too few images to hold some out; make the folders train/ and val/")
        self.tokens, self.labels = tokens, np.array(labels, np.int64)

    def _images(self, name: str) -> list[str]:
        found: list[str] = []
        others: list[str] = []
        for place, folders, names in os.walk(self.root / name, followlinks=True):
            folders.sort()
            for file in sorted(names):
                token = Path(place, file).relative_to(self.root).as_posix()
                (found if is_image_name(file) else others).append(token)
        if others:
            warn_once(
                f"{self.root / name}: {len(others)} files are not taken for images, such as {Path(others[0]).name}"
            )
        return found

    def read(self, index: int) -> bytes:
        return image_bytes(self.root / self.tokens[index])

    def place(self, index: int) -> str:
        return str(self.root / self.tokens[index])


def _own_part(folder: Path, tokens: Sequence[str], part: str) -> list[str]:
    """Those of a class's images that are of this part. An image stays where it is when others come."""
    held_out = lambda token: int(hashlib.sha256(os.fsencode(token)).hexdigest()[:8], 16) % HELD_OUT == 0
    if all(map(held_out, tokens)):
        raise DataError(
            f"{folder}: {len(tokens)} images are too few to hold some out; make the folders train/ and val/"
        )
    return [token for token in tokens if held_out(token) == (part == "val")]


class ListSource(Source):
    """A text file with an image and its class on each line, ``n01440764/n01440764_10026.JPEG 0``.

    list_file: the text, or a zip archive that holds it alone. root: the folder that the paths begin in. images_zip: a
    zip archive that holds the images instead, paths inside it (below ``root`` where that is given too).
    class_numbers: a JSON file {class: number} for lists whose classes are names, as ImageNet-22K's; classes: names in
    the order of the numbers.

    Raises DataError naming file and line for one that cannot be read, a class that is none, and an image that the
    archive lacks. An image that lies in no folder is named when it is read.
    """

    def __init__(
        self,
        list_file: str | Path,
        root: str | Path = "",
        images_zip: str | Path | None = None,
        class_numbers: str | Path | None = None,
        classes: Sequence[str] | None = None,
        num_classes: int | None = None,
    ) -> None:
        self.list_file, self.root = Path(list_file), Path(root)
        numbers = None if class_numbers is None else read_class_numbers(class_numbers)
        self.class_names = list(classes) if classes is not None else None if numbers is None else _names(numbers)
        tokens, labels = [], []
        for line_number, line in enumerate(_list_text(self.list_file).splitlines(), 1):
            if not line.strip():
                continue
            token, _, label = line.strip().rpartition(" ") if " " in line.strip() else line.strip().rpartition("\t")
            number = numbers.get(label) if numbers is not None else int(label) if label.isdecimal() else None
            if not token or number is None:
                known = f"a class of {class_numbers}" if numbers is not None else "a number"
                raise DataError(
                    f"{self.list_file}, line {line_number}: {line.strip()[:80]!r} is no image and {known}; write "
                    "`PATH CLASS` on each line"
                )
            if num_classes is not None and number >= num_classes:
                raise DataError(
                    f"{self.list_file}, line {line_number}: class {number} of {token}, but there are {num_classes} "
                    "classes, 0 on; correct the list, or the number of classes"
                )
            tokens.append(token.strip())
            labels.append(number)
        if not tokens:
            raise DataError(f"{self.list_file}: lists no image; write `PATH CLASS` on each line")
        check_unique(tokens, str(self.list_file))
        self.tokens, self.labels = tokens, np.array(labels, np.int64)
        self._zip = None if images_zip is None else ZipImages(images_zip)
        if self._zip is not None and (lost := next((t for t in tokens if self._member(t) not in self._zip), None)):
            raise DataError(f"{images_zip}: lacks {self._member(lost)}, which {self.list_file} names; fetch it again")

    def _member(self, token: str) -> str:
        return (self.root / token).as_posix()

    def read(self, index: int) -> bytes:
        if self._zip is not None:
            return self._zip.read(self._member(self.tokens[index]))
        token = self.tokens[index]
        if not is_plain_name(token):
            raise DataError(f"{self.list_file}: {token!r} leads out of {self.root or 'its folder'}; correct the list")
        return image_bytes(self.root / token)

    def place(self, index: int) -> str:
        return f"{self.list_file}: {self.tokens[index]}"


class ZipImages:
    """A zip archive of images, opened anew in each process that reads from it."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._open: tuple[int, zipfile.ZipFile] | None = None
        self._names = frozenset(self._archive().namelist())

    def __contains__(self, name: str) -> bool:
        return name in self._names

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": None}

    def _archive(self) -> zipfile.ZipFile:
        if self._open is None or self._open[0] != os.getpid():  # processes must not share a file's position
            self._open = os.getpid(), open_zip(self.path, max_members=MOST_ZIP_MEMBERS)
        return self._open[1]

    def read(self, name: str) -> bytes:
        return read_member(self._archive(), name, f"{self.path}: {name}", max_bytes=MOST_BYTES)


def read_class_numbers(path: str | Path) -> dict[str, int]:
    """{class: number} from a JSON file: each number from 0 on once. Raises DataError."""
    found = read_json(Path(path), "a map {class: number}")
    if not isinstance(found, Mapping) or sorted(v for v in found.values() if type(v) is int) != list(range(len(found))):
        raise DataError(f"{path}: not a map of classes to the numbers 0, 1, ...; fetch or make it again")
    return dict(found)


def _names(numbers: Mapping[str, int]) -> list[str]:
    return sorted(numbers, key=numbers.__getitem__)


def read_json(path: Path, what: str) -> Any:
    """The content of a JSON file. Raises DataError that says ``what`` it should be."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; it should hold {what}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(
            f"{path}: not readable as {what} ({' '.join(str(error).split())[:100]}); fetch it again"
        ) from None


def _list_text(path: Path) -> str:
    if path.suffix == ".zip":
        archive = open_zip(path)
        names = [name for name in archive.namelist() if not name.endswith("/") and not name.startswith("__MACOSX")]
        if len(names) != 1:
            raise DataError(f"{path}: holds {len(names)} files; a zipped list holds one")
        data = read_member(archive, names[0], f"{path}: {names[0]}")
    else:
        try:
            data = path.read_bytes()
        except OSError as error:
            raise DataError(f"{path}: the list of images cannot be read ({error.strerror}); check the path") from None
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise DataError(f"{path}: not a text file (UTF-8); write `PATH CLASS` on each line") from None


def check_labels(source: Source, num_classes: int, where: str) -> None:
    """Raises DataError, naming an image, for a class of ``source`` outside 0 .. num_classes - 1."""
    wrong = np.flatnonzero((source.labels >= num_classes) | (source.labels < UNLABELLED))
    if len(wrong):
        index = int(wrong[0])
        raise DataError(
            f"{source.place(index)}: class {source.labels[index]}, but {where} has {num_classes} classes, 0 on; "
            "correct the labels, or the number of classes"
        )


def check_unique(tokens: Sequence[str], where: str) -> None:
    """Raises DataError for an image that is named twice: answers could not be told apart."""
    if len(set(tokens)) < len(tokens):
        twice = Counter(tokens).most_common(1)[0][0]
        raise DataError(f"{where}: {twice} comes twice; list each image once")


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
