"""A background writer: one thread, one task at a time, and every failure is raised."""

import contextlib
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor


class BackgroundWriter:
    """Runs one task in a thread while the caller continues.

    Submitting the next task waits for the previous one, and raises its error if it failed.
    """

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(max_workers=1, initializer=_lower_priority)
        self._last: Future[None] | None = None

    def submit(self, work: Callable[[], None]) -> None:
        """Start `work` after the previous task has ended. Raises the previous task's error."""
        self.wait()
        self._last = self._executor.submit(work)

    def check(self) -> None:
        """Raise the last task's error if it has already failed."""
        last = self._last
        if last is not None and last.done():
            self.wait()

    def wait(self) -> None:
        """Wait until the last task has ended. Raises its error."""
        last = self._last
        try:
            if last is not None:
                last.result()
        finally:
            if self._last is last:  # only now, because another thread may be waiting for it too
                self._last = None


def _lower_priority() -> None:
    """Give training precedence on a shared core. On Linux, priorities apply to single threads."""
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)
