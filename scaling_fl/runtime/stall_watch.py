"""Notices children that make no progress for long compared with the others, well before they count as hung."""

from collections.abc import Sequence
from typing import Protocol

from scaling_fl.progress import Event

# A child is stalled after ten times the longest pause that was seen in any child: a slow model pauses long between steps
# and isn't stalled. But not before a tenth of `stall_timeout` (a minute by default), and always after half of it.
_LONGEST_PAUSES = 10.0
_EARLIEST, _LATEST = 0.1, 0.5


class Watched(Protocol):
    """What is known of a child (`child_process.Child`)."""

    waiting: bool
    ended: bool
    progress_at: float


class StallWatch:
    """Watches children from the first "progress" event of any of them: before it, they load the model."""

    def __init__(self, children: Sequence[Watched], stall_timeout: float):
        self._children, self._stall_timeout = children, stall_timeout
        self._begun_at: float | None = None
        self._seen = [(child.progress_at, True) for child in children]  # at the last check: progress, and waiting
        self._longest_pause = 0.0
        self._told: set[int] = set()  # children that have been reported, and have made no progress since

    def notice(self, event: Event, now: float) -> None:
        """A child has sent `event`."""
        if self._begun_at is None and event["event"] == "progress":
            self._begun_at = now

    def check(self, now: float) -> list[Event]:
        """A "stalled" event for each child that has stalled since the last check.

        It holds `child`, its index, `seconds` without progress, and `pause`, the longest pause that was seen before.
        """
        for index, child in enumerate(self._children):
            before, waited = self._seen[index]
            if child.progress_at != before and index in self._told:
                self._told.discard(index)
            elif not waited and not child.waiting:  # a reported pause would put off the next report
                self._longest_pause = max(self._longest_pause, child.progress_at - before)
            self._seen[index] = child.progress_at, child.waiting
        if self._begun_at is None:
            return []
        earliest, latest = _EARLIEST * self._stall_timeout, _LATEST * self._stall_timeout
        limit = min(max(earliest, _LONGEST_PAUSES * self._longest_pause), latest)
        events: list[Event] = []
        for index, child in enumerate(self._children):
            seconds = now - max(child.progress_at, self._begun_at)
            if seconds > limit and index not in self._told and not child.waiting and not child.ended:
                self._told.add(index)
                events.append({"event": "stalled", "child": index, "seconds": seconds, "pause": self._longest_pause})
        return events
