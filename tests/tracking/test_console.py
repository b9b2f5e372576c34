import dataclasses
import io
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from scaling_fl.tracking.console import Console
from tests.tracking.builders import plan, progress
from tests.tracking.screen import on_screen, redraw, working


def test_the_plan_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Console().plan(plan())
    text = capsys.readouterr().out
    for line in (
        "2 sites on cpu, 1 thread each", "Bert, 0.0 M parameters, new: head", "9 training and 3 test examples, 2 classes",
        "job news resumes after round 2", "   0         5     1.000 bits            1  cpu",
        "   1         4     0.500 bits            1  cpu",
    ):  # fmt: skip
        assert line in text


def test_progress_goes_to_the_real_stderr_and_lines_to_captured_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    console, screen = on_screen(100)
    the_plan = plan()
    console.event(progress(1, 3, 1, 1, 1), the_plan)
    redraw(console)
    assert "round 3" in screen.shown
    assert "1/2 steps" in screen.shown
    console.event({"event": "output", "source": "site 1 (cpu)", "text": "a warning"}, the_plan)
    console.event({"event": "round", "round": 3, "metrics": {"train.loss": 0.5}}, the_plan)
    assert "round 4" in screen.shown, "the next round follows at once"
    console.close()
    assert screen.shown == ""
    assert not screen.cursor_hidden
    out = capsys.readouterr().out
    assert out.splitlines()[0] == "site 1 (cpu) | a warning"
    assert "steps" not in out
    assert "\x1b" not in out


def test_after_the_last_round_nothing_is_redrawn(capsys: pytest.CaptureFixture[str]) -> None:
    console, screen = on_screen(80)
    the_plan = plan(round_=9)
    console.plan(the_plan)
    assert "round 10" in screen.shown
    console.event(progress(0, 10, 1, None, 0, (0, 0.5, 0.5)), the_plan)
    console.event({"event": "round", "round": 10, "metrics": {"train.loss": 0.5}}, the_plan)
    console.event(progress(1, 10, 1, None, 0, (1, 0.5, 0.5)), the_plan)  # it arrives after the round's row
    console.event({"event": "checkpoint", "round": 10, "path": "p", "seconds": 1.0}, the_plan)
    assert screen.shown == ""
    assert capsys.readouterr().out.splitlines()[-1].split() == ["10", "0.5000"]


def test_a_long_round_has_a_line_with_the_time_every_minute_without_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "__stderr__", io.StringIO())
    monkeypatch.setenv("COLUMNS", "200")
    now = 100.0
    monkeypatch.setattr("scaling_fl.tracking.console.time.monotonic", lambda: now)
    console, the_plan = Console(), plan()

    def after(seconds: float, *event: Any) -> str:
        nonlocal now
        now += seconds
        console.event(progress(*event), the_plan)
        return capsys.readouterr().out

    assert after(500, 0, 3, 1, 0, 1) == "", "the round has just begun"
    assert after(59, 1, 3, 1, 1, 1) == ""
    console.event({"event": "said", "text": "note: a note"}, the_plan)
    note, line = after(2, 0, 3, 1, None, 0, (0, 0.5, 0.5)).splitlines()
    assert note == "note: a note"
    # Two local steps of 9 examples together, and one batch of the test set: 2 of 3 steps in 61 s. Seven rounds follow.
    assert re.fullmatch(
        r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d round 3/10: 2 of 3 steps, 1 of 2 sites done, 0.1 examples/s, 11 min left", line
    ), line
    assert after(59, 1, 3, 2, None, 0, (1, 0.5, 0.5)) == ""
    console.event({"event": "round", "round": 3, "metrics": {}}, the_plan)
    capsys.readouterr()
    assert after(5, 0, 4, 0, 0, 0) == "", "a row was printed"
    assert after(90, 1, 3, 2) == "", "it arrives after the round's row"
    assert "round 4/10: 1 of 3 steps" in after(1, 0, 4, 1, 0, 1), "what round 3 did doesn't count"
    assert after(59, 1, 4, 1, 1, 1) == ""


