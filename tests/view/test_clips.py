"""Clips: a GIF shows the colours of the drawing to the bit."""

from __future__ import annotations

import resource
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from drivestack.core.errors import DataError, OutputError
from drivestack.view.clips import check_clip_path, save_clip
from drivestack.view.colours import CLASS_COLOURS, FIXED_COLOURS, Palette


def photograph(seed: int, size: tuple[int, int] = (240, 160)) -> np.ndarray:
    """Noise on a gradient, more colours than a GIF has."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[: size[1], : size[0]]
    smooth = np.stack([x / size[0], y / size[1], (x + y) / sum(size)], -1) * 200
    return np.clip(smooth + random.normal(0, 25, smooth.shape), 0, 255).astype(np.uint8)


def drawn_on(photo: np.ndarray, colours: list[tuple[int, int, int]], shift: int) -> np.ndarray:
    """A one pixel wide stroke and a small box in every colour."""
    out = photo.copy()
    for i, colour in enumerate(colours):
        out[3 + 3 * i, shift : shift + 60] = colour
        out[3 + 3 * i : 5 + 3 * i, 150:158] = colour
    return out


def read(path: Path) -> list[np.ndarray]:
    with Image.open(path) as clip:
        frames = []
        for i in range(clip.n_frames):
            clip.seek(i)
            frames.append(np.asarray(clip.convert("RGB")))
    return frames


@pytest.mark.parametrize(
    "colours",
    [
        list(CLASS_COLOURS.values()),
        list(FIXED_COLOURS),
        list(Palette.of([f"own {i}" for i in range(40)]).values()),
    ],
)
def test_every_drawing_colour_is_exact_in_every_frame_of_a_gif(tmp_path: Path, colours: list) -> None:
    pictures = [drawn_on(photograph(i), colours, 20 * i) for i in range(3)]
    save_clip([Image.fromarray(p) for p in pictures], tmp_path / "clip.gif", 0.5, colours)
    frames = read(tmp_path / "clip.gif")
    assert len(frames) == 3
    for picture, frame in zip(pictures, frames):
        for colour in colours:
            painted = (picture == colour).all(-1)
            assert painted.any()
            assert (frame[painted] == colour).all(), colour
        assert np.abs(frame.astype(int) - picture).mean() < 16, "the photograph is still one"


def test_more_drawing_colours_than_fit_keep_the_frequent_ones(tmp_path: Path) -> None:
    colours = [(i, 255 - i, 128) for i in range(200)]
    picture = photograph(0)
    for i, colour in enumerate(colours):
        picture[i % 160, : 1 + i] = colour
    save_clip([Image.fromarray(picture)], tmp_path / "clip.gif", 0.5, colours)
    (frame,) = read(tmp_path / "clip.gif")
    assert (frame[(picture == colours[-1]).all(-1)] == colours[-1]).all()


@pytest.mark.parametrize("name", ["clip.gif", "clip.mp4", "CLIP.GIF"])
def test_clips_of_pictures_of_two_sizes(tmp_path: Path, name: str) -> None:
    pictures = [Image.fromarray(photograph(0)), Image.fromarray(photograph(1, (200, 101)))]
    save_clip(pictures, tmp_path / name, 0.5)
    assert (tmp_path / name).stat().st_size > 1000
    assert [path.name for path in tmp_path.iterdir()] == [name]
    if name.lower().endswith("gif"):
        with Image.open(tmp_path / name) as clip:
            assert clip.n_frames == 2 and clip.size == (240, 160) and clip.info["duration"] == 500


def test_another_ending_is_refused_before_a_picture_is_asked_for(tmp_path: Path) -> None:
    def pictures():
        raise AssertionError("drawn")
        yield

    with pytest.raises(DataError, match=r"clip\.avi: name it \.gif or \.mp4"):
        save_clip(pictures(), tmp_path / "clip.avi", 0.5)
    with pytest.raises(DataError, match=r"name it \.gif or \.mp4"):
        check_clip_path("clip")
    with pytest.raises(DataError, match="no frames"):
        save_clip([], tmp_path / "clip.gif", 0.5)


@pytest.mark.parametrize("name", ["clip.gif", "clip.mp4"])
def test_a_full_disk_leaves_no_half_clip(tmp_path: Path, name: str) -> None:
    pictures = [Image.fromarray(photograph(i, (400, 300))) for i in range(4)]
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        with pytest.raises(OutputError, match=rf"{name}: cannot be written \(File too large"):
            save_clip(pictures, tmp_path / name, 0.5)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []
