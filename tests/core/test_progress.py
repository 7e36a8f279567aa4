"""One progress display: lines in a log, a bar on a terminal."""

from __future__ import annotations

import io
import logging
import sys

import pytest

from drivestack.core.progress import ProgressDisplay, clock_time, track


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def lines_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage().split("  eta")[0] for record in caplog.records]


def test_a_line_every_tenth_where_there_is_no_terminal(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="drivestack"):
        assert list(track(range(40), "read", unit="frames")) == list(range(40))
    assert lines_of(caplog) == [f"read {4 * i}/40 frames" for i in range(1, 11)]


def test_steps_of_an_earlier_run_count_and_a_jump_is_one_line(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="drivestack"), ProgressDisplay("draw", 10, done=5) as display:
        assert display.eta() == "?"
        display.move_to(8)
        display.move_to(6)
        display.advance(2)
    assert lines_of(caplog) == ["draw 8/10", "draw 10/10"]
    assert display.eta() == "0:00"


@pytest.mark.parametrize("options", [{"shown": False}, {"lines": False}])
def test_nothing_is_written_where_nobody_asked(caplog: pytest.LogCaptureFixture, options: dict[str, bool]) -> None:
    with caplog.at_level(logging.INFO, logger="drivestack"), ProgressDisplay("x", 3, **options) as display:
        display.advance(3)
    assert caplog.records == []


def test_a_bar_on_a_terminal_which_is_given_back_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with pytest.raises(RuntimeError), ProgressDisplay("train", 4) as display:
        display.advance(3, note="loss 0.5")
        raise RuntimeError
    assert "train" in terminal.getvalue() and "3/4" in terminal.getvalue() and "loss 0.5" in terminal.getvalue()
    assert "\x1b[?25h" in terminal.getvalue()  # the cursor is back


def test_a_generator_without_length_takes_a_total(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="drivestack"):
        list(track((i for i in range(2)), "x", total=2))
    assert lines_of(caplog) == ["x 1/2", "x 2/2"]


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (75.4, "1:15"), (3675, "1:01:15")])
def test_clock_time(seconds: float, text: str) -> None:
    assert clock_time(seconds) == text
