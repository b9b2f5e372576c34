"""Progress reports, and the channel on which a child process sends events to the launcher."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, Protocol

Report = Callable[[str, float, float, str], None]  # the activity, amount done, total amount, unit
Progress = Callable[[float, float, str], None]  # amount done, total amount, unit
Event = dict[str, Any]  # {"event": kind, …}; the kinds are documented where they are sent


def unreported(what: str, done: float, total: float, unit: str) -> None:
    """A `Report` that shows nothing."""


class SiteObserver:
    """Is told which site a worker trains; this one ignores it."""

    def site_begins(self, site: int) -> None:
        """The worker begins to train `site`."""

    def site_ends(self, site: int, loss: float, accuracy: float) -> None:
        """The worker has trained `site`, with these training metrics."""

    def sites_end(self) -> None:
        """The worker has trained its last site of the round."""


class Send(Protocol):
    """A child process's channel to the launcher."""

    on_stop: Callable[[], None]  # called in a thread when the job must stop: publishes the last complete round
    waiting: bool  # whether this child waits for something external, so that no progress is expected

    def __call__(self, event: Event) -> None: ...

    def progress(self) -> None:
        """Signal that this child isn't stuck. Costs next to nothing."""


@contextlib.contextmanager
def waiting(send: Send, enabled: bool = True) -> Iterator[None]:
    """If `enabled`, the child may go without progress inside this context, and isn't taken for hung."""
    send.waiting = enabled
    try:
        yield
    finally:
        send.progress()  # first: a child that no longer waits must have made progress
        send.waiting = False
