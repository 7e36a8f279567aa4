"""Argoverse 2 submissions: what is written, and every rule of the checker."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from drivestack.bev.evaluation.argoverse2_rules import check_submission, oddities, sweeps_of
from drivestack.bev.evaluation.argoverse2_submission import read_detections, read_rows, write_submission
from drivestack.core.answers import Detections
from drivestack.core.argoverse2 import sweep_time_ns, sweep_token
from drivestack.core.errors import DataError, OutputError, SubmissionError
from drivestack.core.feather import FeatherTable, write_feather
from drivestack.core.frames import Frame
from drivestack.geometry import pose, rotation_z

pytest.importorskip("pyarrow", reason="Feather files need pyarrow (extra argoverse)")

COLUMNS = (
    "tx_m", "ty_m", "tz_m", "length_m", "width_m", "height_m", "qw", "qx", "qy", "qz", "score", "log_id",
    "timestamp_ns", "category",
)  # fmt: skip
CLASSES = ("BUS", "PEDESTRIAN")
T0 = 315_966_253_660_357_123  # not a whole microsecond


def frames() -> list[Frame]:
    own = pose(rotation_z(0.5), [1.0, 2, 0])  # a BEV frame that is not the EGO frame
    return [
        Frame(sweep_token(log, T0 + k), log, log, (T0 + k) // 1000, (), pose(np.eye(3), [9.0, 9, 9]), ego_from_bev=own)
        for log in ("log-a", "log-b")
        for k in range(2)
    ]


def answers(n: int = 3) -> dict[str, Detections]:
    boxes = np.array([[5.0 * k, 1, 0.5, 4, 2, 1.5, 0.1 * k, 1, 1] for k in range(n)], np.float32).reshape(n, 9)
    scores, labels = np.linspace(0.9, 0.5, n, dtype=np.float32), np.arange(n) % 2
    return {frame.token: Detections(frame.token, boxes, scores, labels) for frame in frames()}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "detections.feather"
    assert write_submission(path, answers(), frames(), CLASSES) == 12
    return path


@pytest.fixture
def edited(path: Path) -> Callable[..., Path]:
    """edited(qw=change): the file with columns changed, or left out for None."""

    def edit(**changes: Callable[[list], list] | None) -> Path:
        table = FeatherTable(path)._table
        columns = {name: table[name].to_pylist() for name in table.column_names if changes.get(name, 0) is not None}
        for name, change in changes.items():
            if change is not None:
                columns[name] = change(columns.get(name, []))
        new = path.with_name("edited.feather")
        write_feather(new, columns)
        return new

    return edit


def test_a_file_has_the_columns_of_the_format_in_the_ego_frame(path: Path) -> None:
    table = FeatherTable(path)._table
    assert tuple(table.column_names) == COLUMNS
    rows = table.to_pylist()
    assert {(row["log_id"], row["timestamp_ns"]) for row in rows} == {
        (log, T0 + k) for log in ("log-a", "log-b") for k in range(2)
    }
    first = next(row for row in rows if row["score"] == pytest.approx(0.7))
    centre = rotation_z(0.5) @ [5, 1, 0.5] + [1, 2, 0]
    assert [first["tx_m"], first["ty_m"], first["tz_m"]] == pytest.approx(centre, abs=1e-6)
    assert first["category"] == "PEDESTRIAN" and first["length_m"] == pytest.approx(4)
    assert [first[q] for q in ("qw", "qx", "qy", "qz")] == pytest.approx([np.cos(0.3), 0, 0, np.sin(0.3)])
    assert check_submission(path, sweeps_of(frames())) == [] and oddities(path) == []
    back = read_detections(path, frames(), CLASSES)
    for token, answer in answers().items():
        np.testing.assert_allclose(back[token].boxes[:, :7], answer.boxes[:, :7], atol=1e-5)
        np.testing.assert_array_equal(back[token].labels, answer.labels)


def test_only_boxes_that_count_are_written(tmp_path: Path) -> None:
    frame = frames()[0]
    boxes = np.zeros((240, 9))
    boxes[:, 3:6] = 1
    boxes[::10, 0] = 200.0  # too far
    labels = np.array([0] * 200 + [1] * 40)
    answer = Detections(frame.token, boxes, np.linspace(1, 0, 240), labels)
    path = tmp_path / "x.feather"
    assert write_submission(path, {frame.token: answer}, [frame], CLASSES) == 100 + 36
    rows = read_rows(path)
    assert rows.counts.min() == pytest.approx(0, abs=0.01) and np.linalg.norm(rows.boxes[:, :3], axis=1).max() < 150


def test_answers_that_cannot_be_submitted_are_refused(tmp_path: Path) -> None:
    path, own = tmp_path / "x.feather", answers()
    first = frames()[0].token

    def refused(says: str, changed: dict[str, Detections], of=None, classes=CLASSES, kind=SubmissionError) -> None:
        with pytest.raises(kind, match=says):
            write_submission(path, changed, of or frames(), classes)
        assert not path.exists()

    nan = own[first].boxes.copy()
    nan[1, 2] = np.nan
    refused(r"predicted box 1 is not finite", own | {first: replace(own[first], boxes=nan)})
    refused(r"predicted label 7, but there are 2", own | {first: replace(own[first], labels=np.array([0, 7, 1]))})
    refused(r"class 'car' is not one of the 26", own, classes=("car", "BUS"))
    refused(r"no prediction; run the model", {first: own[first]})
    refused(r"sample x: predicted, but not among", own | {"x": own[first]})
    strange = [replace(frame, token=f"t{i}") for i, frame in enumerate(frames())]
    refused("is no sweep of an Argoverse 2 log", {f"t{i}": own[first] for i in range(4)}, strange, kind=DataError)
    for token in ("log-a-", "log-a-x", "log-a-²", f"log-a-{10**19}", "log-a"):
        with pytest.raises(DataError, match="is no sweep"):
            sweep_time_ns(replace(frames()[0], token=token))
    with pytest.raises(OutputError):
        write_submission(tmp_path, own, frames(), CLASSES)


def test_every_rule_is_reported_with_its_place(path: Path, edited: Callable[..., Path], caplog) -> None:
    sweeps = sweeps_of(frames())

    def says(*wanted: str, every_sweep: bool = True, **changes) -> None:
        problems = [str(p) for p in check_submission(edited(**changes), sweeps, every_sweep=every_sweep)]
        assert len(problems) == len(wanted), problems
        for problem, text in zip(problems, wanted):
            assert text in problem and "\n" not in problem, problem

    first = lambda value: lambda column: [value, *column[1:]]
    says("score: is missing, or there twice; give all columns", score=None)
    says("log_id: holds int64, or gaps, not a text in each row", log_id=lambda c: [1] * len(c))
    says("timestamp_ns: holds double, or gaps, not a whole number", timestamp_ns=lambda c: [float(t) for t in c])
    says("tx_m: holds string, or gaps, not a number", tx_m=lambda c: ["a"] * len(c))
    says("box 0, ty_m: is NaN or infinite (and 1 more rows)", ty_m=lambda c: [np.nan, np.inf, *c[2:]])
    says(f"sample log-a {T0}, box 0, tx_m: is beyond any map", tx_m=first(1e12))
    says("box 0, width_m: is not above 0; give metres", width_m=first(0.0))
    says("qw qx qy qz: is no quaternion of length 1", qw=first(3.0))
    says("score: is NaN or infinite", score=first(np.nan))
    says("category: is 'car'; use one of ARTICULATED_BUS", category=first("car"))
    says("no box lies within 150 m of the car; give boxes in the EGO frame", tx_m=lambda c: [5000.0 + x for x in c])
    says("timestamp_ns: is no sweep of its log", timestamp_ns=first(T0 + 5))
    says("none of its 2 logs is one of the 2 of the split", log_id=lambda c: [f"{name}x" for name in c])
    says("log_id: does not belong to the split (and 5 more rows)", "log-b: this log has no box",
         log_id=lambda c: [name.replace("-b", "-c") for name in c])  # fmt: skip
    of_first = lambda c: [T0] * len(c)
    missing = "1 of 2 sweeps of this log have no box; predict on every sweep"
    says(f"log-a {T0 + 1}: {missing}", f"log-b {T0 + 1}: {missing}", timestamp_ns=of_first)
    says(timestamp_ns=of_first, every_sweep=False)
    assert check_submission(path) == []

    empty = path.with_name("empty.feather")
    write_submission(empty, answers(0), frames(), CLASSES)
    assert "4 of 4 sweeps have no box, such as log-a-" in caplog.text
    assert [str(p) for p in check_submission(empty, sweeps)] == [
        "the file has no rows; predict on every sweep of the split"
    ]
    (path.parent / "text.feather").write_text('{"results": {}}')
    assert "the file is no Feather file" in str(check_submission(path.parent / "text.feather")[0])
    with pytest.raises(DataError, match="no such file; check the path"):
        check_submission(path.parent / "none.feather")
    with pytest.raises(SubmissionError, match="holds a 'PEDESTRIAN', which is none of BUS"):
        read_detections(path, frames(), ["BUS"])


def test_oddities_are_what_breaks_no_rule(tmp_path: Path) -> None:
    n = 130
    table = {name: np.zeros(n) for name in COLUMNS[:10]} | {name: np.ones(n) for name in (*COLUMNS[3:7], "score")}
    table["tx_m"] = np.linspace(0, 151, n)
    columns = {name: table.get(name) for name in COLUMNS} | {"log_id": ["log-a"] * n, "category": ["BUS"] * n}
    path = tmp_path / "x.feather"
    write_feather(path, columns | {"timestamp_ns": np.full(n, T0)})
    assert check_submission(path, {"log-a": {T0}}) == []
    surplus, far, scores = oddities(path)
    assert surplus.startswith("30 boxes are beyond the 100 best") and far.startswith("1 of 130 boxes are 150 m or more")
    assert scores == "all scores are 1: boxes cannot be ranked"
    columns["score"] = np.linspace(-3, 1, n)
    write_feather(path, columns | {"timestamp_ns": np.full(n, T0)})
    assert check_submission(path) == [] and oddities(path)[2] == "97 of 130 scores are not from 0 to 1, such as -3"


def test_texts_may_be_stored_as_categories(tmp_path: Path, path: Path) -> None:
    import pyarrow as arrow

    table = FeatherTable(path)._table
    for name in ("log_id", "category"):  # as pandas writes its categoricals, and in several pieces
        table = table.set_column(table.column_names.index(name), name, table[name].dictionary_encode())
    table = arrow.concat_tables([table.slice(0, 5), table.slice(5)])
    with arrow.ipc.new_file(str(tmp_path / "coded.feather"), table.schema) as file:
        file.write_table(table, max_chunksize=4)
    assert check_submission(tmp_path / "coded.feather", sweeps_of(frames())) == []
    plain, coded = read_rows(path), read_rows(tmp_path / "coded.feather")
    assert [coded.category_names[i] for i in coded.category] == [plain.category_names[i] for i in plain.category]
