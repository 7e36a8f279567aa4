"""Data sets by name: a reader turns a folder into checked Frames, and states the conventions that its files leave open.

A reader is a function ``read(root, ...) -> list[Frame]``; its other parameters are the options that configs, the
command line and ``drivestack.read`` take. Everything behind it is the same for all data sets.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np

from ...core.errors import ConfigError, DataError
from ...core.frames import Frame
from .checks import INT64, check_frames, noting
from .lidar_check import check_lidar
from .links import link_frames

ReadFunction = Callable[..., "list[Frame]"]


@dataclass(frozen=True)
class Conventions:
    """What a data set's files leave open, and how its reader takes them."""

    boxes: str
    """Layout of boxes in the files."""
    quaternions: str
    time: str
    """Unit and origin of times."""
    cameras: str
    """Order of the cameras, lens model, size of the images."""
    frames: str
    """Axes of the EGO frame, and where BEV maps live."""


@dataclass(frozen=True)
class Reader:
    """A registered data set."""

    name: str
    read: ReadFunction
    summary: str
    conventions: Conventions | None = None

    @property
    def options(self) -> tuple[str, ...]:
        """Names of its options, beside the root."""
        return tuple(inspect.signature(self.read).parameters)[1:]


_READERS: dict[str, Reader] = globals().get("_READERS", {})  # kept when this file is reloaded
_BUILT_IN = {
    "nuscenes": "nuscenes.reader",
    "nuscenes_infos": "nuscenes.info_pickle",
    "occ3d_challenge": "nuscenes.occ3d_challenge",
    "t4": "nuscenes.t4",
    "openlane": "openlane.reader",
    "argoverse2": "argoverse2.lanes",
    "argoverse2_sensor": "argoverse2.sensor",
    "waymo": "waymo.reader",
    "mcap": "recordings.mcap_log",
    "py123d": "logs.py123d",
    "openscene": "logs.openscene",
    "camera_images": "camera_images",
}
"""Reader -> module of this folder that registers it, imported when it is first used."""


def register_reader(name: str, summary: str = "", conventions: Conventions | None = None) -> Callable:
    """Decorator: make a function ``read(root, ...) -> list[Frame]`` known under a name.

    The frames it returns are checked (checks.py, lidar_check.py), and linked in time by their scenes where it has not
    done so itself.
    A name that is taken is replaced: registering twice is no error, as happens when a file is read again.
    """

    def register(read: ReadFunction) -> ReadFunction:
        _READERS[name] = Reader(name, read, summary or (inspect.getdoc(read) or "").partition("\n")[0], conventions)
        return read

    return register


def reader_names() -> list[str]:
    """All names that ``find_reader`` accepts."""
    return sorted({*_READERS, *_BUILT_IN})


def find_reader(name: str | ReadFunction) -> Reader:
    """A reader by name, by a Python file that registers one, or the function itself.

    Raises ConfigError for an unknown name, and for a file that registers no reader or several.
    """
    if not callable(name) and not isinstance(name, str):
        raise ConfigError(f"reader {str(name)[:60]}: give its name, one of {', '.join(reader_names())}, or a function")
    if callable(name):
        known = [reader for reader in _READERS.values() if reader.read is name]
        return known[0] if known else Reader(getattr(name, "__name__", "reader"), name, "")
    if name in _BUILT_IN and name not in _READERS:
        importlib.import_module(f".{_BUILT_IN[name]}", __package__)
    if name in _READERS:
        return _READERS[name]
    if name.endswith(".py"):
        return _reader_of_file(Path(name))
    raise ConfigError(f"no reader {name!r}: choose from {', '.join(reader_names())}, or name a .py file with your own")


def _reader_of_file(path: Path) -> Reader:
    if not path.is_file():
        raise ConfigError(f"{path}: no such file; it should hold a function decorated with @register_reader")
    before = set(_READERS.values())
    spec = importlib.util.spec_from_file_location(f"drivestack_reader_{path.stem}", path)
    assert spec is not None and spec.loader is not None  # a .py file has a loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for the names of their annotations, and pickle for classes
    try:
        spec.loader.exec_module(module)
    except (ConfigError, DataError):
        del sys.modules[spec.name]
        raise
    except Exception as error:  # the user's own code: whatever it raises, they need the file's name
        del sys.modules[spec.name]
        raise ConfigError(f"{path}: cannot be imported: {type(error).__name__}: {error}") from error
    new = [reader for reader in _READERS.values() if reader not in before]
    if len(new) != 1:
        names = ", ".join(reader.name for reader in new) or "none"
        raise ConfigError(f"{path}: registers {names}; decorate one function with @drivestack.register_reader(NAME)")
    return new[0]