def test_a_row_fits_a_terminal_that_has_become_narrower(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    console, the_plan = Console(), plan()
    console.plan(the_plan)
    assert "aggr" in capsys.readouterr().out
    monkeypatch.setenv("COLUMNS", "60")
    for round_ in (3, 4):
        console.event(
            {"event": "round", "round": round_, "metrics": {"train.loss": 0.5, "seconds.train": 7.0}}, the_plan
        )
    first, second, *rows = capsys.readouterr().out.splitlines()
    assert second.split() == ["round", "loss", "acc", "loss", "acc", "±best", "per", "s", "train"]
    assert [row.split() for row in rows] == [["3", "0.5000", "7.0"], ["4", "0.5000", "7.0"]], "the head is printed once"
    assert all(len(line) <= 60 for line in (first, second, *rows))


METRICS = {
    "train.loss": 0.75, "site.0.train.loss": 0.5, "site.0.train.accuracy": 0.75, "site.1.train.loss": "nan",
    "site.1.train.accuracy": 0.25, "seconds.train": 2.5, "seconds.aggregate": 0.125, "validation.accuracy": 0.5,
}  # fmt: skip


@pytest.mark.parametrize("verbosity", ["quiet", "normal", "verbose"])
def test_the_key_verbosity_chooses_the_lines(verbosity: str, capsys: pytest.CaptureFixture[str]) -> None:
    console, screen = on_screen(80)
    console.verbosity = verbosity
    recorded: list[str] = []
    console.listener = recorded.append
    the_plan = plan(round_=8)
    console.event({"event": "said", "text": "reading the data"})
    console.event(working("tokenising", 3))
    assert ("tokenising" in screen.shown) == (verbosity != "quiet")
    console.event({"event": "said", "text": "note: a note"})
    console.plan(the_plan)
    assert ("round 9" in screen.shown) == (verbosity != "quiet")
    for round_ in (9, 10):
        console.event(progress(0, round_, 1, None, 0, (0, 0.5, 0.75)), the_plan)
        console.event({"event": "round", "round": round_, "metrics": METRICS}, the_plan)
    console.event({"event": "checkpoint", "round": 10, "path": "p", "seconds": 1.0}, the_plan)
    console.event({"event": "said", "text": "best round by …"}, the_plan)
    printed = capsys.readouterr().out.splitlines()
    first_words = [line.split()[0] for line in printed if line]
    details = [
        line
        for line in printed
        if line.startswith(" " * 7) and ("site" in line or " s" in line) and "train:" not in line
    ]
    if verbosity == "quiet":
        assert first_words == ["note:", "note:", "train:", "round", "10", "best"]
        assert recorded[0] == "reading the data", "the record has all lines"
    else:
        assert first_words[0] == "reading"
        assert [word for word in first_words if word in ("round", "9", "10")] == ["round", "9", "10"]
    shown = [
        "       site 0: loss 0.5000, accuracy 0.750, 1 steps",
        "       site 1: loss nan, accuracy 0.250, 1 steps",
        "       train 2.50 s, aggregate 0.12 s",
    ]
    assert details == ([*shown, *shown, "       checkpoint of round 10: 1.00 s"] if verbosity == "verbose" else [])
    assert sum("isn't finite" in line for line in printed) == 1
    assert not any("\x1b" in line for line in recorded)


def test_a_stalled_worker_is_named_with_its_site(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    console, screen = on_screen(200)
    event = {"event": "stalled", "child": 1, "seconds": 75.0, "pause": 2.25}
    one_each, shared = plan(), dataclasses.replace(plan(), shard_sizes=(5, 4, 4))
    console.event(progress(1, 3, 0, 1, 0), one_each)
    console.event(event, one_each)
    redraw(console)
    assert "stalled" in screen.shown
    console.close()
    console.event(progress(1, 3, 0, 2, 0), shared)
    console.event(event, shared)
    console.event({"event": "round", "round": 3, "metrics": {}}, shared)
    console.event(event, shared)
    rest = " has made no progress for 75 s; the longest pause before was 2 s, and it counts as hung after stall_timeout=600 s"
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note")]
    assert lines == [
        f"note: site 1 (cpu){rest}", f"note: worker 1 (cpu), at site 2,{rest}", f"note: worker 1 (cpu){rest}",
    ]  # fmt: skip
    console.close()


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


def test_with_verbosity_quiet_progress_is_recorded_but_not_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "__stderr__", io.StringIO())
    now, recorded = 100.0, list[str]()
    monkeypatch.setattr("scaling_fl.tracking.console.time.monotonic", lambda: now)
    console = Console()
    console.verbosity, console.listener = "quiet", recorded.append
    for done in (1, 2):
        console.event(working("downloading", done))
        now += 99
    for done in (0, 1):
        console.event(progress(1, 3, done, 1, done), plan())
        now += 99
    assert [text.split(":")[0] for text in recorded[:1]] == ["downloading"]
    assert "round 3/10: 1 of 3 steps" in recorded[1]
    assert capsys.readouterr().out == ""


def test_other_nodes_show_no_table(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    Console().plan(dataclasses.replace(plan(), nodes=(0, 1), node=1))
    assert capsys.readouterr().out.splitlines()[1:] == [
        "this is node 1: node 0 shows the rounds, and keeps records and checkpoints"
    ]


def test_a_site_far_above_the_others_is_noted_by_the_loss_of_guessing_among_the_classes(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """0.5 is more than half of ln 2, for two classes, but less than half of ln 8, for eight."""
    two = dataclasses.replace(plan(), shard_sizes=(4,) * 8, shard_entropies=(1.0,) * 8)
    losses = {f"site.{site}.train.loss": 0.5 if site == 3 else 0.01 for site in range(8)}
    noted = []
    for labels in ("ab", "abcdefgh"):
        of = dataclasses.replace(two, label_names=tuple(labels))
        Console().event({"event": "round", "round": 3, "metrics": losses}, of)
        noted.append("of site 3 is far above" in capsys.readouterr().out)
    assert noted == [True, False]
