"""Whole runs of a verb that are started, disturbed, and looked at afterwards."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import time
import traceback
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors import safe_open

import drivestack
from drivestack.cli.main import main
from drivestack.core.pickles import load_pickle

from .base import SPLIT, VERSION, Base
from .child import TRACEBACK_EXIT, WALL_LIMIT_S, Input, judge

ITERATIONS = 12


@dataclass
class Verb:
    """A verb that writes, as small as it gets. ``OUT`` in the arguments stands for the place it writes to."""

    arguments: list[str]
    out: str
    """Name of the file or folder."""
    again: list[str]
    """More arguments, to go on after an interruption."""

    def command(self, place: Path, again: bool = False) -> list[str]:
        words = [word.replace("OUT", str(place)) for word in self.arguments]
        return words + (self.again if again else [])


def verbs(base: Base) -> dict[str, Verb]:
    """All verbs that write, by name."""
    config, weights = str(base.config), str(base.weights)
    source = ["--dataroot", str(base.root), "--version", VERSION, "--split", SPLIT]
    small = ["--scenes", "2", "--keyframes", "1", "--image-width", "64", "--workers", "1"]
    train = ["--work-dir", "OUT", "--set", f"train_cfg.max_iters={ITERATIONS}"]
    return {
        "synthesize": Verb(["synthesize", "OUT", *small], "set", []),
        "train": Verb(["train", config, *train], "run", ["--resume"]),
        "predict": Verb(["predict", config, weights, *source, "--out", "OUT"], "answers", []),
        "evaluate": Verb(["evaluate", config, weights, *source, "--out", "OUT"], "evaluation", []),
        "export-weights": Verb(["export-weights", str(base.checkpoint), "OUT"], "exported.safetensors", []),
        "predict to a file": Verb(
            ["predict", config, weights, *source, "--tasks", "boxes", "--out", "OUT"], "submission.json", []
        ),
        "score": Verb(["score", str(base.answers / "submission.json"), *source, "--out", "OUT"], "scores", []),
        "visualize": Verb(["visualize", *source, "--max", "1", "--out", "OUT"], "pictures", []),
        "visualize a clip": Verb(
            ["visualize", *source, "--max", "1", "--out", "OUT.pictures", "--clip", "OUT"], "clip.gif", []
        ),
    }


class Run:
    """A verb in a process of its own session. fresh: a new interpreter instead of a fork of this one."""

    def __init__(self, arguments: Sequence[str], folder: Path, fresh: bool = False) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.arguments, self.began = list(arguments), time.monotonic()
        self.err_path = folder / f"stderr-{time.monotonic_ns()}.txt"
        self.code: int | None = None
        with self.err_path.open("wb") as err:
            if fresh:
                parent = str(Path(drivestack.__file__).parents[1])
                path = os.pathsep.join(filter(None, [parent, os.environ.get("PYTHONPATH")]))
                command = [sys.executable, "-m", "drivestack", *self.arguments]
                environment = {**os.environ, "PYTHONPATH": path}
                self.pid = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=err, env=environment,
                    cwd=folder, start_new_session=True,
                ).pid  # fmt: skip
                return
            sys.stdout.flush()
            sys.stderr.flush()
            self.pid = os.fork()
            if self.pid == 0:
                self._child(err.fileno(), folder)

    def _child(self, err: int, folder: Path) -> None:
        code = TRACEBACK_EXIT
        try:
            os.setsid()
            os.dup2(os.open(os.devnull, os.O_RDWR), 0)
            os.dup2(0, 1)
            os.dup2(err, 2)
            os.chdir(folder)
            code = main(self.arguments)
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        except BaseException:
            traceback.print_exc()
        finally:
            with contextlib.suppress(BaseException):
                sys.stderr.flush()
            os._exit(code & 0xFF)

    def wait(self, seconds: float = 20 * WALL_LIMIT_S) -> bool:
        """True if it ended within this time."""
        end = time.monotonic() + seconds
        while self.code is None:
            found, status = os.waitpid(self.pid, os.WNOHANG)
            if found:
                self.code = os.waitstatus_to_exitcode(status)
            elif time.monotonic() > end:
                return False
            else:
                time.sleep(0.002)
        return True

    def send(self, number: signal.Signals, group: bool = False) -> None:
        with contextlib.suppress(ProcessLookupError):
            (os.killpg if group else os.kill)(self.pid, number)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.began

    @property
    def err(self) -> str:
        return self.err_path.read_text(errors="replace")

    @property
    def ending(self) -> str:
        """As the outcome of a damaged input (child.py)."""
        assert self.code is not None
        return judge(Input(self.arguments, ""), self.code, self.err, 0.0)

    def left_alive(self, patience_s: float = 3.0) -> list[int]:
        """Processes of its session that outlive it; they are ended."""
        end = time.monotonic() + patience_s
        while (found := _session(self.pid)) and time.monotonic() < end:
            time.sleep(0.1)
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return found


def _session(leader: int) -> list[int]:
    """Living processes of a session."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, ValueError, IndexError):
                state, _, _, session = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
                if int(session) == leader and state != "Z":
                    found.append(int(entry.name))
    return found


