"""The progress of a job: its rounds, the time left, and the throughput."""

import threading
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from scaling_fl.federated.run_plan import Plan
from scaling_fl.progress import Event
from scaling_fl.tracking.round_progress import RoundProgress

_ROUNDS_AVERAGED = 10  # for the time left
_MIN_FRACTION = 0.05  # of the first round, before which nothing is said about the time left
_MIN_SECONDS = 2.0  # of a round, before which its own throughput says little


class JobProgress:
    """Follows the rounds from the start of the workers.

    The screen is redrawn in a thread: what changes the state holds `lock`, and so does what reads it in another thread.
    """

    def __init__(self, plan: Plan, clock: Callable[[], float]):
        """`clock` in seconds."""
        self.plan, self._clock = plan, clock
        self.lock = threading.Lock()
        self._durations: deque[float] = deque(maxlen=_ROUNDS_AVERAGED)  # of complete rounds, in seconds
        self._rate: float | None = None  # examples per second in the last round
        self.current = self._previous = RoundProgress(plan, plan.round + plan.reported)
        self._begun: float | None = None  # of the current round; unknown before the first event
        self._trained_at: float | None = None  # when its last site was done

    def progress(self, event: Event) -> bool:
        """Take in a "progress" event; return whether it belongs to the current round. It may arrive after its row."""
        with self.lock:
            if event["round"] > self.current.round:  # on other nodes than node 0, only this tells
                self._begin(event["round"])
            if event["round"] < self.current.round:
                return False
            if self._begun is None:
                self._begun = self._clock()
            self.current.update(event)
            if self.current.trained and self._trained_at is None:
                self._trained_at = self._clock()
            return True

    def round_done(self, round_: int, results: Mapping[str, Any]) -> RoundProgress:
        """The round is reported, and the next one begins; return its progress.

        A faster worker may have sent an event of the next round already.
        """
        with self.lock:
            rate = results.get("examples_per_second")
            if isinstance(rate, int | float):
                self._rate = rate
            if self.current.round <= round_:
                self._begin(round_ + 1)
            return self._previous

    def stalled(self, worker: int) -> int | None:
        """A worker makes no progress: mark its site, and return its number."""
        with self.lock:
            site = self.current.current_site(worker)
            if site is None:
                return None
            site.stalled = True
            return site.number

    @property
    def started(self) -> bool:
        """Whether a worker trains or evaluates already."""
        return self._begun is not None

    @property
    def rounds_done(self) -> int:
        return max(0, self.current.round - 1)

    @property
    def fraction(self) -> float:
        """The share of the job's rounds that is done, with that of the current round."""
        return min(
            1.0, (self.rounds_done + self._round_fraction * (self.current.round > 0)) / self.plan.config.num_rounds
        )

    @property
    def seconds_left(self) -> float | None:
        """Estimated from the mean duration of the last rounds; in the first round, from what is done of it."""
        elapsed = 0.0 if self._begun is None else self._clock() - self._begun
        later = self.plan.config.num_rounds - self.current.round
        if self._durations:
            mean = sum(self._durations) / len(self._durations)
            # A round that takes longer than the others is expected to go on at its own pace.
            return mean * later + max(mean, elapsed) * (1 - self._round_fraction)
        if not self.current.sites or self._round_fraction < _MIN_FRACTION:
            return None
        whole = elapsed / self._round_fraction
        return whole * later + whole - elapsed

    @property
    def examples_per_second(self) -> float | None:
        """Training examples per second of all sites: in this round so far, or in the last one while it is too short.

        With several nodes, only the rounds' rows tell.
        """
        if self._begun is None or self.plan.nodes or not self.current.sites:
            return self._rate
        seconds = (self._trained_at or self._clock()) - self._begun
        return self.current.examples / seconds if seconds >= _MIN_SECONDS else self._rate

    @property
    def _round_fraction(self) -> float:
        return self.current.done / max(1, self.current.total)

    def _begin(self, round_: int) -> None:
        now = self._clock()
        if self._begun is not None and self.current.round > self.plan.round:
            self._durations.append(now - self._begun)
        self._previous, self.current = self.current, RoundProgress(self.plan, round_)
        self._begun, self._trained_at = now, None


def throughput(examples_per_second: float) -> str:
    """Whole examples per second, but tenths of few."""
    return f"{examples_per_second:,.{0 if examples_per_second >= 9.95 else 1}f} examples/s"


def duration(seconds: float) -> str:
    """A duration in the two largest units that matter: `48 s`, `12 min`, `3 h 05 min`, `2 d 4 h`."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes:02} min"
    return f"{hours // 24} d {hours % 24} h"
