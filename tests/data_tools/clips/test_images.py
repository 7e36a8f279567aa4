"""Each way an image file can be wrong has a message with sample, camera, path and fix."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from drivestack.core import jpeg
from drivestack.core.errors import DataError
from drivestack.core.frames import CameraView
from drivestack.core.jpeg import read_header, walk
from drivestack.core.once import forget_warnings
from drivestack.data_tools.clips.images import load_image
from drivestack.geometry import CameraModel


@pytest.fixture
def picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (36, 64, 3), dtype=np.uint8))


def view(path, size=(64, 36)) -> CameraView:
    return CameraView("CAM_LEFT", CameraModel(np.eye(3), *size), np.eye(4), np.eye(4), 0, str(path))


def check(path, problem: str, size=(64, 36)) -> None:
    with pytest.raises(DataError, match=problem) as caught:
        load_image(view(path, size), "token-7")
    text = str(caught.value)
    assert "token-7" in text and "CAM_LEFT" in text and str(path) in text and ";" in text and "\n" not in text


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_pixels_are_pillows_in_bgr(tmp_path, picture, suffix):
    path = tmp_path / f"a.{suffix}"
    picture.save(path)
    expected = np.asarray(Image.open(path))[..., ::-1]
    np.testing.assert_array_equal(load_image(view(path), ""), expected)


def test_grey_images_become_three_channels(tmp_path, picture):
    path = tmp_path / "a.png"
    picture.convert("L").save(path)
    assert load_image(view(path), "").shape == (36, 64, 3)


@pytest.mark.parametrize("suffix", ["jpg", "png"])
@pytest.mark.parametrize("share", [0.3, 0.7, 0.98])
def test_truncated(tmp_path, picture, suffix, share):
    path = tmp_path / f"a.{suffix}"
    picture.save(path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    check(path, r"image is (truncated|not a readable image) \(\d+ bytes\)")


def test_missing_empty_unreadable_foreign_and_wrong_size(tmp_path, picture):
    check(tmp_path / "none.jpg", "image is missing")
    empty = tmp_path / "empty.jpg"
    empty.touch()
    check(empty, "image is empty")
    check(tmp_path, "image cannot be read")  # a folder
    text = tmp_path / "text.jpg"
    text.write_text("<html>404</html>")
    check(text, "not a readable image")
    fake = tmp_path / "fake.jpg"
    fake.write_bytes(b"\xff\xd8" + b"garbage" * 9 + b"\xff\xd9")
    check(fake, "not a readable image")
    small = tmp_path / "small.jpg"
    picture.resize((32, 18)).save(small)
    check(small, "image is 32x18 pixels but its calibration is for 64x36")


def grey(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture.convert("L"))


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bit_and_float_grey_images_are_scaled_to_8_bits(tmp_path, picture, suffix, caplog):
    forget_warnings()
    path, expected = tmp_path / f"a.{suffix}", grey(picture)
    Image.fromarray(expected.astype(np.uint16) * 257).save(path)
    for _ in range(2):
        np.testing.assert_array_equal(load_image(view(path), "")[..., 0], expected)
    assert caplog.messages == ["images of 16 bits (grey) are read as 8 bits: values 0..65535 scaled by 1/257"]
    for scale in (1.0, 1 / 255):
        path = tmp_path / "float.tif"
        Image.fromarray(expected.astype(np.float32) * np.float32(scale)).save(path)
        np.testing.assert_array_equal(load_image(view(path), "")[..., 2], expected)


def test_raw_images_of_unknown_scale_are_refused(tmp_path, picture):
    path = tmp_path / "a.png"
    Image.fromarray(grey(picture).astype(np.uint16) * 16).save(path)  # 12 bits
    check(path, r"16 bits \(mode I;16\) has no value above 3\d\d\d: raw data of 12 bits\?")
    path = tmp_path / "a.tif"
    Image.fromarray(grey(picture).astype(np.int32) * 1000).save(path)
    check(path, r"mode I has values \d+\.\.2\d+, not those of 16 bits")
    for values in (grey(picture).astype(np.float32) * 9, np.full((36, 64), np.nan, np.float32)):
        Image.fromarray(values).save(path)
        check(path, r"floats \(mode F\)")


def test_other_modes_keep_their_colours(tmp_path, picture):
    smooth = Image.fromarray(np.tile(np.linspace(20, 220, 64, dtype=np.uint8)[None, :, None], (36, 1, 3)))
    expected = np.asarray(smooth)
    for mode, name in (("RGBA", "a.png"), ("P", "p.png"), ("CMYK", "c.tif"), ("L", "l.png"), ("RGB", "w.webp")):
        path = tmp_path / name
        smooth.convert(mode, palette=Image.Palette.ADAPTIVE).save(
            path, **({"lossless": True} if name.endswith("webp") else {})
        )
        assert np.abs(load_image(view(path), "").astype(int) - expected).max() <= 3
    turned = tmp_path / "exif.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6  # a viewer would turn it
    smooth.save(turned, exif=exif, quality=95)
    assert load_image(view(turned), "").shape == (36, 64, 3)


def test_a_size_is_refused_before_memory_is_taken(tmp_path, picture, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)  # as a library of the field does

    def no_pixels(*_):
        raise AssertionError("pixels were decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", no_pixels)
    monkeypatch.setattr("cv2.imdecode", no_pixels)
    png = tmp_path / "bomb.jpg"
    header = b"IHDR" + struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    png.write_bytes(
        b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
        + struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))
    )  # fmt: skip
    check(png, "image is 100000x100000 pixels but its calibration is for 64x36")
    check(png, "image states 100000x100000 pixels, more than 80 million", size=(100_000, 100_000))
    jpeg = tmp_path / "big.jpg"
    picture.save(jpeg)
    data = bytearray(jpeg.read_bytes())
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = struct.pack(">HH", 65_500, 65_500)
    jpeg.write_bytes(data)
    check(jpeg, "image is 65500x65500 pixels but its calibration is for 64x36")
    check(jpeg, "image states 65500x65500 pixels, more than 80 million", size=(65_500, 65_500))


def test_what_decoders_raise_is_one_line(tmp_path, picture, monkeypatch):
    path = tmp_path / "a.png"
    picture.save(path)
    for error in (
        SyntaxError("broken PNG\nfile"),
        struct.error("unpack"),
        MemoryError(),
        IndexError("x"),
        zlib.error("z"),
    ):
        monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda *_, error=error: (_ for _ in ()).throw(error))
        check(path, "not a readable image")


def test_a_device_is_no_image():
    check("/dev/zero", "image cannot be read .*no regular file")


@pytest.mark.parametrize(
    "settings", [{}, {"subsampling": 0}, {"optimize": True}, {"restart_marker_blocks": 3}, {"quality": 30}]
)
def test_damaged_jpeg_bodies_are_named_and_sound_ones_are_not(tmp_path, settings):
    size = (320, 200)
    y, x = np.mgrid[: size[1], : size[0]]
    noise = np.random.default_rng(1).normal(0, 12, (size[1], size[0], 3))
    waves = np.stack([np.sin(x / 9) + np.sin(y / 7), np.cos(x / 13), np.sin((x + y) / 5)], -1) * 50 + 120
    picture = Image.fromarray(np.clip(waves + noise, 0, 255).astype(np.uint8))
    for made in (picture, picture.convert("L")):
        path = tmp_path / "a.jpg"
        made.save(path, **{"quality": 92} | settings)
        sound = path.read_bytes()
        load_image(view(path, size), "")
        header = read_header(sound)
        start, end = header.scan_start, sound.rfind(b"\xff\xd9")
        assert walk(sound[start:end], header) == ""
        third = (end - start) // 3
        chunk = sound[start + third : start + 2 * third]
        damaged = {
            "zeroed": sound[: start + third] + bytes(300) + sound[start + third + 300 :],
            "repeated": sound[: start + 2 * third] + chunk + sound[start + 2 * third :],
            "cut": sound[: start + third] + sound[start + 2 * third :],
            "short": sound[: start + third] + sound[end:],
        }
        for how, data in damaged.items():
            if how == "zeroed" and settings.get("optimize"):
                continue  # zeros may be the shortest codes: a flat area
            path.write_bytes(data)
            check(path, r"image is damaged: .* \(\d+ bytes\)", size)


def test_flat_and_progressive_images_and_padding_after_the_data_are_sound(tmp_path):
    size, path = (320, 200), tmp_path / "a.jpg"
    tiles = np.tile(np.kron(np.array([[0, 255], [255, 0]], np.uint8), np.ones((8, 8), np.uint8)), (13, 20))[:200]
    for pixels in (np.zeros((200, 320), np.uint8), np.full((200, 320), 128, np.uint8), tiles):
        for settings in ({}, {"optimize": True}, {"progressive": True}):
            Image.fromarray(pixels).convert("RGB").save(path, **settings)
            load_image(view(path, size), "")
    data = path.read_bytes()
    Image.fromarray(tiles).save(path)
    data = path.read_bytes()
    comment = b"\xff\xfe\x00\x07hello"
    for padded in (
        data[:-2] + bytes(40) + data[-2:],
        data[:-2] + b"\xff" * 9 + data[-2:],
        data + bytes(30),
        data * 2,
        data[:-2] + comment + data[-2:],
    ):
        path.write_bytes(padded)  # as some cameras do; the last: two images in one file
        load_image(view(path, size), "")
    path.write_bytes(data[: len(data) // 2] + comment + data[-2:])
    check(path, "image is damaged: it ends before the image does", size)


def test_grey_bars_of_a_rig_are_examined_once(tmp_path, monkeypatch):
    size, path, walks = (320, 200), tmp_path / "a.jpg", []
    monkeypatch.setattr(jpeg, "walk", lambda *args: walks.append(1) or walk(*args))
    monkeypatch.setattr(jpeg, "_padding", set())
    for seed in range(3):
        pixels = np.random.default_rng(seed).integers(0, 256, (200, 320, 3), np.uint8)
        pixels[160:] = 128
        Image.fromarray(pixels).save(path)
        load_image(view(path, size), "")
    assert len(walks) == 1
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2] + data[-2:])
    check(path, "image is damaged", size)