def is_temporary(path: Path, root: Path) -> bool:
    """Of a name that a later run removes: hidden, or in a folder that is built aside."""
    return any(part.startswith(".") or part.endswith(".partial") for part in path.relative_to(root).parts)


def files_of(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if path.is_file() and not path.name.startswith("stderr-"))


def half_written(root: Path) -> list[str]:
    """Files below root that cannot be opened; hidden ones are left out."""
    found = []
    for path in files_of(root):
        if not path.name.startswith("."):
            try:
                _open(path)
            except Exception as error:  # whatever its library says, the file is broken
                found.append(f"{path.relative_to(root)}: {type(error).__name__}: {error}"[:200])
    return found


def _open(path: Path) -> None:
    kind = path.suffix
    if kind == ".json":
        json.loads(path.read_text())
    elif kind == ".pth":
        torch.load(path, map_location="cpu", weights_only=False)  # written by this program
    elif kind == ".safetensors":
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 (no mapping)
                file.get_tensor(name)
    elif kind in (".zip", ".npz"):
        with zipfile.ZipFile(path) as archive:
            if archive.testzip():
                raise ValueError("broken member")
    elif kind == ".pkl":
        load_pickle(path)
    elif path.parent.name == "maps":
        pass  # one colour of 10,000 x 10,000
    elif kind in (".jpg", ".png", ".gif"):
        with Image.open(path) as image:
            image.load()
    elif kind == ".py":
        compile(path.read_text(), str(path), "exec")
    elif path.stat().st_size == 0 and kind not in (".jsonl", ".log", ".txt", ".lock"):
        raise ValueError("empty")


def content(root: Path) -> dict[str, Any]:
    """What must be equal: digests of all files by name; of checkpoints the weights, of archives the members.

    Logs and times are left out.
    """
    if root.is_file():
        return {root.name: _digest(root)}
    return {
        str(path.relative_to(root)): _digest(path)
        for path in files_of(root)
        if path.suffix not in (".jsonl", ".log", ".txt", ".lock", ".py") and not is_temporary(path, root)
    }


def _digest(path: Path) -> str:
    data = path.read_bytes()
    if path.suffix == ".pth":
        state = torch.load(path, map_location="cpu", weights_only=False)  # written by this program
        data = b"".join(_weights(state))
    elif path.suffix in (".zip", ".npz"):
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            data = b"".join(name.encode() + archive.read(name) for name in sorted(archive.namelist()))
    elif path.suffix == ".safetensors":
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + length])  # its library writes the metadata in any order
        data = json.dumps(header, sort_keys=True).encode() + data[8 + length :]
    elif path.suffix == ".json":
        data = json.dumps(_without_times(json.loads(data)), sort_keys=True).encode()
    return hashlib.sha256(data).hexdigest()


def _weights(node: Any) -> list[bytes]:
    """Bytes of all tensors of a checkpoint: weights, averages, optimiser."""
    if isinstance(node, torch.Tensor):
        return [node.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()] if node.numel() else []
    children = node.values() if isinstance(node, dict) else node if isinstance(node, (list, tuple)) else ()
    return [data for child in children for data in _weights(child)]


def _without_times(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: _without_times(child) for key, child in node.items() if not _is_time(key)}
    return [_without_times(child) for child in node] if isinstance(node, list) else node


def _is_time(key: str) -> bool:
    return any(word in key for word in ("seconds", "time_s", "fps", "_ms", "date"))
