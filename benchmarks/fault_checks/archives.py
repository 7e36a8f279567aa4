"""Damaged npz, zip, pickle, safetensors and torch files, and attacks: bombs, headers that lie, pickles that call.

A payload of an attack writes a file (``canary``): child.py looks whether it is there afterwards.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.lib import format as npy_format

from .mutations import MISSING_FOLDER, mutate_array, mutate_bytes, mutate_tree

HUGE_SHAPES = ((10**15,), (2**62, 2**62), (200, 200, 16, 10**9), (10**10,), (-1,), (2**63,), (0, 10**15))


class Call:
    """Pickles as a call of ``function`` with ``arguments``."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.function, self.arguments


def attack_pickle(rng: random.Random, canary: str, beside: Any = None) -> tuple[bytes, str]:
    """A pickle that would run code, or take much memory or depth, while it is loaded."""
    command = f"touch {canary}"
    code = f"open({canary!r}, 'w').close()"
    ways: dict[str, Callable[[], bytes]] = {
        "os.system": lambda: pickle.dumps(Call(os.system, command)),
        "beside data": lambda: pickle.dumps({"infos": beside, "more": Call(os.system, command)}),
        "eval": lambda: pickle.dumps([Call(eval, code)]),
        "exec": lambda: pickle.dumps({"state_dict": Call(exec, code)}),
        "open": lambda: pickle.dumps(Call(open, canary, "w")),
        "by text": lambda: f"cposix\nsystem\n(S'{command}'\ntR.".encode(),
        "builtins by text": lambda: f"c__builtin__\neval\n(S'{code.replace(chr(39), chr(34))}'\ntR.".encode(),
        "getattr": lambda: f"c__builtin__\ngetattr\n(cos\nS'system'\ntR(S'{command}'\ntR.".encode(),
        "dotted name": lambda: _stack_global("numpy", "f2py.os.system", command),
        "numpy's loader": lambda: _stack_global("numpy.lib", "load", command),
        "numpy runs text": lambda: _stack_global("numpy.testing._private.utils", "runstring", command),
        "torch loads a library": lambda: _stack_global("torch.ops", "load_library", canary),
        "instance": lambda: f"(S'{command}'\nios\nsystem\n.".encode(),
        "object": lambda: f"(cos\nsystem\nS'{command}'\no.".encode(),
        "memo": lambda: b"\x80\x04r\xff\xff\xff\x7f.",
        "memo far": lambda: b"\x80\x04]r\x00\x00\x00\x40.",
        "bytearray": lambda: b"\x80\x05\x96" + struct.pack("<Q", 12 * 2**30) + b"x.",
        "long bytes": lambda: b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b"x.",
        "long text": lambda: b"\x80\x04\x8d" + struct.pack("<Q", 2**62) + b"x.",
        "frame": lambda: b"\x80\x04\x95" + struct.pack("<Q", 2**62) + b"}.",
        "bytes of a number": lambda: pickle.dumps(Call(bytearray, 12 * 2**30)),
        "array of a shape": lambda: pickle.dumps(Call(np.ndarray, (12 * 2**30,), "u1")),
        "deep": lambda: b"\x80\x04" + b"(" * 100_000 + b"t" * 100_000 + b".",
        "deep lists": lambda: b"\x80\x04" + b"]" * 500_000 + b"a" * 499_999 + b".",
        "dict of itself": lambda: b"\x80\x04}q\x00X\x01\x00\x00\x00ah\x00s.",
        "many copies": lambda: b"\x80\x04" + b"]q\x00" + b"h\x00h\x00\x86q\x00" * 40 + b".",
        "long integer": lambda: b"\x80\x04\x8b" + struct.pack("<i", 2**31 - 1) + b"1.",
        "digits": lambda: b"I" + b"9" * 200_000 + b"\n.",
        "persistent": lambda: b"\x80\x04X\x01\x00\x00\x00aQ.",
        "extension": lambda: b"\x80\x04\x82\x01.",
        "no end": lambda: b"\x80\x04}",
        "protocol": lambda: b"\x80\xff}.",
    }
    name = rng.choice(list(ways))
    return ways[name](), f"pickle attack: {name}"


def _stack_global(module: str, name: str, argument: str) -> bytes:
    texts = [b"\x8c" + bytes([len(text)]) + text.encode() for text in (module, name)]
    text = argument.encode()
    return b"\x80\x04" + b"".join(texts) + b"\x93X" + struct.pack("<I", len(text)) + text + b"\x85R."


def mutate_pickle(rng: random.Random, tree: Any, canary: str, others: list[bytes]) -> tuple[bytes, str]:
    """A pickle of a changed tree, changed bytes of the right one, or an attack."""
    draw = rng.random()
    if draw < 0.15:
        return attack_pickle(rng, canary, None)
    if draw < 0.35:
        return mutate_bytes(rng, pickle.dumps(tree, rng.choice((2, 4, 5))), others)
    changed, text = mutate_tree(rng, tree)
    try:
        return pickle.dumps(changed, rng.choice((0, 2, 4, 5))), text
    except (RecursionError, ValueError, OverflowError, UnicodeError):  # a number or text that protocol 0 cannot hold
        return pickle.dumps(changed, 4), text


