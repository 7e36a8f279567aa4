"""Submission files: what is written comes back, old servers can read it, and each broken rule is named."""

import copy
import pickle
import pickletools

import numpy as np
import pytest

from drivestack.core.answers import LaneGraph
from drivestack.core.errors import SubmissionError
from drivestack.lane_topology.evaluation.countries import is_country
from drivestack.lane_topology.evaluation.rules import check_content, check_submission, oddities
from drivestack.lane_topology.evaluation.submission import Team, read_predictions, write_pickle, write_submission

TEAM = Team("lanes", ("Ada", "Blaise"), "a@b.cc", "none", "AT")
KEY = ("val", "00001", "315970")


def graph(lanes: int = 3, elements: int = 2, seed: int = 0) -> LaneGraph:
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, 500, (elements, 2))
    return LaneGraph(
        "val/00001/315970",
        rng.uniform(-50, 50, (lanes, 11, 3)).astype(np.float32),
        rng.random(lanes).astype(np.float32),
        np.hstack([corner, corner + 20]).astype(np.float32),
        rng.integers(0, 13, elements),
        rng.random(elements).astype(np.float32),
        rng.random((lanes, lanes)).astype(np.float32),
        rng.random((lanes, elements)).astype(np.float32),
    )


def test_elements_without_area_are_left_out_with_their_edges(tmp_path):
    whole = graph()
    whole.elements_xyxy_px[0, 2] = whole.elements_xyxy_px[0, 0]
    write_submission(tmp_path / "s.pkl", {KEY: whole}, TEAM)
    assert check_submission(tmp_path / "s.pkl", [KEY]) == []
    found = read_predictions(tmp_path / "s.pkl")[KEY]
    np.testing.assert_array_equal(found.elements_xyxy_px, whole.elements_xyxy_px[1:])
    np.testing.assert_array_equal(found.lane_element, whole.lane_element[:, 1:])


@pytest.fixture
def content(tmp_path) -> dict:
    write_submission(tmp_path / "s.pkl", {KEY: graph()}, TEAM)
    return pickle.loads((tmp_path / "s.pkl").read_bytes())


@pytest.mark.parametrize("sizes", [(3, 2), (0, 0), (0, 4), (4, 0)])
def test_what_is_written_comes_back(tmp_path, sizes):
    path, written = tmp_path / "s.pkl", graph(*sizes)
    write_submission(path, {KEY: written}, TEAM)
    assert check_submission(path, [KEY]) == []
    read = read_predictions(path)[KEY]
    for name in ("lane_scores", "elements_xyxy_px", "attributes", "element_scores", "lane_lane", "lane_element"):
        np.testing.assert_array_equal(getattr(read, name), getattr(written, name))
    np.testing.assert_array_equal(read.centrelines, written.centrelines)
    assert read.token == written.token


def test_half_precision_halves_the_file_and_stays_close(tmp_path):
    many = {(*KEY[:2], str(i)): graph(100, 20, i) for i in range(3)}
    for half in (False, True):
        write_submission(tmp_path / f"{half}.pkl", many, TEAM, half=half)
    small, large = ((tmp_path / f"{half}.pkl").stat().st_size for half in (True, False))
    assert small < 0.7 * large
    read = read_predictions(tmp_path / "True.pkl")
    for key, value in many.items():
        np.testing.assert_allclose(read[key].centrelines, value.centrelines, atol=0.02)
        np.testing.assert_array_equal(read[key].elements_xyxy_px, value.elements_xyxy_px)
    assert check_submission(tmp_path / "True.pkl", max_bytes=large) == []
    assert "more than 0.001; write it with half=True" in check_submission(tmp_path / "True.pkl", max_bytes=1000)[0]


