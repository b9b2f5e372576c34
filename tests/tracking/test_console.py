import io
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console as RichConsole

from scaling_fl.tracking.console import Console, table_row
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


def test_a_row_is_blank_where_nothing_was_measured() -> None:
    row = table_row(7, {"train.loss": 0.123456, "validation.loss": "nan", "seconds.train": 2.0})
    assert row.split() == ["7", "0.1235", "nan", "2.0"]
    assert len(row) == len(table_row(7, {}))


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
