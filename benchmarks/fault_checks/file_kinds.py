"""Damaged submissions, weights, checkpoints, configs and overrides."""

from __future__ import annotations

import io
import json
import pickle
import random
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from drivestack.engine.config import dotted_leaves, load_config

from .archives import attack_pickle, mutate_npz, mutate_pickle, mutate_safetensors, mutate_zip
from .base import Base
from .child import Input
from .data_kinds import DRAW_S, PREDICT_S, Build, source
from .mutations import NUMBERS, TEXTS, dump_json, mutate_bytes, mutate_text, mutate_tree, shown, value

TRAIN_S = 1.5
LIMIT = ["--max-minutes", "0.01"]
"""A changed config may well state a long training."""


def _of_submission(rng: random.Random, base: Base, path: Path) -> Input:
    """A verb that reads a submission."""
    draw = rng.random()
    if draw < 0.45:
        return Input(["check-submission", str(path)], "", [path])
    if draw < 0.6:
        return Input(["check-submission", str(path), *source(base.root)], "", [path])
    if draw < 0.98:
        return Input(["score", str(path), *source(base.root)], "", [path], usual_s=0.5)
    arguments = ["visualize", "--submission", str(path), *source(base.root), "--max", "1", "--out", "out/pictures"]
    return Input(arguments, "", [path], DRAW_S)


def boxes(rng: random.Random, base: Base, folder: Path, canary: str) -> Input:
    """A nuScenes submission."""
    data, path = (base.answers / "submission.json").read_bytes(), folder / "submission.json"
    if rng.random() < 0.2:
        data, text = mutate_bytes(rng, data, [b"{}", b"[]", (base.tables / "sample.json").read_bytes()])
    else:
        changed, text = mutate_tree(rng, json.loads(data))
        data = dump_json(rng, changed)
    path.write_bytes(data)
    job = _of_submission(rng, base, path)
    job.change = text
    return job


def occupancy(rng: random.Random, base: Base, folder: Path, canary: str) -> Input:
    """An occupancy submission, zip or folder."""
    labels = [Path(base.frames[0].occupancy_path).read_bytes()]
    if rng.random() < 0.6:
        path = folder / "occupancy.zip"
        data, text = mutate_zip(rng, (base.answers / "occupancy.zip").read_bytes(), canary, labels)
        path.write_bytes(data)
    else:
        path = folder / "occupancy"
        path.mkdir()
        files = sorted((base.answers / "occupancy").glob("*.npz"))
        chosen = rng.choice(files)
        for file in files:
            if file != chosen:
                (path / file.name).symlink_to(file)
        data, text = mutate_npz(rng, chosen.read_bytes(), canary, labels)
        (path / (chosen.name if rng.random() < 0.9 else rng.choice(("x.npz", "submission.npz")))).write_bytes(data)
        text = f"folder, {text}"
    job = _of_submission(rng, base, path)
    if path.is_dir():
        job.arguments += ["--tasks", "occupancy"] if job.arguments[0] != "visualize" else []
    job.change = text
    return job


def lanes(rng: random.Random, base: Base, folder: Path, canary: str) -> Input:
    """An OpenLane-V2 submission."""
    path = folder / "lanes.pkl"
    data, text = mutate_pickle(rng, base.lanes, canary, [pickle.dumps(base.collection), b"{}"])
    path.write_bytes(data)
    job = _of_submission(rng, base, path)
    job.change = text
    return job


def _of_weights(rng: random.Random, base: Base, path: Path, training: bool) -> Input:
    """A verb that reads weights. training: the file may be a whole training checkpoint."""
    config, draw = str(base.config), rng.random()
    train = ["train", config, "--work-dir", "out/run", "--set", "train_cfg.max_iters=3", *LIMIT]
    if draw < 0.64:
        return Input(["api.load", config, str(path)], "", [path])
    if draw < 0.68:
        return Input(["predict", config, str(path), *source(base.root), "--out", "out/answers"], "", [path], PREDICT_S)
    if draw < 0.74:
        return Input([*train, rng.choice(("--load-from", "--fine-tune")), str(path)], "", [path], TRAIN_S)
    if training and draw < 0.8:
        return Input([*train, "--resume", str(path)], "", [path], TRAIN_S)
    return Input(["export-weights", str(path), "out/exported.safetensors"], "", [path])


def safetensors(rng: random.Random, base: Base, folder: Path, canary: str) -> Input:
    """Weights as published."""
    path = folder / "weights.safetensors"
    data, text = mutate_safetensors(rng, base.weights.read_bytes(), [(base.folder / "toy.pth").read_bytes()])
    path.write_bytes(data)
    job = _of_weights(rng, base, path, training=False)
    job.change = text
    return job


