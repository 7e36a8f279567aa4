"""Pictures one after the other as an animated GIF or an MP4."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..core.errors import DataError
from ..core.files import atomic_path
from .colours import BACKGROUND, PANEL, Colour

_MAX_DRAWN = 64  # colours of the drawing that a frame of a GIF keeps to the bit
_SHADES = (0.67, 0.33)  # of a drawing colour on the panels: the soft edges of its lines


def check_clip_path(path: str | os.PathLike[str]) -> Path:
    """The path of a clip. Raises DataError for an ending other than ``.gif`` and ``.mp4``; call it before drawing."""
    path = Path(path)
    if path.suffix.lower() not in (".gif", ".mp4"):
        raise DataError(f"cannot write a clip to {path}: name it .gif or .mp4")
    return path


def save_clip(
    pictures: Iterable[Image.Image],
    path: str | os.PathLike[str],
    seconds_per_frame: float,
    colours: Sequence[Colour] = (),
) -> None:
    """Pictures as an animated ``.gif`` or an ``.mp4``, atomically; those smaller than others get a margin.

    colours: of the drawing. A GIF has 256 colours a frame: these are among them to the bit, photographs get the rest.
    Raises DataError for another ending, before the first picture is drawn, or for no pictures.
    """
    path = check_clip_path(path)
    pictures = list(pictures)
    if not pictures:
        raise DataError(f"no frames to draw for {path}; check scene and split")
    size = max(picture.size[0] for picture in pictures), max(picture.size[1] for picture in pictures)
    for i, picture in enumerate(pictures):
        if picture.size != size:
            pictures[i] = Image.new("RGB", size, BACKGROUND)
            pictures[i].paste(picture)
    with atomic_path(path) as temporary:
        if path.suffix.lower() == ".mp4":
            _write_mp4(pictures, temporary, 1 / seconds_per_frame)
        else:
            first, *others = (quantised(picture, colours) for picture in pictures)
            milliseconds = round(1000 * seconds_per_frame)
            first.save(
                temporary, "GIF", save_all=True, append_images=others, duration=milliseconds, loop=0, optimize=False
            )


def quantised(picture: Image.Image, colours: Sequence[Colour]) -> Image.Image:
    """The picture in 256 colours. Pixels that have one of ``colours`` (of the 64 most frequent ones) keep it exactly;
    the others get the nearest of those, of their shades, and of a palette of the picture itself."""
    pixels = np.asarray(picture.convert("RGB"))
    codes = _codes(pixels)
    drawn = np.array(list(dict.fromkeys(colours)), np.uint8).reshape(-1, 3)
    counts = np.array([np.count_nonzero(codes == code) for code in _codes(drawn)], np.int64)
    drawn = drawn[np.argsort(-counts, kind="stable")][: min(np.count_nonzero(counts), _MAX_DRAWN)]
    shades = [share * drawn + (1 - share) * np.array(PANEL) for share in _SHADES]
    reserved = np.concatenate([drawn, *(np.round(shade).astype(np.uint8) for shade in shades)])
    photo = picture.convert("RGB").quantize(256 - len(reserved), dither=Image.Dither.NONE).getpalette()
    rest = np.array(photo, np.uint8).reshape(-1, 3)[: 256 - len(reserved)]
    palette = Image.new("P", (1, 1))
    palette.putpalette(np.concatenate([reserved, rest]).tobytes())
    indices = np.asarray(picture.convert("RGB").quantize(palette=palette, dither=Image.Dither.NONE)).copy()
    for i, code in enumerate(_codes(drawn)):  # Pillow's search for the nearest is approximate
        indices[codes == code] = i
    out = Image.fromarray(indices)
    out.putpalette(palette.getpalette() or ())
    return out


def _codes(colours: NDArray[np.uint8]) -> NDArray[np.int32]:
    """Colours [..., 3] as numbers."""
    return colours.astype(np.int32) @ np.array([65536, 256, 1], np.int32)


def _write_mp4(pictures: list[Image.Image], path: Path, frames_per_second: float) -> None:
    import cv2  # carries its own ffmpeg

    width, height = (side // 2 * 2 for side in pictures[0].size)  # the codec wants even sides
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), frames_per_second, (width, height))
    if not writer.isOpened():
        raise DataError("this OpenCV cannot write mp4; name the clip .gif")
    for picture in pictures:
        writer.write(np.ascontiguousarray(np.asarray(picture)[:height, :width, ::-1]))
    writer.release()
    written = cv2.VideoCapture(str(path))  # the writer reports no error, not even of a full disk
    count = int(written.get(cv2.CAP_PROP_FRAME_COUNT)) if written.isOpened() else 0
    written.release()
    if count != len(pictures):
        raise OSError(f"{count} of {len(pictures)} pictures of the mp4 could be written; name the clip .gif")
