"""Where nothing is redrawn: pipes, `tee`, terminals that are closed."""

import contextlib
import io
import os
import pty
import sys
from pathlib import Path

import pytest

from scaling_fl.tracking.console import Console
from scaling_fl.tracking.live_region import LiveRegion
from tests.tracking.builders import plan, progress
from tests.tracking.screen import on_screen


def test_there_is_no_region_without_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "__stderr__", stream)
    monkeypatch.setenv("FORCE_COLOR", "1")
    console = Console()
    console.event(progress(1, 3, 1, 1, 1), plan())
    assert stream.getvalue() == ""


@pytest.mark.parametrize(("stdout", "shown"), [("terminal", True), ("file", True), ("pipe", False)])
def test_nothing_is_redrawn_in_a_terminal_to_which_tee_writes_the_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stdout: str, shown: bool
) -> None:
    with contextlib.ExitStack() as files:
        opened = [files.enter_context(os.fdopen(end, "wb", 0)) for end in (*pty.openpty(), *os.pipe())]
        log = files.enter_context((tmp_path / "log").open("w"))
        monkeypatch.setattr(sys, "__stderr__", opened[1])
        monkeypatch.setattr(sys, "__stdout__", {"terminal": opened[1], "file": log, "pipe": opened[3]}[stdout])
        monkeypatch.setenv("TERM", "xterm")
        assert Console()._terminal.is_interactive == shown


@pytest.mark.parametrize("closed_by", ["the row", "the redrawing"])
def test_a_job_goes_on_when_the_terminal_is_closed(closed_by: str, monkeypatch: pytest.MonkeyPatch) -> None:
    replaced: list[int] = []
    monkeypatch.setattr("scaling_fl.tracking.console.os.dup2", lambda _, descriptor: replaced.append(descriptor))
    console, screen = on_screen(80)
    recorded: list[str] = []
    console.listener = recorded.append
    console.event(progress(1, 3, 1, 1, 1), plan())
    assert isinstance(console._live, LiveRegion)
    stop = console._live.stop

    def close() -> None:
        if closed_by == "the row":
            monkeypatch.setattr(sys, "stdout", Closed())
        stop()
        monkeypatch.setattr(screen, "write", Closed().write)

    monkeypatch.setattr(console._live, "stop", close)
    for round_ in (3, 4):
        console.event({"event": "round", "round": round_, "metrics": {"train.loss": 0.5}}, plan())
    assert [line.split() for line in recorded] == [["3", "0.5000"], ["4", "0.5000"]]
    assert set(replaced) == {1, 2}
    console.close()


class Closed(io.StringIO):
    def write(self, text: str) -> int:
        raise OSError(5, "Input/output error")