def checkpoint(rng: random.Random, base: Base, folder: Path, canary: str) -> Input:
    """A .pth file: of weights alone, or of a training run."""
    path = folder / "weights.pth"
    training = rng.random() < 0.6
    state: dict[str, Any] = base.arrays if training else {"state_dict": base.arrays["state_dict"]}
    draw = rng.random()
    if draw < 0.25:
        original = base.checkpoint if training else base.folder / "toy.pth"
        data, text = mutate_bytes(rng, original.read_bytes(), [base.weights.read_bytes()])
    elif draw < 0.4:
        data, text = attack_pickle(rng, canary)
        if rng.random() < 0.7:
            data, text = _zip_with(rng, base.folder / "toy.pth", data), f"in torch's zip, {text}"
    elif draw < 0.6:
        with zipfile.ZipFile(base.checkpoint) as archive:
            inner = archive.read(next(name for name in archive.namelist() if name.endswith("data.pkl")))
        changed, text = mutate_bytes(rng, inner)
        data, text = _zip_with(rng, base.checkpoint, changed), f"data.pkl {text}"
    else:
        changed_state, text = mutate_tree(rng, state)
        out = io.BytesIO()
        torch.save(_tensors(changed_state), out, _use_new_zipfile_serialization=rng.random() < 0.9)
        data = out.getvalue()
    path.write_bytes(data)
    job = _of_weights(rng, base, path, training)
    job.change = f"{'training' if training else 'weights'} {text}"
    return job


def _tensors(node: Any) -> Any:
    if isinstance(node, np.ndarray):
        try:
            return torch.from_numpy(np.ascontiguousarray(node)) if node.ndim else torch.tensor(node.item())
        except (TypeError, ValueError):  # NumPy's alone
            return node
    if isinstance(node, dict):
        return {key: _tensors(child) for key, child in node.items()}
    return type(node)(_tensors(child) for child in node) if type(node) in (list, tuple) else node


def _zip_with(rng: random.Random, original: Path, pickled: bytes) -> bytes:
    """A file of torch.save with another pickle in it, sometimes another member damaged too."""
    out = io.BytesIO()
    with zipfile.ZipFile(original) as archive, zipfile.ZipFile(out, "w") as changed:
        for name in archive.namelist():
            inner = archive.read(name)
            if name.endswith("data.pkl"):
                inner = pickled
            elif rng.random() < 0.005:
                inner = inner[: len(inner) // 2]
            changed.writestr(name, inner)
    return out.getvalue()


def _of_config(rng: random.Random, base: Base, config: str, extra: list[str]) -> Input:
    draw = rng.random()
    if draw < 0.75:
        return Input(["api.build", config, *extra], "", big=True)
    if draw < 0.92:
        arguments = ["train", config, "--work-dir", "out/run", *LIMIT]
    else:
        arguments = ["predict", config, "random", *source(base.root), "--out", "out/answers"]
    return Input([*arguments, *(word for text in extra for word in ("--set", text))], "", usual_s=TRAIN_S, big=True)


def config(rng: random.Random, base: Base, folder: Path, canary: str) -> Input:
    """A config file with other lines."""
    path = folder / "toy.py"
    text = base.config.read_text()
    if rng.random() < 0.1:
        data, change = mutate_bytes(rng, text.encode(), [b"model = None\n", b"import os\n"])
    else:
        changed, change = mutate_text(rng, text)
        data = changed.encode("utf-8", "surrogatepass")
    if b"num_workers=0" not in data and b"num_workers" in data:  # thousands of processes are no test of the border
        return config(rng, base, folder, canary)
    path.write_bytes(data)
    job = _of_config(rng, base, str(path), [])
    job.change, job.files = change, [path]
    return job


_LEAVES: dict[str, list[str]] = {}


def overrides(rng: random.Random, base: Base, folder: Path, canary: str) -> Input:
    """``--set KEY=VALUE``, one to three."""
    if not _LEAVES:
        _LEAVES["toy"] = [key for key, _ in dotted_leaves(load_config(base.config)._cfg_dict) if "workers" not in key]
    texts = []
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        key = rng.choice(_LEAVES["toy"])
        key = rng.choice(
            (key, key, key, key, key.rpartition(".")[0] or key, f"{key}.more", key[:-1], key.split(".")[0])
        )
        new = (
            value(rng)
            if rng.random() < 0.6
            else rng.choice((*NUMBERS, *TEXTS[:8], "(1,2)", "dict(type='x')", "{'type': 1}"))
        )
        texts.append(f"{key}={new if isinstance(new, str) else repr(new)}"[:5000].replace("\x00", "\\x00"))
    texts = [text.encode("utf-8", "replace").decode() for text in texts]
    if rng.random() < 0.05:
        texts.append(rng.choice(("", "=", "a", "=1", "model", "a=b=c", " model.x =1", "model..x=1", "model.=1", ".=1")))
    job = _of_config(rng, base, str(base.config), texts)
    job.change = "--set " + " ".join(map(shown, texts))
    return job


KINDS: dict[str, Build] = {
    "boxes": boxes,
    "occupancy": occupancy,
    "lanes": lanes,
    "safetensors": safetensors,
    "checkpoint": checkpoint,
    "config": config,
    "set": overrides,
}
