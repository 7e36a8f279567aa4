"""Damaged data sets: tables, info files, OpenLane-V2, challenge file, Argoverse 2, voxel labels, images."""

from __future__ import annotations

import functools
import io
import json
import pickle
import random
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from .archives import mutate_npz, mutate_pickle
from .base import SPLIT, VERSION, Base
from .child import Input
from .mutations import dump_json, mutate_bytes, mutate_tree

DRAW_S, PREDICT_S = 1.5, 1.0

Build = Callable[[random.Random, Base, Path, str], Input]
"""(random numbers, base, scratch folder, canary) -> input."""


def source(root: Path) -> list[str]:
    """Options that name a nuScenes set."""
    return ["--dataroot", str(root), "--version", VERSION, "--split", SPLIT]


def linked(source_folder: Path, folder: Path) -> Path:
    """A new folder of links to what another holds; ``replace`` puts another file in a link's place."""
    folder.mkdir()
    for entry in source_folder.iterdir():
        (folder / entry.name).symlink_to(entry)
    return folder


def replace(root: Path, relative: str, data: bytes) -> Path:
    """Write a file of a set of links; links on the way become folders of links."""
    path = root
    for part in Path(relative).parts[:-1]:
        path = path / part
        if path.is_symlink():
            target = path.resolve()
            path.unlink()
            linked(target, path)
    path = root / relative
    path.unlink(missing_ok=True)
    path.write_bytes(data)
    return path


def verb_with(rng: random.Random, base: Base, options: list[str], reader: list[str], scored: str = "") -> Input:
    """A verb that reads a data set, mostly a quick one. options: that name the set on the command line; reader: the
    arguments of api.read; scored: a submission that fits the set."""
    draw = rng.random()
    if draw < 0.02:
        return Input(["visualize", *options, "--max", "1", "--out", "out/pictures"], "", usual_s=DRAW_S)
    if draw < 0.07:
        arguments = ["predict", str(base.config), str(base.weights), *options, "--out", "out/answers"]
        return Input(arguments, "", usual_s=PREDICT_S)
    if draw < 0.4 or not scored:
        return Input(["api.read", *reader], "")
    verb = "score" if draw < 0.8 else "check-submission"
    return Input([verb, scored, *options], "", usual_s=0.5)


def tables(rng: random.Random, base: Base, folder: Path, canary: str) -> Input:
    """One table of a nuScenes set, its bytes or its rows."""
    root = linked(base.root, folder / "set")
    name = rng.choice(list(base.table_bytes))
    data = base.table_bytes[name]
    if rng.random() < 0.2:
        data, text = mutate_bytes(rng, data, list(base.table_bytes.values()))
    else:
        changed, text = mutate_tree(rng, json.loads(data))
        data = dump_json(rng, changed)
    path = replace(root, f"{VERSION}/{name}.json", data)
    scored = base.answers / ("lanes.pkl" if rng.random() < 0.15 else "submission.json")
    job = verb_with(
        rng, base, source(root), ["nuscenes", str(root), f"version={VERSION}", f"split={SPLIT}"], str(scored)
    )
    job.change, job.files = f"{name}.json {text}", [path]
    return job


def infos(rng: random.Random, base: Base, folder: Path, canary: str) -> Input:
    """An info file of one of three layouts."""
    layout = rng.choice(list(base.infos))
    path = folder / "infos.pkl"
    data, text = mutate_pickle(rng, base.infos[layout], canary, [pickle.dumps(base.collection), b"{}"])
    path.write_bytes(data)
    options = ["--info-pickle", str(path), "--dataroot", str(base.root)]
    submission = str(base.answers / "submission.json")
    job = verb_with(rng, base, options, ["nuscenes_infos", str(base.root), f"info_pickle={path}"], submission)
    job.change, job.files = f"{layout} {text}", [path]
    return job


def openlane(rng: random.Random, base: Base, folder: Path, canary: str) -> Input:
    """An info file of OpenLane-V2, or the list of frames."""
    root = linked(base.openlane, folder / "openlane")
    names = ["data_dict_val.json", *(str(p.relative_to(base.openlane)) for p in sorted(base.openlane.rglob("info/*")))]
    name = names[0] if rng.random() < 0.25 else rng.choice(names[1:])
    data = (base.openlane / name).read_bytes()
    if rng.random() < 0.2:
        data, text = mutate_bytes(rng, data, [b"{}", b"[]", (base.openlane / names[0]).read_bytes()])
    else:
        changed, text = mutate_tree(rng, json.loads(data))
        data = dump_json(rng, changed)
    path = replace(root, name, data)
    split = SPLIT if name != names[0] and rng.random() < 0.5 else names[0]
    options = ["--openlane", str(root), "--split", split]
    job = verb_with(rng, base, options, ["openlane", str(root), f"split={split}"], str(base.answers / "lanes.pkl"))
    job.change, job.files = f"{Path(name).name} {text}", [path]
    return job