def test_any_numpy_and_python_3_8_can_read_it(tmp_path):
    write_submission(tmp_path / "s.pkl", {KEY: graph()}, TEAM)
    stack, found = [], set()
    for opcode, argument, _ in pickletools.genops((tmp_path / "s.pkl").read_bytes()):
        if opcode.name == "PROTO":
            assert argument <= 4
        if isinstance(argument, str):
            stack.append(argument)
        if opcode.name == "STACK_GLOBAL":
            found.add(".".join(stack[-2:]))
    assert found == {"numpy.ndarray", "builtins.bytearray"}  # nothing of NumPy that moved between its versions
    arrays = pickle.loads((tmp_path / "s.pkl").read_bytes())["results"][KEY]["predictions"]
    assert arrays["topology_lclc"].flags.writeable  # the official evaluation writes into its arguments


def edit(*path, value=None, remove: bool = False):
    def change(content: dict) -> None:
        for key in path[:-1]:
            content = content[key]
        if remove:
            del content[path[-1]]
        else:
            content[path[-1]] = value

    return change


FRAME = ("results", KEY, "predictions")
LANE, ELEMENT = (*FRAME, "lane_centerline", 0), (*FRAME, "traffic_element", 1)
BROKEN = {
    "missing_method": (edit("method", remove=True), "method is missing"),
    "bad_country": (edit("country / region", value="Atlantis"), "'Atlantis' is not in ISO 3166-1"),
    "authors_not_list": (edit("authors", value="Ada"), "authors is no list"),
    "eleven_authors": (edit("authors", value=["A"] * 11), "authors has 11 names; 10"),
    "no_results": (edit("results", remove=True), "results is missing"),
    "points_list": (edit(*LANE, "points", value=[[0, 0, 0]]), "lane_centerline 0: points is a list"),
    "points_2d": (edit(*LANE, "points", value=np.zeros((3, 2))), "shape [3, 2]; it must be [points, 3]"),
    "te_shape": (edit(*ELEMENT, "points", value=np.zeros(4)), "traffic_element 1: points has shape [4]"),
    "te_no_attribute": (edit(*ELEMENT, "attribute", remove=True), "traffic_element 1: attribute missing"),
    "dup_ids": (edit(*ELEMENT, "id", value=0), "id 0 more than once"),
    "dup_ids_of_numpy": (edit(*ELEMENT, "id", value=np.int64(0)), "id 0 more than once"),
    "topology_shape": (edit(*FRAME, "topology_lclc", value=np.zeros((2, 2))), "topology_lclc has shape [2, 2]"),
    "topology_list": (edit(*FRAME, "topology_lcte", value=[[0]]), "topology_lcte is a list"),
    "no_confidence": (edit(*LANE, "confidence", remove=True), "lane_centerline 0: confidence missing"),
    # beyond the official check: what its evaluation stumbles over, or counts wrongly
    "one_point": (edit(*LANE, "points", value=np.zeros((1, 3))), "two points or more"),
    "nan": (edit(*LANE, "points", value=np.full((2, 3), np.nan)), "not all finite"),
    "no_area": (edit(*ELEMENT, "points", value=np.ones((2, 2))), "box has no area"),
    "attribute": (edit(*ELEMENT, "attribute", value=13), "attribute 13; it must be an int of 0..12"),
    "nan_edge": (edit(*FRAME, "topology_lcte", value=np.full((3, 2), np.nan)), "topology_lcte has entries"),
    "no_list": (edit(*FRAME, "lane_centerline", remove=True), "lane_centerline is missing"),
    "no_frame": (edit("results", KEY, value=[]), "frame val/00001/315970: has no dict 'predictions'"),
    "key": (edit("results", "315970", value={"predictions": {}}), "must be (split, segment, timestamp)"),
    "string_confidence": (edit(*LANE, "confidence", value="0.5"), "confidence '0.5' is no finite number"),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_each_broken_rule_is_named(content, fault):
    assert check_content(content) == []
    change, message = BROKEN[fault]
    broken = copy.deepcopy(content)
    change(broken)
    problems = check_content(broken)
    assert any(message in problem for problem in problems), problems


def test_missing_and_foreign_frames(content):
    problems = check_content(content, [("val", "00001", "1")])
    assert problems[0].startswith("none of its 1 frames is one of the 1 of the split: it has 'val/00001/315970', the")
    assert problems[1:] == [
        "frame val/00001/1: missing; predict it",
        "frame val/00001/315970: not of this split; remove it",
    ]
    assert check_content([]) == ["the file holds no dict; write it with write_submission"]


HUGE = 10**400


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (edit(*LANE, "confidence", value=HUGE), "confidence 1000"),
        (edit(*LANE, "confidence", value=np.complex128(1)), "is no finite number"),
        (edit(*LANE, "points", value=np.full((2, 3), 1e300)), "points are not all finite numbers"),
        (edit(*ELEMENT, "attribute", value=HUGE), "it must be an int of 0..12"),
        (edit(*LANE, "id", value=np.zeros((50, 50))), "is no int"),
        (edit(*ELEMENT, "attribute", value=np.zeros((9, 9))), "it must be an int of 0..12"),
        (edit("country / region", value="x" * 10**6), "is not in ISO 3166-1"),
        (edit("results", ("a" * 10**6, "b", "c"), value=3), "has no dict"),
    ],
)
def test_absurd_entries_are_named_in_short_lines(content, change, message):
    change(content)
    problems = check_content(content)
    assert any(message in problem for problem in problems), problems
    assert max(map(len, problems)) < 500 and not any("\n" in problem for problem in problems)


