"""Our reader of torch.save's files gives what torch.load gives, runs nothing, and believes no size that cannot be."""

from __future__ import annotations

import pickle
import resource
import subprocess
import sys
import warnings
import zipfile
from collections import Counter, OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from drivestack.core.errors import CheckpointError, DataError, DrivestackError
from drivestack.core.pickles import load_pickle
from drivestack.core.weights.files import read_pth
from drivestack.core.weights.torch_files import read_torch_file

BASE = torch.arange(24.0).reshape(4, 6)
CONTENT: dict[str, Any] = {
    "base": BASE,
    "view": BASE[1:3, ::2],
    "transposed": BASE.t(),
    "expanded": torch.ones(1, 3).expand(4, 3),
    "parameter": nn.Parameter(torch.ones(2)),
    "module": nn.BatchNorm2d(3).state_dict(),
    "empty": torch.empty(3, 0, 2),
    "scalar": torch.tensor(3.5),
    **{str(t): torch.ones(3, dtype=t) for t in (torch.half, torch.bfloat16, torch.int64, torch.bool, torch.complex64)},
    "array": np.arange(6).reshape(2, 3),
    "texts": np.array(["a", "bc"]),
    "numbers": [np.float64(3.5), np.int64(3), 2**70, -5, 1e300, None, True],
    "containers": ({1, 2}, OrderedDict(a=1), Counter([1, 2, 2]), torch.Size([1, 2]), (1, (2,))),
    "bytes": (b"abc", bytearray(b"xyz")),
    "types": (torch.float16, 3j),
}


def same(ours: Any, theirs: Any) -> None:
    if isinstance(theirs, Tensor):
        assert ours.dtype == theirs.dtype and ours.stride() == theirs.stride() and torch.equal(ours, theirs)
    elif isinstance(theirs, np.ndarray):
        assert ours.dtype == theirs.dtype and (ours == theirs).all()
    elif isinstance(theirs, dict):
        assert ours.keys() == theirs.keys()
        for key in theirs:
            same(ours[key], theirs[key])
    elif isinstance(theirs, list | tuple):
        assert len(ours) == len(theirs)
        for mine, other in zip(ours, theirs):
            same(mine, other)
    else:
        assert ours == theirs and type(ours) is type(theirs)


@pytest.mark.parametrize("archive", [True, False])
@pytest.mark.parametrize("protocol", [2, 4])
def test_what_torch_saves(tmp_path, archive: bool, protocol: int) -> None:
    path = tmp_path / "w.pth"
    torch.save(CONTENT, path, _use_new_zipfile_serialization=archive, pickle_protocol=protocol)
    found = read_torch_file(path)
    same(found, CONTENT)
    found["base"][1, 0] = 100  # one storage for all views
    assert found["view"][0, 0] == 100 and found["transposed"][0, 1] == 100
    torch.save(found, path)  # what was read can be saved and read again, by torch too
    same(read_torch_file(path), found)
    torch.load(path, weights_only=False)


