"""Write a synthetic dataset to disk: scenes in parallel, a progress bar, and nothing half-written at the end."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from ....core.errors import DataError
from ....core.files import check_name, check_writable_folder, remove_stale_files, replace_folder, sync_files, write_json
from ....core.folders import file_lock
from ....core.progress import ProgressDisplay
from ....core.signals import start_children_without_signals
from ..sensing.sensors import LIDAR_CHANNEL, RIGS, camera_rig
from ..world.families import check_streets
from ..world.world import WORLD_VERSION, build_world
from .image_writer import IMAGE_LABELS, finish_image_labels
from .nuimages import nuimages_tables
from .nuscenes_writer import (
    SCENE_TABLES,
    fixed_tables,
    map_table,
    scene_name,
    write_map_stub,
    write_scene,
    write_tables,
)

LOGGER = logging.getLogger("drivestack")
LABELS = ("depth", "lanes", "occupancy", "street_map", *IMAGE_LABELS)
MANIFEST = "synthetic_manifest.json"
_PARTIAL = ".partial"
_LOOK_INTERVAL_S = 0.5  # how often the progress of the processes is looked up


@dataclass(frozen=True)
class Recipe:
    """All that decides the content of a synthetic dataset."""

    world_version: int
    seed: int
    scenes: dict[str, int]  # split -> number of scenes
    keyframes_per_scene: int
    image_width_px: int
    rig: str
    labels: tuple[str, ...]
    streets: str = "plain"

    def manifest(self) -> dict[str, Any]:
        """As it is stored; a field with its first value is left out where older sets have none."""
        fields = asdict(self)
        if self.streets == "plain":
            del fields["streets"]
        return fields


def synthesize(
    out_dir: str | Path,
    split: str = "train",
    num_scenes: int | Mapping[str, int] = 20,
    keyframes_per_scene: int = 20,
    seed: int = 0,
    image_width_px: int = 640,
    rig: str = "nuscenes",
    labels: Sequence[str] = ("occupancy", "lanes"),
    workers: int = 2,
    progress: bool = True,
    streets: str = "plain",
) -> Path:
    """Write a nuScenes-format dataset (version v1.0-trainval) of synthetic scenes and return its root.

    split: "train" or "val". num_scenes: scenes of that split, or a mapping split -> scenes to put both into one root
    (`split` is then ignored). Keyframes come at 2 Hz. rig: "nuscenes" (six cameras), "argoverse2" (seven, the front one
    upright), "distorted" (six with Brown-Conrady lenses), "fisheye" (six, of which one ahead is a fisheye of 120
    degrees) or "waymo" (five that do not look back, with lenses and images of two sizes). labels: what to write besides
    boxes, see data_tools/labels. streets: "plain", "turning", "mixed" of both, or "towns", which are held out
    for tests (world/families.py). The same arguments give the same bytes, whatever `workers` is.

    The set is built beside `out_dir` and renamed at the end, scene by scene, so an interrupted call goes on where it
    stopped; a finished set with the same recipe is left as it is.

    Raises ValueError for a bad argument, and if `out_dir` holds something else than this recipe; OutputError if it
    cannot be written, or while another process builds it; DataError if a worker is killed.
    """
    scenes = dict(num_scenes) if isinstance(num_scenes, Mapping) else {split: num_scenes}
    recipe = Recipe(
        WORLD_VERSION, seed, scenes, keyframes_per_scene, image_width_px, rig, tuple(sorted(set(labels))), streets
    )
    _check(recipe)
    root = Path(out_dir)
    check_name(root)
    if root.name in ("", ".."):
        raise ValueError(f"{root}: cannot be put in place whole; give the new folder a name of its own")
    if _is_complete(root, recipe):
        return root
    check_writable_folder(root.with_name(root.name + _PARTIAL))
    with file_lock(root, f"synthesize, seed {seed}"):
        if not _is_complete(root, recipe):  # another process may have been quicker
            _build(root, recipe, workers, progress)
    return root


def _is_complete(root: Path, recipe: Recipe) -> bool:
    if not root.is_dir():
        check_writable_folder(root)  # a file is refused
        return False
    if not any(root.iterdir()):
        return False
    _refuse_other(root, recipe)
    LOGGER.info("%s is complete already", root)
    return True


def _build(root: Path, recipe: Recipe, workers: int, progress: bool) -> None:
    partial = root.with_name(root.name + _PARTIAL)
    if partial.exists():
        _refuse_other(partial, recipe)
        remove_stale_files(partial, inner=True)
    write_json(partial / MANIFEST, recipe.manifest())
    jobs = [(name, i) for name in sorted(recipe.scenes) for i in range(recipe.scenes[name])]
    done = [job for job in jobs if _rows_file(partial, *job).exists()]
    keyframes, ready = len(jobs) * recipe.keyframes_per_scene, len(done) * recipe.keyframes_per_scene
    try:
        with ProgressDisplay("synthesize", keyframes, done=ready, unit="keyframes", shown=progress) as display:
            _run([(partial, recipe, *job) for job in jobs if job not in done], workers, display)
    except BaseException:
        remove_stale_files(partial, inner=True)  # of workers that were ended
        raise
    _finish(partial, recipe, jobs)
    replace_folder(partial, root)


def _check(recipe: Recipe) -> None:
    for name, count in recipe.scenes.items():
        if name not in ("train", "val"):
            raise ValueError(f"split must be 'train' or 'val', got {name!r}")
        if count < 1:
            raise ValueError(f"the number of {name} scenes must be at least 1, got {count}")
        scene_name(name, count - 1)
        check_streets(recipe.streets, name)
    if recipe.seed < 0:
        raise ValueError(f"the seed must not be negative, got {recipe.seed}")
    if recipe.keyframes_per_scene < 1 or recipe.image_width_px < 32:
        raise ValueError(
            "keyframes_per_scene must be at least 1 and image_width_px at least 32, got "
            f"{recipe.keyframes_per_scene} and {recipe.image_width_px}"
        )
    if recipe.rig not in RIGS:
        raise ValueError(f"rig must be one of {', '.join(RIGS)}, got {recipe.rig!r}")
    if unknown := set(recipe.labels) - set(LABELS):
        raise ValueError(f"labels must be of {', '.join(LABELS)}, got {', '.join(sorted(unknown))}")


def _refuse_other(folder: Path, recipe: Recipe) -> None:
    path = folder / MANIFEST
    if not path.is_file():
        raise ValueError(
            f"{folder} is not empty and holds no synthetic dataset ({MANIFEST} is missing); choose another folder"
        )
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise ValueError(f"{path}: holds no recipe of a synthetic dataset; delete {folder} or choose another folder")
    first = {"streets": "plain"}
    wanted, has = first | json.loads(json.dumps(recipe.manifest())), first | found
    differing = [f"{k}: has {has.get(k)}, requested {wanted[k]}" for k in wanted if has.get(k) != wanted[k]]
    if differing:
        raise ValueError(
            f"{folder} holds another synthetic dataset ({'; '.join(differing)}); delete it or choose another folder"
        )


def _rows_file(root: Path, split: str, index: int) -> Path:
    return root / "synthetic" / scene_name(split, index) / "rows.json"


def _one_scene(
    root: Path, recipe: Recipe, split: str, index: int, on_keyframe: Callable[[], None] | None = None
) -> None:
    world = build_world(recipe.seed, split, index, recipe.keyframes_per_scene, recipe.streets)
    cameras = camera_rig(recipe.image_width_px, recipe.rig)
    rows = write_scene(world, root, cameras, recipe.labels, on_keyframe)
    written = [row["filename"] for row in rows["sample_data"]]
    written += [name for row in rows.get("image_labels", []) for name in row["files"]]
    sync_files(root / name for name in written)  # rows.json says that the scene is there
    write_json(_rows_file(root, split, index), rows)


def _end_with_parent(parent: Connection) -> None:
    """This process ends when the other end of the pipe is closed: by the parent, or by the system if it was killed."""

    def watch() -> None:
        parent.poll(None)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _run(jobs: list[tuple[Path, Recipe, str, int]], workers: int, display: ProgressDisplay) -> None:
    if workers <= 1 or len(jobs) <= 1:
        for job in jobs:
            _one_scene(*job, display.advance)
        return
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    context = multiprocessing.get_context("spawn")
    watched, ours = context.Pipe(duplex=False)
    pool = ProcessPoolExecutor(min(workers, len(jobs)), context, _end_with_parent, (watched,))
    try:
        with start_children_without_signals():
            pending = {pool.submit(_one_scene, *job) for job in jobs}
        while pending:
            finished, pending = wait(pending, timeout=_LOOK_INTERVAL_S)
            for scene in finished:
                scene.result()
            display.move_to(_written_keyframes(jobs[0][0]))
        pool.shutdown()
    except BrokenProcessPool:
        raise DataError(
            f"{jobs[0][0]}: a process that synthesizes was killed (out of memory?); the same call with fewer workers "
            "goes on"
        ) from None
    finally:
        ours.close()  # ends workers that are still at a scene
        pool.shutdown(cancel_futures=True)
        watched.close()


def _written_keyframes(root: Path) -> int:
    """Keyframes whose sensors are on disk, the scan being the last; those of an interrupted scene count as well."""
    scans = root / "samples" / LIDAR_CHANNEL
    return sum(not path.name.startswith(".") for path in scans.iterdir()) if scans.is_dir() else 0


def _finish(root: Path, recipe: Recipe, jobs: list[tuple[str, int]]) -> None:
    tables = fixed_tables(camera_rig(recipe.image_width_px, recipe.rig)) | {name: [] for name in SCENE_TABLES}
    images: dict[str, list[dict]] = {split: [] for split in recipe.scenes}
    motions: dict[str, dict] = {}
    for job in jobs:
        rows = json.loads(_rows_file(root, *job).read_text())
        for name in SCENE_TABLES:
            tables[name] += rows[name]
        images[job[0]] += rows.get("image_labels", [])
        motions |= {row["token"]: row for row in rows.get("motion", [])}
    for split, rows_of_images in images.items():
        finish_image_labels(root, recipe.labels, recipe.seed, split, rows_of_images)
        if "nuimages" in recipe.labels:
            write_tables(root, nuimages_tables(tables, motions, rows_of_images), f"v1.0-{split}")
    tables["map"] = map_table([log["token"] for log in tables["log"]])
    write_map_stub(root)
    write_tables(root, tables)
    for job in jobs:
        _rows_file(root, *job).unlink()
