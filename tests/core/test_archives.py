"""Arrays and archives are looked at before memory is taken; what is wrong is one line that names file and member."""

from __future__ import annotations

import io
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest

from drivestack.core.archives import ArrayFile, is_plain_name, open_zip, read_member
from drivestack.core.errors import DataError, SubmissionError


def npz(**arrays: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)
    return stream.getvalue()


def npy(header: str, content: bytes = b"", version: int = 1) -> bytes:
    text = header.encode("latin1")
    return np.lib.format.MAGIC_PREFIX + bytes([version, 0]) + len(text).to_bytes(2 * version, "little") + text + content


def zipped(members: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return stream.getvalue()


HEADER = "{'descr': '|u1', 'fortran_order': False, 'shape': %s, }\n"


@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_are_what_numpy_reads(order: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = {"a": np.array(rng.normal(size=(3, 4, 5)), order=order), "none": np.zeros((0, 3), np.int64)}
    path = tmp_path / "x.npz"
    path.write_bytes(npz(**arrays))
    with ArrayFile(path, "x") as stored, np.load(path) as expected:
        assert sorted(stored.names) == sorted(expected.files)
        for name in arrays:
            assert stored.headers[name].shape == expected[name].shape
            found = stored.read(name)
            np.testing.assert_array_equal(found, expected[name])
            assert found.dtype == expected[name].dtype and found.flags.writeable
    np.save(tmp_path / "y.npy", arrays["a"])
    with ArrayFile(tmp_path / "y.npy", "y") as single:
        np.testing.assert_array_equal(single.read("arr_0"), arrays["a"])


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"x: not a readable \.npz file \(.*No such file"):
        ArrayFile(tmp_path / "none.npz", "x")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a readable .npz file"),
        (b"hello", "not a readable .npz file"),
        (npz(a=np.ones(100))[:90], "not a readable .npz file"),
        (npy("(" * 40), "not a readable .npz file"),
        (npy("[" * 9000), "not a readable .npz file"),
        (npy(HEADER % "(1000000000000000,)"), r"array arr_0 is uint8 \[1000000000000000\], 1000000000 MB"),
        (npy(HEADER % "(-3, 4)"), r"array arr_0 has the impossible shape uint8 \[-3, 4\]"),
        (npy(HEADER % "(2.5,)"), "not a readable .npz file"),
        (npy(HEADER % "(7,)", b"\0" * 6), r"array arr_0, uint8 \[7\], ends too early"),
        (npy(HEADER % "(7,)", b"\0" * 8), r"array arr_0, uint8 \[7\], is longer than its header says"),
        (npy("{'descr': '|V0', 'fortran_order': False, 'shape': (9,), }\n"), "impossible shape"),
        (npz(a=np.array([{}], object)), "array a holds Python objects"),
        (np.lib.format.MAGIC_PREFIX + b"\2\0\xff\xff\xff\x7f", "a header of 2147483647 bytes"),
        (np.lib.format.MAGIC_PREFIX + b"\7\0", "version"),
        (zipped({"a.npy": b""}), "not a readable .npz file"),
        (zipped({"a.npy": npy(HEADER % "(1,)", b"1")}, zipfile.ZIP_BZIP2), r"'a\.npy': is packed with method 12"),
        (zipped({f"{i}.npy": npy(HEADER % "(200000000,)") for i in range(3)}), "its arrays need more than 537 MB"),
        (zipped({f"{i}": b"" for i in range(1001)}), "1001 members"),
    ],
)
def test_what_is_wrong_is_named_and_takes_no_memory(content: bytes, message: str) -> None:
    tracemalloc.start()
    try:
        with (
            pytest.raises(SubmissionError, match=f"^some place: .*{message}.*; write it again$"),
            ArrayFile(content, "some place", SubmissionError, "write it again") as stored,
        ):
            stored.read(stored.names[0])
        assert tracemalloc.get_traced_memory()[1] < 20e6
    finally:
        tracemalloc.stop()


def test_two_members_of_one_name_are_named() -> None:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive, pytest.warns(UserWarning, match="Duplicate"):
        for _ in range(2):
            archive.writestr("a.npy", npy(HEADER % "(1,)", b"1"))
    with pytest.raises(DataError, match=r"x: holds 'a\.npy' twice; fetch or make the file again"):
        ArrayFile(stream.getvalue(), "x")


def test_damaged_bytes_are_found_by_their_checksum() -> None:
    content = bytearray(zipped({"a.npy": npy(HEADER % "(64,)", bytes(range(64)))}, zipfile.ZIP_STORED))
    content[content.index(bytes(range(20, 40)))] ^= 1
    with pytest.raises(DataError, match=r"x: .*Bad CRC"), ArrayFile(bytes(content), "x") as stored:
        stored.read("a")


def test_members_of_an_archive(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    path.write_bytes(zipped({"small": b"1" * 100, "bomb": b"\0" * 3_000_000}))
    with open_zip(path) as archive:
        assert read_member(archive, "small", "here") == b"1" * 100
        with pytest.raises(DataError, match="here: unpacks to 3 MB, more than 1; make the archive again"):
            read_member(archive, "bomb", "here", max_bytes=1_000_000)
        with pytest.raises(DataError, match="there: not readable in the archive"):
            read_member(archive, "absent", "there")
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(SubmissionError, match=r"a\.zip: not a readable zip file"):
        open_zip(path, SubmissionError)


def test_an_encrypted_member_is_named(tmp_path: Path) -> None:
    content = bytearray(zipped({"a": b"123"}, zipfile.ZIP_STORED))
    for mark, at in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        content[content.index(mark) + at] |= 1
    (tmp_path / "a.zip").write_bytes(content)
    with (
        open_zip(tmp_path / "a.zip") as archive,
        pytest.raises(DataError, match="here: is encrypted, remove"),
    ):
        read_member(archive, "a", "here")


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("a.npz", True), ("occupancy/a.npz", True), ("n:1.npz", True), ("/etc/x.npz", False), ("../x.npz", False),
        ("a/../../x.npz", False), ("..\\x.npz", False), ("C:\\x.npz", False), ("c:/x.npz", False), ("a..b/x.npz", True),
    ],
)  # fmt: skip
def test_names_that_leave_the_folder(name: str, plain: bool) -> None:
    assert is_plain_name(name) is plain
