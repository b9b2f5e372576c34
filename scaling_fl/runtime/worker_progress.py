"""A worker's reports to the launcher: its steps in the round, and the site that it is training."""

import time
from collections.abc import Callable

from scaling_fl.progress import Send, SiteObserver

_INTERVAL = 0.25  # seconds


class WorkerProgress(SiteObserver):
    """Counts a worker's steps, and sends "progress" events.

    At most four a second are sent, and one when the worker has trained its last site of a round: the next step may be
    long in coming, and until then the site would seem unfinished. An event holds:

        worker, round, done    the rank, the round, and the worker's steps in it, with those of the evaluation
        site, site_done        the site that is being trained, or None, and its steps so far
        trained                [site, loss, accuracy] of each site that was trained since the last event
    """

    def __init__(self, send: Send, rank: int, clock: Callable[[], float] = time.monotonic):
        self._send, self._rank, self._clock = send, rank, clock
        self._sent_at = clock() - _INTERVAL
        self.restart(0)

    def restart(self, round_: int) -> None:
        """Count the steps of `round_` from now on."""
        self._round, self._done = round_, 0
        self._site: int | None = None
        self._site_done = 0
        self._trained: list[tuple[int, float, float]] = []

    def step(self) -> None:
        """Count a local step, or an evaluation batch."""
        self._done += 1
        self._site_done += 1
        self._send.progress()
        if self._clock() - self._sent_at >= _INTERVAL:
            self._report()

    def site_begins(self, site: int) -> None:
        self._site, self._site_done = site, 0

    def site_ends(self, site: int, loss: float, accuracy: float) -> None:
        self._site = None
        self._trained.append((site, loss, accuracy))

    def sites_end(self) -> None:
        if self._trained:
            self._report()

    def _report(self) -> None:
        self._sent_at = self._clock()
        self._send(
            {
                "event": "progress", "worker": self._rank, "round": self._round, "done": self._done, "site": self._site,
                "site_done": self._site_done, "trained": self._trained,
            }
        )  # fmt: skip
        self._trained = []