def npy_bytes(array: np.ndarray) -> bytes:
    """An .npy file; arrays of objects are pickled in it."""
    out = io.BytesIO()
    npy_format.write_array(out, np.asarray(array), allow_pickle=True)
    return out.getvalue()


def lying_npy(shape: tuple[int, ...], dtype: str = "|u1", data: bytes = b"x" * 64) -> bytes:
    """An .npy file whose header states another shape than its data have."""
    header = f"{{'descr': {dtype!r}, 'fortran_order': False, 'shape': {shape!r}, }}".encode()
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + data


def npz_bytes(members: Mapping[str, bytes], compress: bool = True) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return out.getvalue()


def mutate_npz(rng: random.Random, data: bytes, canary: str, others: list[bytes]) -> tuple[bytes, str]:
    """An .npz file with another array, header, name or member."""
    if rng.random() < 0.25:
        return mutate_bytes(rng, data, others)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = rng.choice(list(members))
    way = rng.choice(
        ("array", "array", "array", "huge", "header", "pickle", "attack", "delete", "rename", "bytes", "swap", "more",
         "folder", "bomb")
    )  # fmt: skip
    text = f"npz: {way} {name}"
    if way == "array":
        array = npy_format.read_array(io.BytesIO(members[name]))
        changed, what = mutate_array(rng, array)
        members[name], text = npy_bytes(np.asarray(changed)), f"{text} {what}"
    elif way == "huge":
        shape, dtype = rng.choice(HUGE_SHAPES), rng.choice(("|u1", "<f8", "<U1000", "|V1000000000"))
        members[name], text = lying_npy(shape, dtype), f"{text} {shape} {dtype}"
    elif way == "header":
        members[name] = mutate_bytes(rng, members[name][:128])[0] + members[name][128:]
    elif way == "pickle":
        members[name] = npy_bytes(np.array([{"a": 1}, None], dtype=object))
    elif way == "attack":
        members[name] = lying_npy((1,), "|O", attack_pickle(rng, canary)[0])
    elif way == "delete":
        del members[name]
    elif way == "rename":
        members[rng.choice(("pred.npy", "arr_0.npy", name[:-4], "x/" + name, "../" + name))] = members.pop(name)
    elif way == "bytes":
        members[name], text = mutate_bytes(rng, members[name])
    elif way == "swap":
        other = rng.choice(list(members))
        members[name], members[other] = members[other], members[name]
    elif way == "more":
        members["more.npy"] = rng.choice(list(members.values()))
    elif way == "folder":
        members[name[:-4] + "/"] = b""
    else:
        return bomb(rng, name, lying_npy((4 * 2**30,), "|u1", b"")), f"{text} of 4 GB"
    return npz_bytes(members, rng.random() < 0.8), text


_BOMB_STREAM: list[tuple[bytes, int]] = []


def bomb(rng: random.Random, name: str, head: bytes = b"", gigabytes: int = 4) -> bytes:
    """A zip with one member of zeros, a thousand times as large unpacked; made once, as a raw deflate stream."""
    if not _BOMB_STREAM:
        squeeze = zlib.compressobj(9, zlib.DEFLATED, -15)
        block = bytes(1 << 20)
        data = b"".join(squeeze.compress(block) for _ in range(64)) + squeeze.flush(zlib.Z_FULL_FLUSH)
        _BOMB_STREAM.append((data, 64 << 20))
    stream, unpacked = _BOMB_STREAM[0]
    times = gigabytes * 2**30 // unpacked
    start = zlib.compressobj(9, zlib.DEFLATED, -15)
    raw = start.compress(head) + start.flush(zlib.Z_FULL_FLUSH) + stream * times + b"\x03\x00"
    size = len(head) + unpacked * times
    stated = rng.choice((size & 0xFFFFFFFF, 1000, 640_128))
    encoded = name.encode()
    local = struct.pack("<4s5H3I2H", b"PK\x03\x04", 20, 0, 8, 0, 33, 0, len(raw), stated, len(encoded), 0) + encoded
    central = (
        struct.pack(
            "<4s6H3I5H2I", b"PK\x01\x02", 20, 20, 0, 8, 0, 33, 0, len(raw), stated, len(encoded), 0, 0, 0, 0, 0, 0
        )
        + encoded
    )
    end = struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, 1, 1, len(central), len(local) + len(raw), 0)
    return local + raw + central + end


