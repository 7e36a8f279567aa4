"""Where weights come from: the trainings behind them, each with its data, split, recipe and seed.

Checkpoints of `train` and exported files state them, and hand them on: a model that starts from weights has their
trainings before its own. So one can see whether any of them saw the scenes that the model is validated on. Of other
people's checkpoints what they recorded is read: MMEngine's and MMCV's config text, InternImage's options.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from .files import find_weights_file, is_safetensors, read_metadata, read_pth

KEY = "lineage"
"""Of a checkpoint's meta, and of a safetensors header (there as JSON)."""
MOST_SCENES = 100_000
"""Recorded of one training; beyond, none are."""
NAMES_DATA = re.compile(
    r"(^|_)(reader|roots?|split|version|dataset|ann|annotations?|paths?|prefix|dirs?|files?|folders?|pickle|images|masks|"
    r"labels|lists?|options)(_|$)"
)
"""Settings of a data set that say which data they are, by the last part of their names."""
NEVER = ("pipeline", "transforms", "image", "photometric", "bda")
MOST_SHOWN = 300  # characters of a command or path in a message


@dataclass(frozen=True)
class Stage:
    """One training; what is not recorded is empty."""

    recipe: str = ""
    """Name of its config."""
    data: Mapping[str, Any] = field(default_factory=dict)
    """Settings that name the training data: reader or type, roots, annotation files, ..."""
    split: str = ""
    scenes: tuple[str, ...] = ()
    """Tokens of the scenes that were trained on."""
    classes: tuple[str, ...] = ()
    """Names of the labels 0, 1, ..."""
    samples: int | None = None
    seed: int | None = None
    iterations: int | None = None
    command: str = ""
    file: str = ""
    """Name of the checkpoint whose record this is."""
    notes: Mapping[str, str] = field(default_factory=dict)
    """What somebody stated by hand."""

    def __str__(self) -> str:
        data = ", ".join(f"{key} {value}" for key, value in self.data.items())
        parts = [
            self.recipe or "recipe not recorded",
            f"data: {data[:MOST_SHOWN] or 'not recorded'}",
            f"split {self.split}" if self.split else "split not recorded",
            f"{len(self.scenes)} scenes" if self.scenes else "",
            f"{len(self.classes)} classes" if self.classes else "",
            "" if self.samples is None else f"{self.samples} samples",
            "" if self.seed is None else f"seed {self.seed}",
            "" if self.iterations is None else f"{self.iterations} iterations",
            *(f"{key}: {value}"[:MOST_SHOWN] for key, value in self.notes.items()),
            f"file {self.file}" if self.file else "",
        ]
        return "; ".join(part for part in parts if part)

    @property
    def name(self) -> str:
        """In few words, for messages."""
        return self.recipe or self.file or "a training"

    def as_dict(self) -> dict[str, Any]:
        """As plain values for JSON or a checkpoint; ``of`` reads it back."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def of(cls, record: Any, source: str) -> Stage:
        """From plain values. Raises CheckpointError naming ``source`` for values of other types."""
        if not isinstance(record, Mapping):
            raise _damaged(source, record)
        kinds: dict[str, Any] = dict.fromkeys(("recipe", "split", "command", "file"), str)
        kinds |= dict.fromkeys(("data", "notes"), Mapping) | dict.fromkeys(LISTS, list | tuple)
        kinds |= dict.fromkeys(("samples", "seed", "iterations"), int | None)
        known = {key: value for key, value in record.items() if key in kinds}
        for key, value in known.items():
            if not isinstance(value, kinds[key]) or isinstance(value, bool) or not _texts(key, value):
                raise _damaged(source, f"{key}: {value!r:.60}")
        return cls(**known | {key: tuple(known.get(key, ())) for key in LISTS})


LISTS = ("scenes", "classes")


def _texts(key: str, value: Any) -> bool:
    return key not in LISTS or all(isinstance(item, str) for item in value)


def _damaged(source: str, what: Any) -> CheckpointError:
    return CheckpointError(f"{source}: damaged: its record of trainings ({KEY}) holds {what!s:.80}: take another copy")


def to_json(stages: Iterable[Stage]) -> str:
    """For the header of a safetensors file."""
    return json.dumps([stage.as_dict() for stage in stages])


def stages_of(records: Any, source: str) -> tuple[Stage, ...]:
    """From a list of plain values. Raises CheckpointError where it is none."""
    if not isinstance(records, list | tuple):
        raise _damaged(source, records)
    return tuple(Stage.of(record, source) for record in records)


# ---- reading files ---------------------------------------------------------------------------------------------------


def lineage_of(path: str | Path) -> tuple[Stage, ...]:
    """The trainings behind the weights in a file, earliest first; () where nothing at all is recorded.

    Raises CheckpointError for a file that is missing or broken.
    """
    path = find_weights_file(Path(path))
    if path.name.endswith(".index.json"):
        return ()
    if is_safetensors(path):
        return _of_header(read_metadata(path), path)
    content = read_pth(path)
    if not isinstance(content, Mapping):
        return ()
    meta = content.get("meta")
    if isinstance(meta, Mapping) and KEY in meta:
        return stages_of(meta[KEY], str(path))
    stage = _of_meta(meta, path.name) if isinstance(meta, Mapping) else _of_internimage(content, path.name)
    return () if stage == Stage(file=path.name) else (stage,)


def _of_header(header: Mapping[str, str], path: Path) -> tuple[Stage, ...]:
    if KEY in header:
        try:
            return stages_of(json.loads(header[KEY]), str(path))
        except (ValueError, RecursionError):
            raise _damaged(str(path), header[KEY]) from None
    numbers = {key: int(header[old]) for old, key in OLD_NOTES.items() if header.get(old, "").isdecimal()}
    words: dict[str, Any] = {key: header[key] for key in ("split", "command") if key in header}
    notes = {"data": header["data"]} if "data" in header else {}
    with suppress(ValueError, RecursionError):
        words["classes"] = _names(json.loads(header.get("classes", "[]")))
    stated: dict[str, Any] = {**numbers, **words}
    stage = Stage(recipe=header.get("config", ""), file=path.name, notes=notes, **stated)
    return () if stage == Stage(file=path.name) else (stage,)


def _names(values: Any) -> tuple[str, ...]:
    usable = isinstance(values, list | tuple) and all(isinstance(name, str) for name in values)
    return tuple(values) if usable else ()


OLD_NOTES = {"iter": "iterations", "seed": "seed"}


def _of_meta(meta: Mapping[str, Any], file: str) -> Stage:
    """Our checkpoints from before the record existed, and those of OpenMMLab."""
    config, settings = meta.get("config"), meta.get("settings")
    data: dict[str, Any] = {}
    if isinstance(settings, Mapping):
        node: Any = settings
        for key in ("config", "train_dataloader", "dataset"):
            node = node.get(key) if isinstance(node, Mapping) else None
        data = data_settings(node)
    text = config if isinstance(config, str) else ""
    is_text = "\n" in text  # OpenMMLab stores the whole config
    if is_text:
        data = data_settings(_training_data(text))
    recipe = Path(str(meta.get("exp_name") or meta.get("experiment_name") or "")).stem if is_text else text
    return Stage(
        recipe=recipe,
        data=data,
        split=split_in(data),
        classes=_names(meta.get("classes") or meta.get("CLASSES")),
        seed=meta["seed"] if type(meta.get("seed")) is int else None,
        iterations=meta["iter"] if type(meta.get("iter")) is int else None,
        file=file,
    )


def _of_internimage(content: Mapping[str, Any], file: str) -> Stage:
    """Options that InternImage's classification checkpoints hold (yacs)."""
    options = content.get("config")
    if not isinstance(options, Mapping) or not isinstance(options.get("DATA"), Mapping):
        return Stage(file=file)
    model, stated = options.get("MODEL"), options["DATA"]
    data = {key.lower(): str(stated[key]) for key in ("DATASET", "DATA_PATH") if stated.get(key)}
    return Stage(
        recipe=str(model.get("NAME", "")) if isinstance(model, Mapping) else "",
        data=data,
        seed=options["SEED"] if type(options.get("SEED")) is int else None,
        file=file,
    )


