import io
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console as RichConsole

from scaling_fl.tracking.console import Console
from tests.tracking.builders import plan


def test_the_plan_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Console().plan(plan())
    text = capsys.readouterr().out
    for line in (
        "2 sites on cpu, 1 thread each", "Bert, 0.0 M parameters, new: head", "9 training and 3 test examples, 2 classes",
        "job news resumes after round 2", "   0         5     1.000 bits            1  cpu",
        "   1         4     0.500 bits            1  cpu",
    ):  # fmt: skip
        assert line in text


def test_the_bar_goes_to_the_real_stderr_and_lines_to_captured_stdout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    console, screen = Console(), io.StringIO()
    console._terminal = RichConsole(file=screen, force_terminal=True, width=100)
    the_plan = plan()
    console.event({"event": "progress", "worker": 1, "round": 3, "done": 1}, the_plan)
    console.event({"event": "output", "source": "site 1 (cpu)", "text": "a warning"}, the_plan)
    console.event({"event": "round", "round": 3, "metrics": {"train.loss": 0.5}}, the_plan)
    console.close()
    assert "round 3/10" in screen.getvalue()
    assert "1/3" in screen.getvalue(), "two local steps and one evaluation batch"
    out = capsys.readouterr().out
    assert out.splitlines()[0] == "site 1 (cpu) | a warning"
    assert "round 3/10" not in out
    assert "\x1b" not in out


def test_there_is_no_bar_without_a_terminal(tmp_path: Path, monkeypatch: Any) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "__stderr__", stream)
    console = Console()
    console.event({"event": "progress", "worker": 1, "round": 3, "done": 1}, plan())
    assert stream.getvalue() == ""


def test_a_long_round_has_a_line_with_the_time_every_minute_without_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "__stderr__", io.StringIO())
    now = 100.0
    monkeypatch.setattr("scaling_fl.tracking.console.time.monotonic", lambda: now)
    console, the_plan = Console(), plan()

    def progress(seconds: float, worker: int, done: int, round_: int = 3) -> str:
        nonlocal now
        now += seconds
        console.event({"event": "progress", "worker": worker, "round": round_, "done": done}, the_plan)
        return capsys.readouterr().out

    assert progress(500, 0, 1) == "", "the round has just begun"
    assert progress(59, 1, 1) == ""
    console.event({"event": "said", "text": "note: a note"}, the_plan)
    assert progress(2, 0, 1).splitlines()[0] == "note: a note"
    progress(0, 1, 1)
    # Two local steps, and one batch of the test set.
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d round 3/10: 2 of 3 steps\n", progress(61, 0, 1))
    assert progress(59, 1, 2) == ""
    console.event({"event": "round", "round": 3, "metrics": {}}, the_plan)
    capsys.readouterr()
    assert progress(90, 1, 2) == "", "it arrives after the round's row"
    assert progress(90, 0, 1, round_=4) == ""
    assert "round 4/10: 2 of 3 steps" in progress(61, 0, 2, round_=4), "what round 3 did doesn't count"


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize("num_held_back", [0, 4])
def test_lines_fit_the_terminal_and_break_between_words(
    width: int, num_held_back: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    console, recorded = Console(), list[str]()
    console.listener = recorded.append
    history = {"2": {"train.loss": 1234.5678, "seconds.train": 123456.7}}
    the_plan = plan(history=history, num_held_back=num_held_back)
    console.plan(the_plan)
    console.event({"event": "output", "source": "site 1 (cpu)", "text": "a_warning_of_some_kind " * 9}, the_plan)
    console.event({"event": "round", "round": 3, "metrics": {"train.loss": 161157.5791}}, the_plan)
    printed = capsys.readouterr().out.splitlines()
    assert all(len(line) <= width for line in printed), max(printed, key=len)
    words = {word for line in printed for word in line.split()}
    assert words >= {word for line in recorded for word in line.split()}, "no word is broken"
    assert any(len(line) > 120 for line in recorded), "records have whole lines"


def test_a_resumed_job_shows_the_earlier_rounds_without_recording_them_again(
    capsys: pytest.CaptureFixture[str],
) -> None:
    console, recorded = Console(), list[str]()
    console.listener = recorded.append
    console.plan(plan(round_=14, history={str(n): {"train.loss": n / 8} for n in range(15) if n != 12}))
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[-11:]]
    assert rows == [
        ["…", "4", "earlier", "rounds", "are", "in", "the", "record"],
        *([str(n), f"{n / 8:.4f}"] for n in (4, 5, 6, 7, 8, 9, 10, 11, 13, 14)),
    ]
    assert recorded[-1].startswith("round ")


def test_the_note_on_divergence_appears_once(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console()
    for round_ in (3, 4):
        console.event({"event": "round", "round": round_, "metrics": {"train.loss": 99.0}}, plan())
    assert capsys.readouterr().out.count("is far above") == 1


@pytest.mark.parametrize("width", [60, 80, 120])
def test_the_bar_fits_the_terminal(width: int) -> None:
    console, screen = Console(), io.StringIO()
    console._terminal = RichConsole(file=screen, force_terminal=True, width=width, color_system=None)
    console.event(working("tokenising 3,520 training texts", 123_456, 1_234_567))
    console.close()
    shown = re.sub(r"\x1b\[[?\d;]*[A-Za-z]", "", screen.getvalue()).replace("\r", "\n").splitlines()
    assert any("123456/1234567 MB" in line and "training texts" in line for line in shown)
    assert all(len(line) <= width for line in shown)


def working(what: str, done: float, total: float = 30) -> dict[str, Any]:
    return {"event": "working", "what": what, "done": done, "total": total, "unit": "MB"}


def test_the_preparation_has_a_bar_for_each_step() -> None:
    console, screen = Console(), io.StringIO()
    console._terminal = RichConsole(file=screen, force_terminal=True, width=100)
    console.event(working("downloading", 12.4))
    console.event(working("reading", 1))
    assert re.search(r"downloading .*12/30\S* MB", screen.getvalue())
    assert console._bar is not None
    console.event(working("reading", 30))
    assert console._bar is None, "it is done"
    console.event(working("reading on", 1))
    console.event({"event": "said", "text": "next"})
    assert console._bar is None
    console.event(working("and on", 1))
    console.close()
    hidden, shown = screen.getvalue().count("\x1b[?25l"), screen.getvalue().count("\x1b[?25h")
    assert hidden == shown > 0, "the cursor is restored"


def test_progress_without_a_terminal_is_a_line_every_few_seconds(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "__stderr__", io.StringIO())
    now = 100.0
    monkeypatch.setattr("scaling_fl.tracking.console.time.monotonic", lambda: now)
    console = Console()
    console.event(working("downloading", 1))
    now += 9
    console.event(working("downloading", 2))
    now += 2
    console.event(working("downloading", 3.2))
    now += 1
    console.event(working("downloading", 4))
    assert capsys.readouterr().out == "downloading: 3 of 30 MB\n"
