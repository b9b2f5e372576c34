"""Work behind the rounds: one thread, one thing at a time, and no failure goes unseen."""

import contextlib
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor


class BackgroundWriter:
    """Does one thing in a thread while the caller goes on.

    Whoever wants the next thing done waits until the last one has ended, and gets its error if it failed.
    """

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(max_workers=1, initializer=_lower_priority)
        self._last: Future[None] | None = None

    def submit(self, work: Callable[[], None]) -> None:
        """Begin `work` once the last one has ended. Raises the last one's error."""
        self.wait()
        self._last = self._executor.submit(work)

    def check(self) -> None:
        """Raises the last work's error if it has failed already."""
        last = self._last
        if last is not None and last.done():
            self.wait()

    def wait(self) -> None:
        """Until the last work has ended. Raises its error."""
        last = self._last
        try:
            if last is not None:
                last.result()
        finally:
            if self._last is last:  # only now: another thread may wait for it as well
                self._last = None


def _lower_priority() -> None:
    """Let training have the core where both want it: on Linux priorities are those of threads."""
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)
