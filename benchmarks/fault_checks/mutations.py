"""One random change of bytes, of a tree of lists and dicts, of a text: small, reproducible, with a description.

Each function takes a ``random.Random`` and returns the changed copy and a short text that says what was changed.
"""

from __future__ import annotations

import copy
import json
import math
import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

MISSING_FOLDER = "../../../"
"""Climbs from a data set's folder out of the scratch folder of one input (child.py watches what is above)."""

NUMBERS: tuple[Any, ...] = (
    0,
    -1,
    1,
    2**31,
    2**63,
    -(2**63) - 1,
    10**30,
    10**400,
    0.5,
    -0.0,
    1e-320,
    1e38,
    1e308,
    math.nan,
    math.inf,
    -math.inf,
)
TEXTS: tuple[str, ...] = (
    "",
    " ",
    "0",
    "nan",
    "x" * 300,
    "x" * 100_000,
    "\u00fcml\u00e4ut \u4e2d\u6587 \U0001f697",
    "a\x00b",
    "a\nb\r\nc",
    "\ud800",
    "{0} %s %d",
    "..",
    ".",
    "/",
    MISSING_FOLDER + "EVIL",
    "..\\..\\EVIL",
    "samples\\CAM_FRONT\\a.jpg",
    "/dev/zero",
    "/proc/self/mem",
    "CON",
    "-rf",
    "~",
)


def nested(depth: int) -> Any:
    """A list in a list in a list."""
    found: Any = []
    for _ in range(depth):
        found = [found]
    return found


def value(rng: random.Random) -> Any:
    """Something that a field might hold and should not."""
    kind = rng.randrange(8)
    if kind < 3:
        return rng.choice(NUMBERS)
    if kind < 5:
        return rng.choice(TEXTS)
    return rng.choice((None, True, False, [], {}, [[]], [None], {"": None}, [1, "a"], nested(50), [0] * 10_000))