def test_lane_segments_are_named_for_what_they_are(content):
    lines = {side: np.zeros((10, 3)) for side in ("centerline", "left_laneline", "right_laneline")}
    segments = {"lane_segment": [{"id": 1, "confidence": 0.5, **lines}], "area": [], "traffic_element": []}
    content["results"][KEY] = {"predictions": segments | {"topology_lsls": np.zeros((1, 1))}}
    (problem,) = check_content(content, [KEY])
    assert "hold lane segments (lane_segment, area, topology_lsls, topology_lste)" in problem
    assert "evaluate_segments" in problem


def test_oddities_are_counted(content):
    found = {KEY: graph(), ("val", "00001", "2"): graph(seed=1)}
    assert oddities(found) == []
    found[KEY].centrelines[1, 3, 0] = 5000
    found[KEY].lane_scores[0] = 1.5
    assert oddities(found) == [
        "1 of 6 lanes reach farther than 1000 m (frame val/00001/315970, lane_centerline 1); points are metres in the "
        "frame's own vehicle frame",
        "1 of 2 frames have confidences outside of 0..1, such as frame val/00001/315970; write probabilities",
    ]


def test_a_file_of_another_kind_is_named(tmp_path):
    (tmp_path / "x.json").write_text(' {"meta": {}}')
    with pytest.raises(SubmissionError, match=r"x\.json: is a JSON file; submissions of lanes are pickles"):
        check_submission(tmp_path / "x.json")


def test_unreadable_files(tmp_path):
    with pytest.raises(SubmissionError, match=r"none.pkl: cannot be read"):
        read_predictions(tmp_path / "none.pkl")
    (tmp_path / "evil.pkl").write_bytes(pickle.dumps(print))
    with pytest.raises(SubmissionError, match=r"refused to unpickle: it names builtins\.print"):
        check_submission(tmp_path / "evil.pkl")
    write_pickle(tmp_path / "other.pkl", {"results": {KEY: 3}})
    with pytest.raises(SubmissionError, match="not an OpenLane-V2 submission"):
        read_predictions(tmp_path / "other.pkl")


def test_countries_are_known_by_code_and_name():
    assert all(map(is_country, ("AT", "aut", "040", "Austria", "CN", "USA", "Taiwan")))
    assert not any(map(is_country, ("", "XX", "Atlantis", "999")))