def _training_data(config_text: str) -> Any:
    """The training data set in the text of an OpenMMLab config, as plain values; it is parsed, never run."""
    try:
        tree = ast.parse(config_text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return {}
    values: dict[str, Any] = {}
    for node in (statement for statement in tree.body if isinstance(statement, ast.Assign)):
        target = node.targets[0]
        if isinstance(target, ast.Name) and target.id in ("data", "train_dataloader"):
            values[target.id] = _plain(node.value)
    loader, data = values.get("train_dataloader"), values.get("data")
    if isinstance(loader, dict):
        return loader.get("dataset", {})
    return data.get("train", {}) if isinstance(data, dict) else {}


def _plain(node: ast.expr, depth: int = 0) -> Any:
    """Literals, dict(...) calls and displays; None for all else."""
    if depth > 50:
        return None
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict":
        return {word.arg: _plain(word.value, depth + 1) for word in node.keywords if word.arg}
    if isinstance(node, ast.Dict):
        pairs = [(key, value) for key, value in zip(node.keys, node.values) if isinstance(key, ast.Constant)]
        return {str(key.value): _plain(value, depth + 1) for key, value in pairs}
    if isinstance(node, ast.List | ast.Tuple):
        return [_plain(item, depth + 1) for item in node.elts]
    return node.value if isinstance(node, ast.Constant) else None


def data_settings(dataset: Any) -> dict[str, Any]:
    """Of a data set's settings (plain values) those that name data, by dotted key: texts and lists of texts."""
    found: dict[str, Any] = {}

    def walk(node: Any, place: tuple[str, ...]) -> None:
        if isinstance(node, Mapping):
            for key, value in node.items():
                if key not in NEVER and len(place) < 10:
                    walk(value, (*place, str(key)))
            return
        last = place[-1] if place else ""
        texts = node if isinstance(node, list | tuple) else [node]
        names_data = NAMES_DATA.search(last) or place == ("type",) or any("prefix" in part for part in place)
        if texts and all(isinstance(text, str) for text in texts) and names_data:
            if any(texts):
                found[".".join(place)] = list(node) if isinstance(node, list | tuple) else node
        elif isinstance(node, list | tuple):  # data sets that are joined
            for i, item in enumerate(node):
                if isinstance(item, Mapping):
                    walk(item, (*place, str(i)))

    walk(dataset, ())
    return found


def split_in(data: Mapping[str, Any]) -> str:
    """The split that such settings name, '' for none."""
    splits = [value for key, value in data.items() if key.rpartition(".")[2] == "split" and isinstance(value, str)]
    return splits[0] if splits else ""


# ---- the question ----------------------------------------------------------------------------------------------------


def seen_before(stages: Iterable[Stage], scenes: Collection[str], split: str, reader: str = "") -> list[str]:
    """Which trainings saw data that are to be validated on, a phrase for each.

    scenes: tokens of the scenes of the split (empty: not known). Scenes decide where both sides have them; otherwise
    a split of the same name ("trainval" and "all" hold every one) of the same reader, or of data that are not recorded.
    """
    found = []
    for stage in stages:
        if stage.scenes and scenes:
            if shared := set(stage.scenes).intersection(scenes):
                found.append(f"{stage.name} trained on {len(shared)} of the {len(scenes)} scenes of split {split}")
            continue
        stated = stage.split or stage.notes.get("split", "")
        readers = {value for key, value in stage.data.items() if key.rpartition(".")[2] == "reader"}
        other = stage.data and reader not in readers
        if split and not other and (stated == split or stated in ("trainval", "all")):
            found.append(f"{stage.name} trained on a split called {stated!r} (its scenes are not recorded)")
    return found
