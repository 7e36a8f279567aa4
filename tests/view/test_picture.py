"""The picture of all answers: what is requested is in it, labels and answers may each be missing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from drivestack.core.answers import OccupancyGrid, SceneAnswer
from drivestack.core.errors import DataError
from drivestack.core.frames import Frame
from drivestack.core.labels import OccupancyLabels
from drivestack.data_tools.labels.files import write_occupancy
from drivestack.geometry import VoxelGrid
from drivestack.view import picture as picture_module
from drivestack.view.boxes import save_picture
from drivestack.view.colours import (
    CLASS_COLOURS,
    ELEMENT_COLOURS,
    GROUND_TRUTH,
    LANE_COLOUR,
    LIDAR_COLOUR,
    Palette,
    colour_distance,
)
from drivestack.view.drawing import LegendEntry, View
from drivestack.view.picture import render_answer_clip, render_answers
from support.toy_pictures import annotations, detections, lane_graph, lane_labels, shows, toy_frame, voxels

VIEW = View(camera_width_px=200)
AHEAD = [12.0, 3.0, 0.8, 4, 2, 1.6, 0]


def answer(**parts) -> SceneAnswer:
    full = SceneAnswer("token", detections([AHEAD], [0]), OccupancyGrid("token", voxels()), lane_graph())
    return replace(full, **parts)


@pytest.fixture
def legend_of(monkeypatch: pytest.MonkeyPatch):
    """legend_of(frame, answer, names, ...): the entries below the picture, by text."""

    def drawn(*arguments, **settings) -> dict[str, LegendEntry]:
        entries: dict[str, LegendEntry] = {}
        original = picture_module.draw_legend

        def recorded(canvas, rows, *rest):
            entries.update({entry.text: entry for row in rows for entry in row})
            original(canvas, rows, *rest)

        monkeypatch.setattr(picture_module, "draw_legend", recorded)
        render_answers(*arguments, **settings)
        return entries

    return drawn


def labelled(frame: Frame, folder: Path, **fields) -> Frame:
    path = folder / "labels.npz"
    write_occupancy(path, OccupancyLabels(voxels(), np.ones((200, 200, 16), bool), np.ones((200, 200, 16), bool)))
    fields = {
        "occupancy_path": str(path),
        "lanes": lane_labels(),
        "annotations": annotations([AHEAD], ["car"]),
    } | fields
    return replace(frame, **fields)


@pytest.mark.parametrize("missing", [(), ("boxes",), ("occupancy",), ("lanes",), ("boxes", "occupancy", "lanes")])
def test_any_subset_of_answers_without_labels(frame: Frame, missing: tuple[str, ...]) -> None:
    picture = render_answers(frame, answer(**dict.fromkeys(missing)), ["car"], VIEW)
    assert picture.dtype == np.uint8 and picture.shape[2] == 3
    assert abs(picture.shape[1] - (200 * 1900 / 560 if "occupancy" not in missing else 3 * 200 + 225)) < 15
    assert (shows(picture, LANE_COLOUR) > 50) == ("lanes" not in missing)
    assert not shows(picture, GROUND_TRUTH)


def test_labels_are_green_and_can_be_left_out(frame: Frame, tmp_path: Path) -> None:
    full = labelled(frame, tmp_path)
    with_labels = render_answers(full, None, ["car"], VIEW)
    assert shows(with_labels, GROUND_TRUTH) > 50 and not shows(with_labels, LANE_COLOUR)
    both = render_answers(full, answer(), ["car"], VIEW)
    assert shows(both, GROUND_TRUTH) and shows(both, LANE_COLOUR)
    assert not shows(render_answers(full, answer(), ["car"], replace(VIEW, ground_truth=False)), GROUND_TRUTH)


@pytest.mark.parametrize("attribute", [1, 2, 3, 4])
def test_no_prediction_is_green_as_the_labels_are(frame: Frame, attribute: int) -> None:
    names = [*CLASS_COLOURS, *(f"own {i}" for i in range(10))]
    apart = [[8 * (i // 5) - 40, 8 * (i % 5) + 8, 0.8, 4, 2, 1.6, 0] for i in range(20)]
    found = detections(apart, list(range(20)))
    picture = render_answers(frame, answer(boxes=found, lanes=lane_graph(attribute), occupancy=None), names, VIEW)
    assert np.abs(picture.astype(int) - GROUND_TRUTH).max(-1).min() > 40  # strokes that cross may blend to any hue


def test_a_predicted_green_light_is_not_a_label(frame: Frame) -> None:
    assert colour_distance(ELEMENT_COLOURS["green"], GROUND_TRUTH) > 60
    found = render_answers(frame, answer(lanes=lane_graph(2), boxes=None, occupancy=None), [], VIEW)
    assert shows(found, ELEMENT_COLOURS["green"]) > 20
    labels = render_answers(replace(frame, lanes=lane_labels(2)), None, [], VIEW)
    assert shows(labels, GROUND_TRUTH) > 20 and not shows(labels, ELEMENT_COLOURS["green"])


def test_the_legend_explains_what_is_drawn_and_nothing_else(frame: Frame, tmp_path: Path, legend_of) -> None:
    sweep = tmp_path / "sweep.bin"
    np.random.default_rng(0).uniform(-40, 40, (501, 5)).astype(np.float32).tofile(sweep)
    everything = labelled(frame, tmp_path, lidar_path=str(sweep))
    entries = legend_of(everything, answer(), ["car"], VIEW)
    for text, colour in {
        "ground truth (thin green dashes)": GROUND_TRUTH,
        "labelled joint of two lanes": GROUND_TRUTH,
        "labelled element and lane it governs": GROUND_TRUTH,
        "predictions with score >= 0.30:": None,
        "car": CLASS_COLOURS["car"],
        "lane, arrow along the traffic": LANE_COLOUR,
        "joint of two lanes": (255, 255, 255),
        "red light": ELEMENT_COLOURS["red"],
        "tie: element governs lane": ELEMENT_COLOURS["red"],
        "driveable surface": (98, 104, 128),
        "LiDAR points": LIDAR_COLOUR,
        "filled face = front": None,
    }.items():
        assert entries[text].colour == colour
    only_boxes = legend_of(frame, answer(lanes=None, occupancy=None), ["car"], VIEW)
    assert set(only_boxes) == {"predictions with score >= 0.30:", "car", "filled face = front"}
    assert not legend_of(frame, None, ["car"], VIEW)
    only_labels = legend_of(everything, None, ["car"], VIEW)
    assert not any(text.startswith("predictions") for text in only_labels)


def test_own_classes_stand_in_the_legend_in_their_own_colours(frame: Frame, legend_of) -> None:
    names = ["pkw", "lkw", "person"]
    found = detections([AHEAD, [20.0, -4, 1, 8, 2, 3, 0]], [0, 2])
    entries = legend_of(frame, answer(boxes=found, lanes=None, occupancy=None), names, VIEW)
    assert {"pkw", "person"} <= set(entries) and "lkw" not in entries
    assert len({entries["pkw"].colour, entries["person"].colour, (255, 255, 255)}) == 3


def test_own_voxel_classes_and_grid(frame: Frame, legend_of) -> None:
    names = ("strasse", "pkw", "frei")
    grid = VoxelGrid(-10.0, -10.0, -1.0, 10.0, 10.0, 3.0, 40, 40, 8)
    own = np.full(grid.shape, 2, np.uint8)
    own[:, :, 1], own[30:36, 18:22, 2:5] = 0, 1
    own[0, 0, 0] = 77
    given = answer(occupancy=OccupancyGrid("token", own), lanes=None)
    settings = {"voxel_class_names": names, "voxel_grid": grid}
    palette = Palette.of(["pkw"], names)
    entries = legend_of(frame, given, ["pkw"], VIEW, **settings)
    assert entries["strasse"].colour == palette["strasse"] and "frei" not in entries
    assert entries["voxel class 77: has no name, not drawn"].colour is None
    picture = render_answers(frame, given, ["pkw"], VIEW, **settings)
    assert shows(picture, palette["strasse"]) > 500
    with pytest.raises(DataError, match=r"sample token: voxels, predicted, are \[40, 40, 8\], the grid has \[200,"):
        render_answers(frame, given, ["pkw"], VIEW, voxel_class_names=names)


def test_lanes_below_the_threshold_stay_invisible(frame: Frame) -> None:
    picture = render_answers(frame, answer(), ["car"], replace(VIEW, score_threshold=0.95))
    assert not shows(picture, LANE_COLOUR)


SIZES = ((160, 90), (96, 60), (64, 48), (80, 100))


@pytest.mark.parametrize("count", [0, 1, 2, 5, 7, 12])
@pytest.mark.parametrize("occupancy", [True, False])
def test_any_number_of_cameras_of_mixed_sizes(tmp_path: Path, count: int, occupancy: bool) -> None:
    cameras = [(f"C{i}", 360 * i / max(count, 1), SIZES[i % 4]) for i in range(count)]
    mixed = toy_frame(tmp_path, cameras, lanes=lane_labels())
    given = answer() if occupancy else answer(occupancy=None)
    picture = render_answers(mixed, given, ["car"], View(camera_width_px=120))
    assert shows(picture, CLASS_COLOURS["car"]) > 20 and shows(picture, GROUND_TRUTH) > 20
    assert max(picture.shape) < 1200


def test_a_missing_front_camera_leaves_its_elements_out_of_the_other_cameras(frame: Frame) -> None:
    behind = replace(frame, cameras=frame.cameras[3:4])
    only_elements = replace(lane_graph(), centrelines=lane_graph().centrelines - [40, 0, 30])
    with_them = render_answers(behind, answer(boxes=None, occupancy=None, lanes=only_elements), ["car"], VIEW)
    tile = with_them[:, :200]
    assert not shows(tile[: tile.shape[0] - 60], ELEMENT_COLOURS["red"])
    assert shows(with_them, ELEMENT_COLOURS["red"])  # its row from above


def test_a_gif_shows_every_class_colour_of_the_picture_exactly(frame: Frame, tmp_path: Path) -> None:
    names = [*CLASS_COLOURS, "pkw", "lkw"]
    found = detections([[8.0 + 3 * i, 4 - 2 * i, 0.8, 4, 2, 1.6, 0] for i in range(12)], list(range(12)))
    given = answer(boxes=found, occupancy=None)
    still = replace(frame, annotations=annotations([AHEAD], ["car"]))
    picture = render_answers(still, given, names, VIEW)
    render_answer_clip([still], lambda _: given, names, tmp_path / "clip.gif", VIEW)
    with Image.open(tmp_path / "clip.gif") as clip:
        shown = np.asarray(clip.convert("RGB"))
    for colour in [*Palette.of(names).values(), GROUND_TRUTH, LANE_COLOUR]:
        painted = (picture == colour).all(-1)
        assert painted.sum() > 3 and (shown[painted] == colour).all(), colour


def test_missing_image_and_clip_suffix(frame: Frame, tmp_path: Path) -> None:
    answers = {"token": answer(), "later": answer(occupancy=None, token="later")}
    frames = [frame, replace(frame, token="later")]  # pictures of two sizes
    render_answer_clip(frames, lambda f: answers[f.token], ["car"], tmp_path / "clip.gif", VIEW)
    with Image.open(tmp_path / "clip.gif") as clip:
        assert clip.n_frames == 2
    asked = []
    with pytest.raises(DataError, match=r"name it \.gif or \.mp4"):
        render_answer_clip([frame], asked.append, ["car"], tmp_path / "clip.avi", VIEW)
    assert not asked, "nothing is drawn before the name is known to be good"


@pytest.mark.parametrize("content", [None, b"", b"\x89PNG\r\n\x1a\nbroken"])
def test_a_bad_image_is_named_and_nothing_is_written(frame: Frame, tmp_path: Path, content: bytes | None) -> None:
    path = Path(frame.cameras[2].image_path)
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=r"sample token, camera FRONT_LEFT: .*FRONT_LEFT\.png"):
        save_picture(Image.fromarray(render_answers(frame, None, ["car"], VIEW)), tmp_path / "picture.png")
    assert not (tmp_path / "picture.png").exists()
