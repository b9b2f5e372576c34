"""Progress of the preparation: a bar on a terminal, lines elsewhere."""

import io
import re
import sys

import pytest

from scaling_fl.tracking.console import Console
from tests.tracking.screen import on_screen, working


@pytest.mark.parametrize("width", [60, 80, 120])
def test_the_bar_fits_the_terminal(width: int) -> None:
    console, screen = on_screen(width)
    console.event(working("tokenising 3,520 training texts", 123_456, 1_234_567))
    console.close()
    shown = re.sub(r"\x1b\[[?\d;]*[A-Za-z]", "", screen.getvalue()).replace("\r", "\n").splitlines()
    assert any("123456/1234567 MB" in line and "training texts" in line for line in shown)
    assert all(len(line) <= width for line in shown)


def test_the_preparation_has_a_bar_for_each_step() -> None:
    console, screen = on_screen(100)
    console.event(working("downloading", 12.4))
    console.event(working("reading", 1))
    assert re.search(r"downloading .*12/30\S* MB", screen.getvalue())
    assert re.search(r"reading .*1/30\S* MB", screen.getvalue())
    assert console._live is not None
    console.event(working("reading", 30))
    assert console._live is None, "it is done"
    console.event(working("reading on", 1))
    console.event({"event": "said", "text": "next"})
    assert console._live is None
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
