from dataclasses import dataclass

import pytest

from scaling_fl.runtime.stall_watch import StallWatch

PROGRESS = {"event": "progress"}


@dataclass
class Child:
    progress_at: float = 0.0
    waiting: bool = False
    ended: bool = False


def watched(stall_timeout: float = 600.0, count: int = 2) -> tuple[StallWatch, list[Child]]:
    children = [Child() for _ in range(count)]
    return StallWatch(children, stall_timeout), children


def stalled(watch: StallWatch, now: float) -> list[int]:
    return [event["child"] for event in watch.check(now)]


def test_a_child_stalls_after_a_tenth_of_stall_timeout_and_is_told_once() -> None:
    watch, (one, other) = watched()
    watch.notice(PROGRESS, 0.0)
    for now in range(1, 61):
        one.progress_at = now
        assert watch.check(now) == []
    one.progress_at = 61
    (event,) = watch.check(61)
    assert event == {"event": "stalled", "child": 1, "seconds": 61, "pause": 1.0}
    for now in range(62, 100):
        one.progress_at = now
        assert stalled(watch, now) == [], "it has been told"
    one.progress_at = 200
    assert stalled(watch, 200) == []
    one.progress_at = other.progress_at = 210
    assert stalled(watch, 210) == [], "it goes on"


def test_ten_times_the_longest_pause_of_any_child_is_not_yet_a_stall() -> None:
    watch, (slow, other) = watched()
    watch.notice(PROGRESS, 0.0)
    slow.progress_at = other.progress_at = 20
    assert stalled(watch, 20) == []
    for now in range(40, 221, 20):
        slow.progress_at = now
        assert stalled(watch, now) == [], "up to 200 s, and steps take 20 s"
    slow.progress_at = 221
    assert stalled(watch, 221) == [1]
    watch, (slow, other) = watched()
    watch.notice(PROGRESS, 0.0)
    slow.progress_at = other.progress_at = 20
    assert stalled(watch, 20) == []
    assert stalled(watch, 221) == [0, 1]


def test_half_of_stall_timeout_is_always_a_stall() -> None:
    watch, (one, other) = watched(count=2)
    watch.notice(PROGRESS, 0.0)
    one.progress_at = other.progress_at = 100
    assert stalled(watch, 100) == []
    one.progress_at = 190
    assert stalled(watch, 399) == []
    assert stalled(watch, 401) == [1]


def test_a_repeated_stall_is_told_again() -> None:
    watch, (one, other) = watched()
    watch.notice(PROGRESS, 0.0)
    one.progress_at = 61
    assert stalled(watch, 61) == [1]
    one.progress_at = other.progress_at = 62
    assert stalled(watch, 62) == []
    one.progress_at = 700
    assert stalled(watch, 700) == [1]


@pytest.mark.parametrize("state", ["waiting", "ended"])
def test_a_child_that_waits_or_has_ended_does_not_stall(state: str) -> None:
    watch, (one, other) = watched()
    watch.notice(PROGRESS, 0.0)
    setattr(other, state, True)
    for now in range(1, 400):
        one.progress_at = now
        assert stalled(watch, now) == []
    other.waiting, other.progress_at = False, 400
    told: list[int] = []
    for now in range(400, 462):
        one.progress_at = now
        told += stalled(watch, now)
    assert told == ([] if state == "ended" else [1]), "the wait was no pause"


def test_nothing_is_told_before_the_training_begins() -> None:
    watch, (one, _) = watched()
    watch.notice({"event": "said"}, 0.0)
    assert stalled(watch, 500) == [], "models are loaded"
    one.progress_at = 500
    watch.notice(PROGRESS, 500.0)
    assert stalled(watch, 559) == []
