"""The live region, rendered by rich for terminals of different sizes."""

import dataclasses
import re
from typing import Any

import pytest

from scaling_fl.tracking.job_progress import JobProgress
from scaling_fl.tracking.live_region import LiveRegion, Region
from tests.tracking import builders
from tests.tracking.builders import progress
from tests.tracking.screen import Screen


def job(num_sites: int, config: dict[str, Any] | None = None, **fields: Any) -> JobProgress:
    """Round 1 of a job with sites of 80 + number examples, in batches of 16, on two workers."""
    plan = builders.plan(round_=0)
    changed = dataclasses.replace(plan.config, **({"batch_size": 16, "num_rounds": 9} | (config or {})))
    sizes = tuple(80 + site for site in range(num_sites))
    followed = JobProgress(dataclasses.replace(plan, config=changed, shard_sizes=sizes, **fields), lambda: 0.0)
    followed.round_done(0, {"examples_per_second": 1234.5})
    return followed


def in_training(num_sites: int) -> JobProgress:
    """The two largest sites are done, the next two are being trained."""
    followed = job(num_sites)
    last = num_sites - 1
    steps = [followed.current.sites[site].steps for site in (last, last - 1)]
    followed.progress(progress(0, 1, steps[0] + 2, last - 2, 2, (last, 1.5, 0.25)))
    followed.progress(progress(1, 1, steps[1] + 3, last - 3, 3, (last - 1, float("nan"), 0.25)))
    return followed


def rendered(followed: JobProgress, width: int, height: int) -> list[str]:
    screen = Screen(width, height)
    screen.terminal.print(Region(followed), end="")
    return screen.shown.splitlines()


@pytest.mark.parametrize("width", [60, 80, 200])
def test_four_sites_have_a_line_each_in_the_order_of_their_numbers(width: int) -> None:
    lines = rendered(in_training(4), width, 24)
    assert all(len(line) <= width for line in lines)
    texts = [re.sub(r"[━╸╺ ]+", " ", line).strip() for line in lines]
    assert texts == [
        "job 0/9 rounds 0 s left",
        "round 1 17/23 steps 1,234 examples/s",
        "site 0 3/5 training",
        "site 1 2/6 training",
        "site 2 6/6 done loss nan",
        "site 3 6/6 done loss 1.5000",
    ]
    bars = [len("".join(re.findall("[━╸]", line))) for line in lines]
    assert 0 < bars[0] < bars[3] < bars[2] < bars[1] < bars[4] == bars[5] >= 13


@pytest.mark.parametrize("width", [60, 80, 200])
@pytest.mark.parametrize(("height", "shown"), [(24, 15), (50, 32), (12, 3), (9, 0), (8, 0), (5, 0)])
def test_sites_that_do_not_fit_are_summed_up_in_one_line(width: int, height: int, shown: int) -> None:
    lines = rendered(in_training(32), width, height)
    assert all(len(line) <= width for line in lines)
    assert len(lines) <= max(3, height - 6), "six lines are left to the table"
    named = [int(line.split()[1]) for line in lines if line.startswith("site")]
    assert len(named) == shown
    if shown == 32:
        assert named == list(range(32))
        return
    # Two in training, then those that are done, the last of them first.
    assert named == [28, 29, 30, 31, *range(28)][:shown]
    assert (
        lines[-1]
        == {
            15: "17 more sites: all waiting",
            3: "29 more sites: 1 done, 28 waiting",
            0: "32 sites: 2 done, 2 training, 28 waiting",
        }[shown]
    )


def test_a_terminal_of_two_lines_or_twenty_columns_still_has_whole_lines() -> None:
    assert [line.split()[0] for line in rendered(in_training(4), 80, 3)] == ["job", "round", "4"]
    lines = rendered(in_training(4), 30, 24)
    assert all(len(line) <= 30 for line in lines)
    assert lines[3] == "site 1   2/6  training", "without bars"
    screen = Screen(80, 2)
    region = LiveRegion(screen.terminal, in_training(4))
    region.start()
    assert len(screen.lines) == 2
    region.stop()


def test_the_phases_of_a_round_are_named() -> None:
    plan = builders.plan(round_=0)
    followed = JobProgress(plan, lambda: 0.0)
    assert rendered(followed, 80, 24)[1].split() == ["round", "0", "starting"]
    followed.progress(progress(0, 0, 1))
    assert rendered(followed, 80, 24)[1].endswith("1/1 batches  evaluating")
    followed.round_done(0, {})
    assert rendered(followed, 80, 24)[1].endswith("0/2 steps")
    followed.progress(progress(0, 1, 1, None, 0, (0, 1.0, 0.5)))
    followed.progress(progress(1, 1, 1, None, 0, (1, 1.0, 0.5)))
    assert rendered(followed, 80, 24)[1].endswith("aggregating")
    followed.progress(progress(0, 1, 2))
    assert rendered(followed, 80, 24)[1].endswith("1/1 batches  evaluating")


def test_a_stalled_site_and_a_centralised_baseline_are_named() -> None:
    followed = in_training(4)
    followed.stalled(1)
    assert rendered(followed, 80, 24)[2].endswith("3/5  stalled")
    central = job(4, {"baseline": "centralised"})
    assert [line.split()[:2] for line in rendered(central, 80, 24)][2:] == [["all", "data"]]
    node = job(4, nodes=(0, 1), node=0)
    assert "steps here" in rendered(node, 80, 24)[1]


def test_bars_keep_their_width_during_a_round() -> None:
    followed = job(2)
    columns = {rendered(followed, 80, 24)[2].index("0/5")}
    followed.progress(progress(0, 1, 5, None, 0, (0, 0.5, 0.5)))
    columns.add(rendered(followed, 80, 24)[2].index("5/5"))
    assert len(columns) == 1


def test_the_region_is_removed_from_the_screen_and_shown_again_below_new_lines() -> None:
    screen = Screen(80, 24)
    region = LiveRegion(screen.terminal, in_training(4))
    region.start()
    assert len(screen.shown.splitlines()) == 6
    region.stop()
    assert screen.shown == ""
    assert not screen.cursor_hidden
    screen.write("a row\n")
    region.start()
    assert screen.cursor_hidden
    assert [line.split()[0] for line in screen.lines] == ["a", "job", "round", "site", "site", "site", "site"]
    region.stop()
    assert screen.shown == "a row"
    assert not screen.cursor_hidden


@pytest.mark.parametrize("width", [50, 40, 120])
def test_lines_that_a_narrower_terminal_broke_are_removed(width: int) -> None:
    screen = Screen(80, 40)
    region = LiveRegion(screen.terminal, in_training(4))
    region.start()
    assert region._live is not None
    rows = sum(-(-len(line) // width) for line in screen.lines)
    assert rows == (12 if width == 40 else rows)
    before = len(screen.getvalue())
    screen.terminal.width = width
    region._live.refresh()
    assert screen.getvalue()[before:].count("\x1b[1A") == rows - 1
    region.stop()


def test_colours_are_left_out_with_no_color(monkeypatch: pytest.MonkeyPatch) -> None:
    def written(**environ: str) -> str:
        screen = Screen(80, 24)
        screen.terminal.__init__(  # type: ignore[misc]
            file=screen, force_terminal=True, width=80, height=24, _environ={"TERM": "xterm-256color", **environ}
        )
        screen.terminal.print(Region(in_training(4)))
        return screen.getvalue()

    colour = re.compile(r"\x1b\[[\d;]*3\d")
    assert colour.search(written())
    assert not colour.search(written(NO_COLOR="1"))
