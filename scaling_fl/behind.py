"""Work behind the rounds: one thread, one thing at a time, and no failure goes unseen."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor


class Behind:
    """Does one thing in a thread while the caller goes on.

    Whoever wants the next thing done waits until the last one has ended, and gets its error if it failed.
    """

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(max_workers=1)
        self._last: Future[None] | None = None

    def do(self, work: Callable[[], None]) -> None:
        """Begin `work` once the last one has ended. Raises the last one's error."""
        self.wait()
        self._last = self._threads.submit(work)

    def wait(self) -> None:
        """Until the last work has ended. Raises its error."""
        last = self._last
        try:
            if last is not None:
                last.result()
        finally:
            if self._last is last:  # only now: another thread may wait for it as well
                self._last = None