def collection(rng: random.Random, base: Base, folder: Path, canary: str) -> Input:
    """A pickle of OpenLane-V2 frames."""
    path = folder / "frames.pkl"
    data, text = mutate_pickle(rng, base.collection, canary, [pickle.dumps(base.infos["1.1"]), b"{}"])
    path.write_bytes(data)
    options = ["--openlane", str(base.openlane), "--split", str(path)]
    job = verb_with(
        rng, base, options, ["openlane", str(base.openlane), f"split={path}"], str(base.answers / "lanes.pkl")
    )
    job.change, job.files = text, [path]
    return job


def challenge(rng: random.Random, base: Base, folder: Path, canary: str) -> Input:
    """annotations.json of the occupancy challenge."""
    root = linked(base.challenge, folder / "challenge")
    data = (base.challenge / "annotations.json").read_bytes()
    if rng.random() < 0.2:
        data, text = mutate_bytes(rng, data, [b"{}", b"[]"])
    else:
        changed, text = mutate_tree(rng, json.loads(data))
        data = dump_json(rng, changed)
    path = replace(root, "annotations.json", data)
    options = ["--reader", "occ3d_challenge", "--dataroot", str(root), "--split", SPLIT]
    job = verb_with(rng, base, options, ["occ3d_challenge", str(root), f"split={SPLIT}"],
                    str(base.answers / "occupancy.zip"))  # fmt: skip
    job.change, job.files = text, [path]
    return job


def argoverse(rng: random.Random, base: Base, folder: Path, canary: str) -> Input:
    """Map, poses or calibration of an Argoverse 2 log."""
    root = linked(base.log, folder / "log")
    names = sorted(str(path.relative_to(base.log)) for path in base.log.rglob("*") if path.is_file())
    name = rng.choice(names)
    data = (base.log / name).read_bytes()
    if rng.random() < 0.25:
        data, text = mutate_bytes(rng, data, [(base.log / other).read_bytes() for other in names])
    elif name.endswith(".json"):
        changed, text = mutate_tree(rng, json.loads(data))
        data = dump_json(rng, changed)
    else:
        data, text = _mutate_feather(rng, data)
    path = replace(root, name, data)
    options = ["--reader", "argoverse2", "--dataroot", str(root)]
    job = verb_with(rng, base, options, ["argoverse2", str(root)], str(base.answers / "lanes.pkl"))
    job.change, job.files = f"{name} {text}", [path]
    return job


def _mutate_feather(rng: random.Random, data: bytes) -> tuple[bytes, str]:
    """Other columns: values, types, names, lengths."""
    import pyarrow as arrow

    table = arrow.ipc.open_file(arrow.BufferReader(data)).read_all()
    columns = table.to_pydict()
    for _ in range(20):
        changed, text = mutate_tree(rng, columns)
        try:
            new = arrow.table(changed)
            out = arrow.BufferOutputStream()
            with arrow.ipc.new_file(out, new.schema) as writer:
                writer.write_table(new)
        except (arrow.ArrowException, TypeError, ValueError, AttributeError, OverflowError):  # Arrow cannot hold it
            continue
        return out.getvalue().to_pybytes(), text
    return mutate_bytes(rng, data)


def occ3d(rng: random.Random, base: Base, folder: Path, canary: str) -> Input:
    """Voxel labels of a sample."""
    root = linked(base.root, folder / "set")
    frame = rng.choice(base.frames)
    relative = str(Path(frame.occupancy_path).relative_to(base.root))
    lanes = next(base.root.glob("lanes/*/*"), None)
    others = [] if lanes is None else [lanes.read_bytes()]
    data, text = mutate_npz(rng, Path(frame.occupancy_path).read_bytes(), canary, others)
    path = replace(root, relative, data)
    draw = rng.random()
    if draw < 0.6:
        arguments = ["score", str(base.answers / "occupancy.zip"), *source(root)]
    elif draw < 0.98:
        arguments = ["api.item", str(base.config), str(root), str(base.frames.index(frame))]
    else:
        arguments = ["visualize", *source(root), "--sample", frame.token, "--out", "out/pictures"]
    return Input(arguments, text, [path], DRAW_S)