ZIP_NAMES = (
    MISSING_FOLDER + "EVIL.npz",
    "/etc/x.npz",
    "/EVIL.npz",
    "..\\..\\EVIL.npz",
    "a/b/c.npz",
    "",
    ".npz",
    "x.npz/",
    "x\x00.npz",
    "x" * 3000 + ".npz",
    "\u00fc\U0001f697.npz",
    "submission.json",
    "__MACOSX/._x.npz",
    ".DS_Store",
)


def mutate_zip(rng: random.Random, data: bytes, canary: str, others: list[bytes]) -> tuple[bytes, str]:
    """A zip of npz files (an occupancy submission) with other members, names or flags."""
    if rng.random() < 0.2:
        return mutate_bytes(rng, data, others)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = [(name, archive.read(name)) for name in archive.namelist()]
    at = rng.randrange(len(members))
    name, inner = members[at]
    way = rng.choice(
        ("npz", "npz", "npz", "npz", "name", "more", "twice", "delete", "encrypted", "method", "crc", "bomb", "nested",
         "offset", "comment", "link")
    )  # fmt: skip
    text = f"zip: {way} {name}"
    if way == "npz":
        members[at], text = (name, mutate_npz(rng, inner, canary, others)[0]), f"zip: member {name} damaged"
    elif way in ("name", "more"):
        new = rng.choice(ZIP_NAMES)
        if way == "name":
            members[at] = (new, inner)
        else:
            members.append((new, inner))
        text = f"{text} -> {new[:40]!r}"
    elif way == "twice":
        members.append((name, mutate_npz(rng, inner, canary, others)[0]))
    elif way == "delete":
        del members[at]
    elif way == "nested":
        members = [("occupancy.zip", data)]
    elif way == "bomb":
        return bomb(rng, name), f"{text} of 4 GB"
    packed = bytearray(_zip_of(members, link=at if way == "link" else -1))
    if way in ("encrypted", "method", "crc", "offset"):
        place = packed.rfind(b"PK\x01\x02")
        local = packed.rfind(b"PK\x03\x04")
        # of the field in the central directory, and in the member's own header (offset: its name's length)
        central_at, local_at = {"encrypted": (8, 6), "method": (10, 8), "crc": (16, 14), "offset": (42, 26)}[way]
        for start in (place + central_at, local + local_at) if place >= 0 else ():
            packed[start] = {"encrypted": 1, "method": rng.choice((1, 12, 14, 99))}.get(way, rng.randrange(256))
    if way == "comment":
        packed += rng.randbytes(100)
    return bytes(packed), text


def _zip_of(members: list[tuple[str, bytes]], link: int = -1) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for i, (name, inner) in enumerate(members):
            info = zipfile.ZipInfo("placeholder")
            info.filename = name  # the constructor would cut it at a zero
            if i == link:
                info.external_attr, inner = 0o120777 << 16, b"/etc/passwd"
            try:
                archive.writestr(info, inner)
            except (struct.error, UnicodeError, ValueError):
                archive.writestr("x.npz", inner)
    return out.getvalue()


DTYPES = ("F64", "F32", "F16", "BF16", "I64", "I8", "BOOL", "F8_E4M3", "C64", "X", "")


def mutate_safetensors(rng: random.Random, data: bytes, others: list[bytes]) -> tuple[bytes, str]:
    """A safetensors file with another header (offsets, shapes, types, names, metadata), values or bytes."""
    draw = rng.random()
    if draw < 0.3:
        return mutate_bytes(rng, data, others)
    length = struct.unpack("<Q", data[:8])[0]
    header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    if draw < 0.4:
        lie = rng.choice((0, 1, 2**20, 2**40, 2**63, 2**64 - 1, length + 1, length - 1))
        return struct.pack("<Q", lie) + data[8:], f"safetensors: header of {lie} bytes"
    if draw < 0.55:
        where = rng.randrange(0, len(body) - 64, 4)
        bad = struct.pack("<f", rng.choice((float("nan"), float("inf"), 1e38))) * rng.choice((1, 16))
        body = body[:where] + bad + body[where + len(bad) :]
        text = "safetensors: values that are not finite"
    elif draw < 0.75:
        name = rng.choice([key for key in header if key != "__metadata__"])
        entry = dict(header[name])
        key = rng.choice(list(entry))
        choices: dict[str, list[Any]] = {
            "dtype": list(DTYPES),
            "shape": [[], [0], [10**15], [-1], [2**63], [1.5], None, entry["shape"][::-1], [*entry["shape"], 1]],
            "data_offsets": [[0, 2**62], [5, 1], [-8, 0], [0], [0, 0], None, [entry["data_offsets"][0] + 4] * 2],
        }
        entry[key] = rng.choice(choices[key])
        header[name], text = entry, f"safetensors: {name}.{key} = {entry[key]}"
    else:
        header, text = mutate_tree(rng, header)
    encoded = json.dumps(header, default=str).encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(encoded)) + encoded + body, text
