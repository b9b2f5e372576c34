import dataclasses
from typing import Any

import pytest

from scaling_fl.tracking.job_progress import JobProgress, duration, throughput
from tests.tracking import builders
from tests.tracking.builders import progress


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now

    def passes(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


def job(clock: Clock, config: dict[str, Any] | None = None, **fields: Any) -> JobProgress:
    """Two sites of 32 and 64 examples: 4 and 8 steps in batches of 8, and one evaluation batch; ten rounds."""
    plan = builders.plan(round_=0)
    changed = dataclasses.replace(plan.config, **({"batch_size": 8, "num_rounds": 10} | (config or {})))
    return JobProgress(dataclasses.replace(plan, config=changed, **({"shard_sizes": (32, 64)} | fields)), clock)


def test_the_time_left_is_estimated_from_the_first_round_and_then_from_all_rounds(clock: Clock) -> None:
    followed = job(clock)
    assert (followed.started, followed.seconds_left) == (False, None)
    followed.progress(progress(0, 0, 1))
    assert followed.fraction == 0, "the evaluation before round 1 is no round"
    clock.passes(5)
    followed.round_done(0, {})
    assert followed.seconds_left is None, "the evaluation before round 1 says nothing about a round"
    clock.passes(4)
    followed.progress(progress(1, 1, 4, 1, 4))
    # 4 of 13 steps took 4 s: the round takes 13 s, and there are nine more.
    assert followed.seconds_left == pytest.approx(9 + 9 * 13)
    assert followed.fraction == pytest.approx(4 / 13 / 10)
    clock.passes(16)
    followed.round_done(1, {})
    assert followed.seconds_left == pytest.approx(9 * 20)
    clock.passes(5)
    followed.progress(progress(1, 2, 6, 1, 6))
    assert followed.seconds_left == pytest.approx(20 * (1 - 6 / 13) + 8 * 20)
    clock.passes(35)
    assert followed.seconds_left == pytest.approx(40 * (1 - 6 / 13) + 8 * 20), "slower than the round before"
    followed.round_done(2, {})
    assert followed.seconds_left == pytest.approx(8 * (20 + 40) / 2)
    assert followed.rounds_done == 2


def test_the_time_left_follows_the_last_ten_rounds(clock: Clock) -> None:
    followed = job(clock, {"num_rounds": 20})
    followed.round_done(0, {})
    for round_ in range(1, 13):
        clock.passes(500 if round_ <= 2 else 10)
        followed.round_done(round_, {})
    assert followed.seconds_left == pytest.approx(8 * 10)


def test_the_very_beginning_of_the_first_round_says_nothing_about_the_time(clock: Clock) -> None:
    followed = job(clock, shard_sizes=(320, 640))  # 40 and 80 steps
    followed.round_done(0, {})
    clock.passes(3)
    followed.progress(progress(0, 1, 6, 0, 6))
    assert followed.seconds_left is None, "6 of 121 steps are less than a twentieth"
    followed.progress(progress(1, 1, 1, 1, 1))
    assert followed.seconds_left is not None


def test_the_throughput_is_that_of_this_round_once_it_has_lasted(clock: Clock) -> None:
    followed = job(clock)
    assert followed.examples_per_second is None
    followed.round_done(0, {"examples_per_second": "nan"})
    clock.passes(1)
    followed.progress(progress(1, 1, 1, 1, 1))
    assert followed.examples_per_second is None
    clock.passes(3)
    followed.progress(progress(1, 1, 2, 1, 2))
    assert followed.examples_per_second == 2 * 8 / 4
    followed.progress(progress(1, 1, 8, None, 0, (1, 1.0, 0.5)))
    followed.progress(progress(0, 1, 4, None, 0, (0, 1.0, 0.5)))
    clock.passes(9)
    assert followed.examples_per_second == (32 + 64) / 4, "the evaluation doesn't count"
    followed.round_done(1, {"examples_per_second": 17.5})
    clock.passes(1)
    assert followed.examples_per_second == 17.5


def test_events_that_arrive_after_their_rounds_row_are_left_out(clock: Clock) -> None:
    followed = job(clock)
    followed.round_done(0, {})
    done = followed.round_done(1, {})
    assert done.round == 1
    assert not followed.progress(progress(0, 1, 4))
    assert (followed.current.round, followed.current.done) == (2, 0)


def test_an_event_of_the_next_round_may_come_before_the_row(clock: Clock) -> None:
    followed = job(clock)
    followed.round_done(0, {})
    assert followed.progress(progress(0, 1, 4, None, 0, (0, 0.5, 0.75)))
    assert followed.progress(progress(1, 2, 8, None, 0, (1, 0.5, 0.75)))
    done = followed.round_done(1, {})
    assert (done.round, done.sites[0].loss) == (1, 0.5)
    assert (followed.current.round, followed.current.done) == (2, 8), "it isn't lost"


def test_other_nodes_hear_of_a_round_by_its_first_event_only(clock: Clock) -> None:
    followed = job(clock, nodes=(0, 1), node=1)
    for round_ in range(4):
        assert followed.progress(progress(1, round_, 1, 1 if round_ else None, 1))
        clock.passes(6)
    assert followed.rounds_done == 2
    assert followed.seconds_left == pytest.approx(7 * 6 + 6 * (1 - 1 / followed.current.total))
    assert followed.examples_per_second is None, "no row tells it"


def test_a_stalled_worker_marks_its_site(clock: Clock) -> None:
    followed = job(clock)
    followed.round_done(0, {})
    assert followed.stalled(1) is None
    followed.progress(progress(1, 1, 1, 1, 1))
    assert followed.stalled(1) == 1
    assert followed.current.sites[1].stalled
    followed.progress(progress(1, 1, 2, 1, 2))
    assert not followed.current.sites[1].stalled


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0 s"), (99.4, "99 s"), (99.6, "2 min"), (3569, "59 min"), (3571, "1 h 00 min"), (3900, "1 h 05 min"),
        (172_000, "47 h 47 min"), (180_000, "2 d 2 h"),
    ],
)  # fmt: skip
def test_durations_have_two_units_at_most(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_few_examples_per_second_have_tenths() -> None:
    assert [throughput(rate) for rate in (0.149, 9.94, 9.96, 1234.5)] == [
        "0.1 examples/s", "9.9 examples/s", "10 examples/s", "1,234 examples/s",
    ]  # fmt: skip
