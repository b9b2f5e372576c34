"""Being asked to end: by Ctrl-C, by a cluster that takes its machine back, by a closed terminal.

Asked once, a job in training publishes what is complete and ends; asked twice, it ends at once.
"""

import contextlib
import os
import signal
import time
import types
from collections.abc import Iterator

STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# Clusters kill after 30 s, some after 20.
_PUBLISH_GRACE = 10.0  # seconds to publish in
_SHUTDOWN_GRACE = (
    14.0  # seconds in which the records have had their last words, too; the rest of the end takes 4 at most
)
_FORCED_GRACE = 1.0  # seconds for the last words of a user's job who asked twice
_received: list[int] = []
_remote: list[int] = []
_requested_at: list[float] = []  # when the first of all came
_graceful = _deferring = False
wakeup, _wakeup_writer = os.pipe()  # what wakes whoever waits for other things


def install() -> None:
    """Handle the signals from now on, but for those that `nohup` has turned off."""
    os.set_blocking(_wakeup_writer, False)
    for stop in STOPS:
        if signal.getsignal(stop) is not signal.SIG_IGN:
            signal.signal(stop, _receive)


@contextlib.contextmanager
def graceful_stop() -> Iterator[None]:
    """Inside, the first signal is only noted: `stop_requested` tells of it. The second raises `KeyboardInterrupt`, as ever."""
    global _graceful
    _graceful = True
    try:
        yield
    finally:
        _graceful = False


@contextlib.contextmanager
def defer_interrupts() -> Iterator[None]:
    """Inside, nothing interrupts: for what must be done to its end, and takes a moment only."""
    global _deferring
    _deferring = True
    try:
        yield
    finally:
        _deferring = False


def _receive(number: int, frame: types.FrameType | None) -> None:
    _requested_at.append(time.monotonic())
    if number != signal.SIGHUP or number not in _received:  # of a closed terminal the shell tells, and the system, too
        _received.append(number)
    with contextlib.suppress(BlockingIOError):
        os.write(_wakeup_writer, b"!")
    check()


def check() -> None:
    """Raises `KeyboardInterrupt` where it is due. Python loses one that is raised while it runs a finaliser."""
    times = len(_received) or len(_remote[:1])
    if times > int(_graceful) and not _deferring:
        raise KeyboardInterrupt


def stop_requested() -> bool:
    """Whether the job shall end when it can. Takes the wake-up call."""
    if _received:
        with contextlib.suppress(BlockingIOError):
            os.set_blocking(wakeup, False)
            os.read(wakeup, 64)
    return bool(_received or _remote)


def receive_remote(number: int) -> None:
    """Another node was asked to end: it counts as if this one had been, once, whether this one is as well or not."""
    _requested_at.append(time.monotonic())
    _remote.append(number)


def received() -> int:
    """The signal that asked first."""
    return (_received or _remote or [int(signal.SIGINT)])[0]


def grace_period() -> float:
    """Seconds that the end may take: a user who can ask again has all the time."""
    return float("inf") if received() == signal.SIGINT else _PUBLISH_GRACE


def start_shutdown_timer() -> None:
    """The end has begun: what still waits when its time is up is interrupted once more, be it a store or a database."""
    if len(_received) > 1:
        left = _FORCED_GRACE
    elif _requested_at and received() != signal.SIGINT:
        left = max(_FORCED_GRACE, _requested_at[0] + _SHUTDOWN_GRACE - time.monotonic())
    else:
        return
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.setitimer(signal.ITIMER_REAL, left)


def ignore() -> None:
    """From now on, since what is left of the end takes a moment, and must be done."""
    signal.setitimer(signal.ITIMER_REAL, 0)
    for stop in STOPS:
        signal.signal(stop, signal.SIG_IGN)


def exit_status() -> int:
    """The shell's status for an end by signal. Above 128, which clusters take for "start it again"."""
    return 128 + received()