def test_archives_without_checksums(tmp_path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(CONTENT, tmp_path / "w.pth")
    finally:
        torch.serialization.set_crc32_options(True)
    same(read_torch_file(tmp_path / "w.pth"), CONTENT)


def packed(path: Path, data: bytes, storage: bytes = b"") -> Path:
    """An archive of torch.save with this pickle."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/byteorder", b"little")
        archive.writestr("archive/version", b"3\n")
        archive.writestr("archive/data/0", storage)
    return path


def number(value: int) -> bytes:
    return pickle.dumps(value, 2)[2:-1]


def calling(module: str, name: str, *arguments: bytes) -> bytes:
    return b"c%s\n%s\n(%stR" % (module.encode(), name.encode(), b"".join(arguments))


def tensor(offset: int, size: int, stride: int, numel: int) -> bytes:
    storage = b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpu" + number(numel) + b"tQ"
    shape = [b"(" + number(n) + b"t" for n in (size, stride)]
    return calling("torch._utils", "_rebuild_tensor_v2", storage, number(offset), *shape, b"\x89", b"N")


LARGE = 12 * 10**9
GREEDY = {
    "bytearray": calling("builtins", "bytearray", number(LARGE)),
    "bytes": calling("__builtin__", "bytes", number(LARGE)),
    "list of bytes": calling("builtins", "list", calling("builtins", "bytearray", number(LARGE))),
    "tensor": calling("torch", "Tensor", number(LARGE)),
    "storage": calling("torch.storage", "UntypedStorage", number(LARGE)),
    "array": calling("numpy", "ndarray", b"(" + number(LARGE) + b"t"),
    "empty array": calling(
        "numpy.core.multiarray", "_reconstruct", b"cnumpy\nndarray\n", b"(" + number(LARGE) + b"t", b"U\x01b"
    ),
    "memo": b"Nr\xff\xff\xff\x7f",
    "memo as text": b"Np2000000000\n",
    "bytearray opcode": b"\x96" + LARGE.to_bytes(8, "little"),
    "text opcode": b"\x8d" + LARGE.to_bytes(8, "little"),
    "frame": b"\x95" + LARGE.to_bytes(8, "little"),
    "copies": calling("builtins", "list", b"(" + b"N" * 20000 + b"t") + b"q\x000" + b"(" + b"".join(
        calling("builtins", "list", b"h\x00") for _ in range(50000)
    ) + b"t",
    "tuples in tuples": b"N" + b"\x85" * 200000,
}  # fmt: skip


@pytest.mark.parametrize("name", GREEDY)
def test_a_few_bytes_do_not_take_all_memory(tmp_path, name: str) -> None:
    data = b"\x80\x02" + GREEDY[name] + b"."
    (tmp_path / "plain.pkl").write_bytes(data)
    packed(tmp_path / "w.pth", data)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for attempt in (lambda: load_pickle(tmp_path / "plain.pkl"), lambda: read_pth(tmp_path / "w.pth")):
        with pytest.raises(DrivestackError) as refused:
            attempt()
        assert "\n" not in str(refused.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # KB


@pytest.mark.parametrize(
    "data",
    [
        tensor(0, 10**9, 1, 2),
        tensor(0, 3, 1, 2),
        tensor(2, 1, 1, 2),
        tensor(10**9, 1, 1, 2),
        tensor(0, 2, 10**9, 2),
        tensor(0, 10**12, 0, 2),
        tensor(0, -1, 1, 2),
        tensor(0, 2, 1, 10**9),
        tensor(0, 2, 1, -2),
    ],
)
def test_tensors_lie_inside_their_storage(tmp_path, data: bytes) -> None:
    whole = torch.tensor([1.0, 2.0])
    path = packed(tmp_path / "w.pth", b"\x80\x02" + tensor(0, 2, 1, 2) + b".", whole.numpy().tobytes())
    assert torch.equal(read_pth(path), whole)
    with pytest.raises(CheckpointError, match=r"w\.pth: broken or not a checkpoint"):
        read_pth(packed(path, b"\x80\x02" + data + b".", whole.numpy().tobytes()))


PAYLOADS = {
    "os.system": calling("os", "system", b"X\x0c\0\0\0touch sprung"),
    "posix.system": calling("posix", "system", b"X\x0c\0\0\0touch sprung"),
    "eval": calling("builtins", "eval", b"X\x15\0\0\0open('sprung','w+b+')"),
    "exec": calling("builtins", "exec", b"X\x12\0\0\0open('sprung','w')"),
    "numpy": calling("numpy.testing._private.utils", "runstring", b"X\x12\0\0\0open('sprung','w')", b"}"),
    "getattr": calling("builtins", "getattr", b"cbuiltins\nlist\n", b"X\x06\0\0\0append"),
    "subprocess": calling("subprocess", "Popen", b"X\x05\0\0\0touch"),
    "import": calling("builtins", "__import__", b"X\x02\0\0\0os"),
    "codecs": calling("_codecs", "encode", b"X\x01\0\0\0a", b"X\x04\0\0\0idna"),
    "torch hub": calling("torch.hub", "load", b"X\x01\0\0\0a"),
    "protocol 4": b"\x8c\x02os\x8c\x06system\x93(\x8c\x0ctouch sprungtR",
    "instance": b"(X\x0c\0\0\0touch sprungios\nsystem\n",
    "state of a function": b"ccollections\nOrderedDict\n}X\x01\0\0\0aNsb",
    "attributes of a function": b"ccollections\nOrderedDict\n(N}X\x05\0\0\0_callNstb",
    "attributes of a class": b"cmmengine.logging.history_buffer\nHistoryBuffer\n(N}X\x07\0\0\0__new__Nstb",
}


@pytest.mark.parametrize("name", PAYLOADS)
def test_nothing_in_a_pickle_runs(tmp_path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    data = b"\x80\x04" + PAYLOADS[name] + b"."
    (tmp_path / "plain.pkl").write_bytes(data)
    packed(tmp_path / "w.pth", data)
    legacy = b"".join(pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})) + data
    (tmp_path / "legacy.pth").write_bytes(legacy)
    for read, file in ((load_pickle, "plain.pkl"), (read_pth, "w.pth"), (read_pth, "legacy.pth")):
        with pytest.raises(DrivestackError, match=file):
            read(tmp_path / file)
    assert not (tmp_path / "sprung").exists()


def test_attributes_in_a_file_do_not_hide_methods(tmp_path) -> None:
    state = OrderedDict(a=torch.ones(1))
    state.get = "hidden"  # type: ignore[method-assign]
    torch.save({"state_dict": state}, tmp_path / "w.pth")
    found = read_torch_file(tmp_path / "w.pth")["state_dict"]
    assert found.get("a") is found["a"]


def test_dtypes_do_not_read_outside_of_their_arrays(tmp_path) -> None:
    fields = b"}X\x01\0\0\0acnumpy\ndtype\n(X\x02\0\0\0f8tR" + number(100) + b"\x86s"
    state = b"(K\x03X\x01\0\0\0<N(X\x01\0\0\0at" + fields + number(8) + number(1) + number(0) + b"tb"
    data = b"\x80\x02cnumpy\ndtype\n(X\x02\0\0\0f8tR" + state + b"."
    (tmp_path / "a.pkl").write_bytes(data)
    with pytest.raises(DrivestackError, match=r"a\.pkl: broken pickle: it has a dtype with fields"):
        load_pickle(tmp_path / "a.pkl")


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_pickles_of_every_protocol(tmp_path, protocol: int) -> None:
    content = {
        "infos": [{"m": np.eye(3), "n": np.array(["car", "bus"]), "o": np.array(["a", None], object)}],
        "t": (1, [2.5, {"x": {1, 2}, "f": frozenset([3])}], b"bytes", bytearray(b"array"), 1j, -(2**80)),
        "when": np.array(["2020-01-01"], "datetime64[ns]"),
        "numbers": [np.float32(1), np.int64(2), np.bool_(True)],
        "many": [str(i) for i in range(400)],
    }
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(content, protocol))
    found = load_pickle(tmp_path / "a.pkl")
    assert found["t"] == content["t"] and found["numbers"] == content["numbers"] and found["many"] == content["many"]
    for key in ("m", "n", "o"):
        assert (found["infos"][0][key] == content["infos"][0][key]).all()
    assert found["when"] == content["when"]


def test_arrays_of_objects_have_as_many_as_their_shape_says(tmp_path) -> None:
    class Lies:
        def __reduce__(self) -> Any:
            made, arguments, state = np.array([None, "a"], object).__reduce__()
            return made, arguments, (state[0], (100_000,), *state[2:])

    for protocol in (2, 4):
        (tmp_path / "a.pkl").write_bytes(pickle.dumps(Lies(), protocol))
        with pytest.raises(DrivestackError, match="another number of them than its shape says"):
            load_pickle(tmp_path / "a.pkl")


def test_arrays_of_pickles_are_pickled_as_plain_ones(tmp_path) -> None:
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(np.eye(3), 4))
    found = load_pickle(tmp_path / "a.pkl")
    again = pickle.loads(pickle.dumps({"a": found, "row": found[0]}))
    assert type(again["a"]) is np.ndarray and (again["a"] == np.eye(3)).all()
    assert torch.equal(torch.from_numpy(found), torch.eye(3, dtype=torch.float64))


def test_python_is_not_killed_by_a_deep_tuple(tmp_path) -> None:
    """Hashing a tuple inside a hundred thousand others would overflow the stack of C."""
    (tmp_path / "a.pkl").write_bytes(b"\x80\x02}N" + b"\x85" * 300_000 + b"Ns.")
    code = f"from drivestack.core.pickles import load_pickle\nload_pickle({str(tmp_path / 'a.pkl')!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1 and "tuples inside tuples" in done.stderr


def test_quantised_tensors_are_named(tmp_path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated
        torch.save({"a": torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)}, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match="quantised weights"):
        read_pth(tmp_path / "w.pth")


@pytest.mark.parametrize(
    "content",
    [
        [(i,) for i in range(500)],
        {f"k{i}": (f"v{i}",) for i in range(500)},
        [(None, i) for i in range(500)],
        [((i,), ()) for i in range(500)],
        [b"\x85" * 1000, "\x85" * 1000],
    ],
    ids=["ones", "texts", "pairs", "pairs of ones", "bytes that look like tuples"],
)
@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_many_small_tuples_are_no_chain(content: Any, protocol: int, tmp_path: Path) -> None:
    path = tmp_path / "small.pkl"
    path.write_bytes(pickle.dumps(content, protocol))
    assert load_pickle(path) == content


@pytest.mark.parametrize("step", [b"N\x86", b"\x85", b"\x85\x94", b"K\x01N\x87"])
def test_tuples_inside_tuples_without_end_are_refused(step: bytes, tmp_path: Path) -> None:
    path = tmp_path / "chain.pkl"
    path.write_bytes(b"\x80\x02})" + step * 1_000_000 + b"Ns.")
    with pytest.raises(DataError, match="tuples inside tuples without end"):
        load_pickle(path)


def test_repeated_copies_are_refused_before_they_fill_the_memory(tmp_path: Path) -> None:
    text = b"X" + (100_000).to_bytes(4, "little") + b"a" * 100_000 + b"q\x00"
    encode = b"c_codecs\nencode\nq\x01" + text + b"0"
    again = b"h\x01h\x00X\x06\x00\x00\x00latin1\x86R"
    path = tmp_path / "copies.pkl"
    path.write_bytes(b"\x80\x02" + encode + b"0](" + again * 500 + b"e.")
    with pytest.raises(DataError, match="copies far more than the file holds"):
        load_pickle(path)


def test_expanded_tensors_and_empty_bytes_are_read(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    torch.save({"state_dict": {"scale": torch.ones(1).expand(8)}, "note": b"", "none": np.zeros(0)}, path)
    assert read_pth(path)["state_dict"]["scale"].tolist() == [1.0] * 8