def mutate_bytes(rng: random.Random, data: bytes, others: Sequence[bytes] = ()) -> tuple[bytes, str]:
    """Flipped, lost, repeated, foreign bytes. others: contents of other files, that may come in this one's place."""
    size = len(data)
    at, length = rng.randrange(size + 1), rng.choice((1, 2, 7, 64, 1000, max(size // 3, 1)))
    part = data[at : at + length]
    ways: dict[str, Callable[[], bytes]] = {
        "flip": lambda: _flipped(rng, data, 1),
        "flip many": lambda: _flipped(rng, data, rng.randrange(2, 200)),
        "flip in header": lambda: _flipped(rng, data[:256], rng.randrange(1, 8)) + data[256:],
        "truncate": lambda: data[:at],
        "lose the head": lambda: data[at:],
        "header only": lambda: data[: rng.choice((1, 2, 4, 8, 16, 100))],
        "lose the last byte": lambda: data[:-1],
        "duplicate a part": lambda: data[:at] + part + data[at:],
        "lose a part": lambda: data[:at] + data[at + length :],
        "zero a part": lambda: data[:at] + bytes(len(part)) + data[at + length :],
        "random part": lambda: data[:at] + rng.randbytes(len(part)) + data[at + length :],
        "insert": lambda: data[:at] + rng.randbytes(min(length, 1000)) + data[at:],
        "append": lambda: data + rng.randbytes(rng.choice((1, 100))),
        "twice": lambda: data + data,
        "empty": lambda: b"",
        "zeros": lambda: bytes(min(size, 100_000)),
        "noise": lambda: rng.randbytes(min(size, 100_000)),
        "byte order mark": lambda: b"\xef\xbb\xbf" + data,
        "UTF-16": lambda: data[:100_000].decode("latin1").encode("utf-16"),
        "line ends": lambda: data.replace(b"\n", b"\r\n"),
        "web page": lambda: b"<!DOCTYPE html><html><body>404 Not Found</body></html>",
        "LFS pointer": lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12345\n",
    }
    if others:
        ways["another file"] = lambda: rng.choice(others)
    name = rng.choice(list(ways))
    return ways[name](), f"bytes: {name} at {at} of {size}"


def _flipped(rng: random.Random, data: bytes, count: int) -> bytes:
    changed = bytearray(data)
    for _ in range(count if changed else 0):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


Path = tuple[Any, ...]


def places(tree: Any, limit: int = 100_000) -> list[Path]:
    """Paths (keys and indices) of all nodes below the root."""
    found: list[Path] = []
    pending: list[tuple[Path, Any]] = [((), tree)]
    while pending and len(found) < limit:
        path, node = pending.pop()
        items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, (list, tuple)) else ()
        for key, child in items:
            found.append((*path, key))
            pending.append(((*path, key), child))
    return found


def choose_place(rng: random.Random, tree: Any) -> Path:
    """One place, first by its field (the path without indices), so that long lists do not hide the short ones."""
    fields: dict[Path, list[Path]] = {}
    for path in places(tree):
        fields.setdefault(tuple("#" if isinstance(key, int) else _generic(key) for key in path), []).append(path)
    return rng.choice(fields[rng.choice(list(fields))]) if fields else ()


def _generic(key: Any) -> Any:
    """Tokens and numbers name an entry, not a field."""
    text = str(key)
    return "#" if not isinstance(key, str) or (any(letter.isdigit() for letter in text) and len(text) > 12) else key


def at(tree: Any, path: Path) -> Any:
    """The node at a path."""
    for key in path:
        tree = tree[key]
    return tree


def put(tree: Any, path: Path, new: Any) -> Any:
    """The tree with another node at a path; containers on the way are copied, the others shared."""
    if not path:
        return new
    node = dict(tree) if isinstance(tree, dict) else list(tree)
    node[path[0]] = put(node[path[0]], path[1:], new)
    return tuple(node) if isinstance(tree, tuple) else node


def mutate_tree(rng: random.Random, tree: Any) -> tuple[Any, str]:
    """A tree of dicts, lists, tuples, scalars and arrays, with one or a few changes."""
    texts = []
    for _ in range(rng.choice((1, 1, 1, 1, 2, 5))):
        tree, text = _mutate_once(rng, tree)
        texts.append(text)
    return tree, "; ".join(texts)


def _mutate_once(rng: random.Random, tree: Any) -> tuple[Any, str]:
    path = choose_place(rng, tree)
    if not path or rng.random() < 0.02:
        new = value(rng)
        return new, f"tree: root := {shown(new)}"
    old, parent, key = at(tree, path), at(tree, path[:-1]), path[-1]
    where = ".".join(shown(part) for part in path)
    way = rng.choice(("set", "set", "set", "alike", "alike", "delete", "duplicate", "rename", "swap"))
    if way == "set":
        new = value(rng)
        return put(tree, path, new), f"tree: {where} := {shown(new)}"
    if way == "alike":
        new = alike(rng, old)
        return put(tree, path, new), f"tree: {where} := {shown(new)} (was {shown(old)})"
    return put(tree, path[:-1], _restructured(rng, parent, key, way)), f"tree: {way} {where}"


def _restructured(rng: random.Random, parent: Any, key: Any, way: str) -> Any:
    """The parent without an entry, or with it twice, under another name, or in another's place."""
    if isinstance(parent, dict):
        changed = dict(parent)
        if way == "delete":
            del changed[key]
        elif way == "swap":
            other = rng.choice(list(parent))
            changed[key], changed[other] = parent[other], parent[key]
        else:
            new_name: Any = rng.choice((*TEXTS[:10], f"{key}2", f"{key}".upper(), 0, None))
            changed[new_name] = copy.deepcopy(parent[key]) if way == "duplicate" else changed.pop(key)
        return changed
    items = list(parent)
    if way == "delete":
        del items[key]
    elif way == "swap":
        other = rng.randrange(len(items))
        items[key], items[other] = items[other], items[key]
    else:
        items[key:key] = [items[key]] * (1 if way == "duplicate" else 3)
    return tuple(items) if isinstance(parent, tuple) else items


def alike(rng: random.Random, old: Any) -> Any:
    """A value of the same kind: what a wrong converter writes, and what shape checks let pass."""
    if isinstance(old, np.ndarray):
        return mutate_array(rng, old)[0]
    if isinstance(old, bool):
        return not old
    if isinstance(old, (int, float, np.number)):
        number = float(old) if abs(old) < 1e300 else 0.0
        scaled = [number * scale for scale in (-1, 0, 1e-9, 1e3, 1e6, 1e12)] + [number + 1, rng.gauss(0, 100)]
        chosen: Any = rng.choice([*scaled, str(old), [old], *NUMBERS])
        if isinstance(old, int) and isinstance(chosen, float) and math.isfinite(chosen) and rng.random() < 0.7:
            return int(chosen)
        return chosen
    if isinstance(old, str):
        return rng.choice((old[::-1], old.upper(), old + "x", old[:-1], old + "/../../../EVIL", " " + old, *TEXTS))
    if isinstance(old, (list, tuple)):
        items = list(old)
        changed = (
            items[:-1],
            items + items,
            items[::-1],
            [items],
            items[:1],
            [str(i) for i in items[:1000]],
            {str(i): item for i, item in enumerate(items[:100])},
            items * 100 if len(items) < 100 else items,
            [*items, None],
        )
        return rng.choice(changed)
    if isinstance(old, dict):
        keys = list(old)
        return rng.choice((list(old.values()), list(old.items()), dict.fromkeys(keys), {**old, "more": 1}, keys))
    return value(rng)


def mutate_array(rng: random.Random, array: np.ndarray) -> tuple[Any, str]:
    """An array of another shape, type or content."""
    flat = array.reshape(-1)
    numeric = array.dtype.kind in "fiub"
    ways: dict[str, Callable[[], Any]] = {
        "scalar": lambda: flat[:1].reshape(()) if flat.size else np.zeros((), array.dtype),
        "empty": lambda: array[:0] if array.ndim else np.zeros(0, array.dtype),
        "flat": lambda: flat,
        "one less": lambda: array[:-1] if array.ndim else array,
        "one axis more": lambda: array[None],
        "transposed": lambda: array.T,
        "twice": lambda: np.concatenate([flat, flat]),
        "reversed": lambda: array[::-1] if array.ndim else array,
        "text": lambda: array.astype(str) if array.size < 10_000 else np.array("text"),
        "objects": lambda: array.astype(object) if array.size < 10_000 else np.array([None]),
        "list": lambda: array.tolist() if array.size < 100_000 else array,
        "structured": lambda: np.zeros(3, [("a", "f4"), ("b", "i4")]),
        "times": lambda: np.zeros(array.shape, "M8[s]"),
        "big endian": lambda: array.astype(array.dtype.newbyteorder(">")),
    }
    if numeric:
        ways |= {
            "other type": lambda: _cast(array, rng.choice(("f2", "f4", "f8", "i1", "u1", "i8", "u8", "?", "c16"))),
            "one bad value": lambda: _with_one(rng, array),
            "many bad values": lambda: _cast(array, "f8") + rng.choice((math.nan, math.inf, 1e308, -1e6)),
            "scaled": lambda: _cast(array, "f8") * rng.choice((-1, 0, 1e6, 1e-6)),
        }
    name = rng.choice(list(ways))
    return ways[name](), f"array: {name}"


def _cast(array: np.ndarray, dtype: str) -> np.ndarray:
    with np.errstate(all="ignore"):
        return array.astype(dtype)


def _with_one(rng: random.Random, array: np.ndarray) -> np.ndarray:
    changed = array.copy().reshape(-1)
    if not changed.size:
        return array
    whole = changed.dtype.kind != "f"
    bad = rng.choice((255, 18, 100, 0) if whole else (math.nan, math.inf, 1e30, -1e6, 0.0))
    changed[rng.randrange(changed.size)] = np.array(bad).astype(changed.dtype)
    return changed.reshape(array.shape)


def dump_json(rng: random.Random, tree: Any) -> bytes:
    """As Python writes it: with NaN and Infinity, sometimes a key twice, sometimes numbers no float holds."""
    text = json.dumps(tree, default=_plain)
    if rng.random() < 0.05 and text.startswith("{"):
        text = text[:-1] + (", " if len(text) > 2 else "") + text[1:]
    return text.encode("utf-8", "surrogatepass")


def _plain(node: Any) -> Any:
    return node.tolist() if isinstance(node, (np.ndarray, np.number)) else str(node)


def mutate_text(rng: random.Random, text: str) -> tuple[str, str]:
    """A Python file with lines lost, repeated or exchanged, or another value somewhere."""
    lines = text.splitlines()
    at_line = rng.randrange(len(lines))
    way = rng.choice(("delete", "duplicate", "swap", "value", "value", "value", "name", "letter", "indent"))
    line = lines[at_line]
    if way == "delete":
        del lines[at_line]
    elif way == "duplicate":
        lines.insert(rng.randrange(len(lines)), line)
    elif way == "swap":
        other = rng.randrange(len(lines))
        lines[at_line], lines[other] = lines[other], line
    elif way == "value":
        numbers = [i for i, letters in enumerate(lines) if "=" in letters] or [at_line]
        at_line = rng.choice(numbers)
        head, equals, tail = lines[at_line].rpartition("=")
        ending = tail[len(tail.rstrip("),]}")) :]
        lines[at_line] = head + equals + repr(value(rng))[:1000] + ending
    elif way == "name":
        words = [word for word in line.replace("(", " ").replace("=", " ").replace(",", " ").split() if word.isalpha()]
        if words:
            word = rng.choice(words)
            lines[at_line] = line.replace(word, rng.choice((word + "x", word[:-1], word.upper(), "None")), 1)
    elif way == "letter" and line:
        spot = rng.randrange(len(line))
        lines[at_line] = line[:spot] + rng.choice("()[]{}=,'\"# \\x0\u00e9") + line[spot + 1 :]
    elif way == "indent":
        lines[at_line] = " " * rng.randrange(1, 5) + line
    return "\n".join(lines) + "\n", f"text: {way} line {at_line + 1}: {line[:80]}"


def shown(node: Any) -> str:
    """Short, on one line."""
    text = repr(node) if not isinstance(node, str) else node
    text = " ".join(text.encode("ascii", "backslashreplace").decode().split())
    return text if len(text) <= 60 else f"{text[:57]}..."
