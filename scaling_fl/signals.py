"""Being asked to end: by Ctrl-C, by a cluster that takes its machine back, by a closed terminal.

Asked once, a job in training publishes what is complete and ends; asked twice, it ends at once.
"""

import contextlib
import os
import signal
import types
from collections.abc import Iterator

STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_PREEMPTION = 10.0  # seconds to publish in; clusters kill after 30, some after 20
_received: list[int] = []
_passed_on: list[int] = []
_asks_first = _defers = False
wakeup, _alarm = os.pipe()  # what wakes whoever waits for other things


def install() -> None:
    """Handle the signals from now on, but for those that `nohup` has turned off."""
    os.set_blocking(_alarm, False)
    for stop in STOPS:
        if signal.getsignal(stop) is not signal.SIG_IGN:
            signal.signal(stop, _receive)


@contextlib.contextmanager
def asking_first() -> Iterator[None]:
    """Inside, the first signal is only noted: `asked` tells of it. The second raises `KeyboardInterrupt`, as ever."""
    global _asks_first
    _asks_first = True
    try:
        yield
    finally:
        _asks_first = False


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """Inside, nothing interrupts: for what must be done to its end, and takes a moment only."""
    global _defers
    _defers = True
    try:
        yield
    finally:
        _defers = False


def _receive(number: int, frame: types.FrameType | None) -> None:
    if number != signal.SIGHUP or number not in _received:  # of a closed terminal the shell tells, and the system, too
        _received.append(number)
    with contextlib.suppress(BlockingIOError):
        os.write(_alarm, b"!")
    check()


def check() -> None:
    """Raises `KeyboardInterrupt` where it is due. Python loses one that is raised while it runs a finaliser."""
    times = len(_received) or len(_passed_on[:1])
    if times > int(_asks_first) and not _defers:
        raise KeyboardInterrupt


def asked() -> bool:
    """Whether the job shall end when it can. Takes the wake-up call."""
    if _received:
        with contextlib.suppress(BlockingIOError):
            os.set_blocking(wakeup, False)
            os.read(wakeup, 64)
    return bool(_received or _passed_on)


def pass_on(number: int) -> None:
    """Another node was asked to end: it counts as if this one had been, once, whether this one is as well or not."""
    _passed_on.append(number)


def received() -> int:
    """The signal that asked first."""
    return (_received or _passed_on or [int(signal.SIGINT)])[0]


def patience() -> float:
    """Seconds that the end may take: a user who can ask again has all the time."""
    return float("inf") if received() == signal.SIGINT else _PREEMPTION


def exit_status() -> int:
    """The shell's status for an end by signal. Above 128, which clusters take for "start it again"."""
    return 128 + received()