@dataclass(frozen=True)
class DataSource:
    """Where frames come from. reader: name, .py file or function; root: folder, or several; options: of the reader."""

    reader: str | ReadFunction = "nuscenes"
    root: str | Path | Sequence[str | Path] = ""
    options: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, config: Mapping[str, Any] | DataSource) -> DataSource:
        """From a config: ``dict(reader=..., root=..., split=..., ...)``, where all else are options."""
        if isinstance(config, DataSource):
            return config
        if not isinstance(config, Mapping):
            raise ConfigError(
                f"source {str(config)[:60]}: write dict(reader=..., root=..., ...), with the options of the reader"
            )
        options = {key: value for key, value in config.items() if key not in ("reader", "root")}
        return cls(config.get("reader", "nuscenes"), config.get("root", ""), options)

    def __str__(self) -> str:
        options = ", ".join(f"{key} {value}" for key, value in self.options.items())
        return f"{', '.join(map(str, self.roots))}" + (f" ({options})" if options else "")

    @property
    def roots(self) -> list[str | Path]:
        roots = self.root if isinstance(self.root, (list, tuple)) else [self.root]
        if wrong := [root for root in roots if not isinstance(root, (str, Path))]:
            raise ConfigError(
                f"root {wrong[0]!r:.60} of a data set is no path; write the folder's name, or a list of them"
            )
        return list(roots)

    @property
    def split(self) -> str:
        """The split that is read, "val" where the reader has none."""
        return str(self.options.get("split") or "val")

    def changed(self, **options: Any) -> DataSource:
        """The same with other options."""
        return replace(self, options={**self.options, **options})

    def read(self) -> list[Frame]:
        """All frames, checked. Raises ConfigError for options that the reader does not have or needs, DataError for
        data that cannot be used."""
        reader = find_reader(self.reader)
        parameters = inspect.signature(reader.read).parameters
        open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        unknown = [name for name in self.options if name not in reader.options]
        if unknown and not open_ended:
            raise ConfigError(f"reader {reader.name} has no option {unknown[0]!r}: {_listed(reader.options)}")
        needed = [name for name in reader.options if parameters[name].default is inspect.Parameter.empty]
        if missing := [name for name in needed if name not in self.options and not open_ended]:
            raise ConfigError(f"reader {reader.name} needs --{missing[0].replace('_', '-')} ({missing[0]})")
        for name, kind in _kinds(reader.read).items():
            if name in self.options and not _is_of(self.options[name], kind):
                shown, wanted = repr(self.options[name])[:60], getattr(kind, "__name__", str(kind))
                raise ConfigError(f"reader {reader.name}: option {name} is {shown}; give it as {wanted}")
        if not any(str(root) for root in self.roots):
            raise ConfigError(f"reader {reader.name}: no folder given; name the root of the data set")
        frames: list[Frame] = []
        for root in self.roots:
            found = list(reader.read(root, **self.options))
            if not found:
                raise DataError(f"{root}: reader {reader.name} found no frames; check the folder and the split")
            frames += found
        if len(frames) > 1 and not any(frame.prev_token or frame.next_token for frame in frames):
            frames = link_frames(frames)
        check_frames(frames)
        with noting():
            check_lidar(frames)
        return frames


def _kinds(read: ReadFunction) -> dict[str, Any]:
    """The types of a reader's options as far as they can be known."""
    try:
        return get_type_hints(read)
    except (NameError, TypeError, AttributeError):  # of a user's own function
        return {}


def _is_of(value: Any, kind: Any) -> bool:
    value = value.item() if isinstance(value, np.generic) else value
    values = (value, float(value)) if isinstance(value, int) and abs(value) < INT64 else (value,)
    try:
        return any(isinstance(own, kind) for own in values)
    except TypeError:  # a type with parameters: the reader checks these itself
        return True


def _listed(options: Sequence[str]) -> str:
    return f"it has {', '.join(options)}" if options else "it has none"