def images(rng: random.Random, base: Base, folder: Path, canary: str) -> Input:
    """One camera's image of a sample."""
    root = linked(base.root, folder / "set")
    view = rng.choice(base.frames[0].cameras)
    relative = str(Path(view.image_path).relative_to(base.root))
    data, text = damaged_image(rng, Path(view.image_path).read_bytes())
    path = replace(root, relative, data)
    draw = rng.random()
    if draw < 0.91:
        arguments = ["api.item", str(base.config), str(root), "0"]
    elif draw < 0.99:
        arguments = ["predict", str(base.config), str(base.weights), *source(root), "--out", "out/answers"]
    else:
        arguments = ["visualize", *source(root), "--sample", base.frames[0].token, "--out", "out/pictures"]
    return Input(arguments, text, [path], DRAW_S)


MODES = ("1", "L", "LA", "P", "PA", "RGBA", "CMYK", "YCbCr", "I", "I;16", "F", "LAB", "HSV")


def damaged_image(rng: random.Random, data: bytes) -> tuple[bytes, str]:
    """Another JPEG or PNG: bytes, format, mode, size, orientation, headers that lie."""
    draw = rng.random()
    if draw < 0.45:
        return mutate_bytes(rng, data)
    image = Image.open(io.BytesIO(data)).convert("RGB")
    if draw < 0.6:
        return _encoded(rng, image, rng.choice(MODES))
    if draw < 0.7:
        size = rng.choice(((1, 1), (image.height, image.width), (image.width + 1, image.height), (2, 2000), (64, 36)))
        return _encoded(rng, image.resize(size), "RGB")
    if draw < 0.75:
        exif = Image.Exif()
        exif[0x112] = rng.randrange(0, 12)
        out = io.BytesIO()
        image.save(out, "JPEG", exif=exif)
        return out.getvalue(), f"image: EXIF orientation {exif[0x112]}"
    if draw < 0.85:
        return _huge_png(rng)
    if draw < 0.92:
        start = max(data.find(b"\xff\xc0"), 0)
        high, wide = rng.choice(((65535, 65535), (0, 0), (1, 65535), (216, 385)))
        return data[: start + 5] + struct.pack(">HH", high, wide) + data[start + 9 :], f"image: JPEG of {wide} x {high}"
    png, _ = _encoded(rng, image, "RGB", "PNG")
    changed, text = mutate_bytes(rng, png)
    return changed, f"image: PNG {text}"


def _encoded(rng: random.Random, image: Image.Image, mode: str, kind: str = "") -> tuple[bytes, str]:
    kind = kind or rng.choice(("PNG", "PNG", "JPEG", "TIFF", "GIF", "BMP", "WEBP"))
    out = io.BytesIO()
    if mode == "I;16":
        wide = np.asarray(image.convert("L")).astype(np.uint16) * rng.choice((1, 16, 257))
        Image.fromarray(wide).save(out, "PNG")
        return out.getvalue(), "image: 16 bits, PNG"
    try:
        image.convert("L" if mode in ("PA", "LA") else mode).convert(mode).save(out, kind)
    except (OSError, ValueError, KeyError):  # this format has no such mode
        out = io.BytesIO()
        image.convert("L").save(out, "PNG")
        kind, mode = "PNG", "L"
    return out.getvalue(), f"image: {kind} {mode} {image.size}"


@functools.cache
def zeros(megabytes: int) -> bytes:
    """So many zeros, compressed."""
    return zlib.compress(bytes(megabytes << 20), 9)


def _huge_png(rng: random.Random) -> tuple[bytes, str]:
    """A PNG whose header states a size that no memory holds, or whose text is a bomb."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    wide, high = rng.choice(((100_000, 100_000), (2**31 - 1, 1), (20_000, 20_000), (13_000, 13_000), (0, 5)))
    depth, colour = rng.choice(((8, 2), (16, 6), (1, 0)))
    text = chunk(b"zTXt", b"a\x00\x00" + zeros(200)) if rng.random() < 0.3 else b""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", wide, high, depth, colour, 0, 0, 0))
    pixels = zeros(rng.choice((0, 50)))
    name = f"image: PNG of {wide} x {high}, {depth} bits{', text of 200 MB' if text else ''}"
    return b"\x89PNG\r\n\x1a\n" + header + text + chunk(b"IDAT", pixels) + chunk(b"IEND", b""), name


KINDS: dict[str, Build] = {
    "tables": tables,
    "infos": infos,
    "openlane": openlane,
    "collection": collection,
    "challenge": challenge,
    "argoverse": argoverse,
    "occ3d": occ3d,
    "images": images,
}
