"""How those who work for long tell how far they are."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, Protocol

Report = Callable[[str, float, float, str], None]  # what is being done, how much of how much of it, and its unit


def unreported(what: str, done: float, total: float, unit: str) -> None:
    """The `Report` of those who show no progress."""


Event = dict[str, Any]  # {"event": kind, …}; the kinds stand where they are sent


class Send(Protocol):
    """A child's line to the launcher."""

    on_stop: Callable[[], None]  # called in a thread when the job shall end: what is complete is published
    waiting: bool  # for others, who may take long: no progress is expected

    def __call__(self, event: Event) -> None: ...

    def progress(self) -> None:
        """Tell that this child isn't stuck. Costs next to nothing."""


@contextlib.contextmanager
def waiting(send: Send, may: bool = True) -> Iterator[None]:
    """Inside, if it `may`, the child can be long without a word, and doesn't count as hung for that."""
    send.waiting = may
    try:
        yield
    finally:
        send.progress()  # before: who no longer waits must have got on
        send.waiting = False
