"""Masks as COCO's run lengths: round trips, the official package's text, damaged ones."""

from __future__ import annotations

import numpy as np
import pytest

from drivestack.core.errors import DataError
from drivestack.core.rle import decode_rle, encode_rle


def masks() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    noise = [rng.random((h, w)) < p for h, w, p in [(1, 1, 0.5), (7, 5, 0.5), (40, 60, 0.1), (64, 33, 0.9)]]
    disc = np.hypot(*np.mgrid[-100:100, -150:150]) < 80
    return [*noise, disc, np.zeros((5, 9), bool), np.ones((5, 9), bool)]


@pytest.mark.parametrize("mask", masks(), ids=lambda mask: str(mask.shape))
def test_round_trip(mask):
    rle = encode_rle(mask)
    assert rle["size"] == list(mask.shape)
    np.testing.assert_array_equal(decode_rle(rle, "x"), mask)
    np.testing.assert_array_equal(decode_rle({**rle, "counts": rle["counts"].encode()}, "x"), mask)


def test_the_text_is_cocos():
    # as pycocotools writes it
    checker = np.indices((6, 8)).sum(0) % 2 == 1
    assert encode_rle(np.pad(np.ones((3, 4), bool), ((1, 2), (2, 2))))["counts"] == "=3300000;"
    assert decode_rle({"size": [6, 8], "counts": encode_rle(checker)["counts"]}, "x").sum() == 24
    np.testing.assert_array_equal(decode_rle({"size": [2, 2], "counts": [1, 2, 1]}, "x"), [[0, 1], [1, 0]])


def test_every_mask_is_written_as_the_official_package_does():
    coco = pytest.importorskip("pycocotools.mask")
    for mask in masks():
        theirs = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
        assert encode_rle(mask)["counts"] == theirs["counts"].decode()


@pytest.mark.parametrize(
    ("rle", "words"),
    [
        ({"size": [2, 2], "counts": "5"}, "runs of a mask cover 5 pixels, its size 2 x 2 has 4"),
        ({"size": [2, 2], "counts": [4, -1, 1]}, "a string or a list of lengths"),
        ({"size": [2], "counts": "4"}, "must be .height, width"),
        ({"size": [2, 2], "counts": None}, "a string or a list of lengths"),
        ({"size": [2, 2], "counts": "T"}, "end early"),
        ({"size": [2, 2], "counts": "é"}, "compressed counts"),
        ({"size": [9**6, 9**6], "counts": "p" * 13}, "compressed counts"),
        ({"size": [10**6, 10**6], "counts": "4"}, "cover 4 pixels"),
    ],
)
def test_damaged_run_lengths_are_named(rle, words):
    with pytest.raises(DataError, match=rf"^a\.json, object 3: .*{words}"):
        decode_rle(rle, "a.json, object 3")
