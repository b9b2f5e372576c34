"""Stop signals: Ctrl-C, a cluster that reclaims the machine (SIGTERM), a closed terminal (SIGHUP).

At the first signal, a job in training saves the last complete round and ends. At the second, it ends at once.
"""

import atexit
import contextlib
import os
import signal
import time
import types
from collections.abc import Callable, Iterator

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# Clusters kill 20 to 30 s after SIGTERM.
_SAVE_GRACE = 10.0  # seconds for saving
_SHUTDOWN_GRACE = 14.0  # seconds for saving and the last records; the remaining shutdown takes at most 4
_FORCED_GRACE = 1.0  # seconds for the last records after a second signal
_received: list[int] = []
_remote: list[int] = []
_requested_at: list[float] = []  # times of all stop requests
_graceful = _deferring = False
wakeup, _wakeup_writer = os.pipe()  # wakes the launcher while it waits for its children


def exit_at_once() -> None:
    """End the command in one line at a stop signal, until `install`.

    Nothing has been written by then, and an exception in the middle of an import would leave it with a long traceback.
    """
    _handle_with(_exit)


def install() -> None:
    """Handle the stop signals from now on, except those that `nohup` ignores."""
    os.set_blocking(_wakeup_writer, False)
    _handle_with(_receive)


def _handle_with(handler: Callable[[int, types.FrameType | None], None]) -> None:
    for stop in STOP_SIGNALS:
        if signal.getsignal(stop) is not signal.SIG_IGN:
            signal.signal(stop, handler)


def _exit(number: int, frame: types.FrameType | None) -> None:
    ignore()
    with contextlib.suppress(OSError):  # the terminal is closed
        os.write(2, b"interrupted\n")
    with contextlib.suppress(BaseException):
        atexit._run_exitfuncs()  # removes temporary files
    os._exit(128 + number)


@contextlib.contextmanager
def graceful_stop() -> Iterator[None]:
    """Inside, the first signal only makes `stop_requested` true. The second raises `KeyboardInterrupt`."""
    global _graceful
    _graceful = True
    try:
        yield
    finally:
        _graceful = False


@contextlib.contextmanager
def defer_interrupts() -> Iterator[None]:
    """Inside, no signal raises: for short work that must be completed."""
    global _deferring
    _deferring = True
    try:
        yield
    finally:
        _deferring = False


def _receive(number: int, frame: types.FrameType | None) -> None:
    _requested_at.append(time.monotonic())
    if number != signal.SIGHUP or number not in _received:  # the shell and the kernel both signal a closed terminal
        _received.append(number)
    with contextlib.suppress(BlockingIOError):
        os.write(_wakeup_writer, b"!")
    check()


def check() -> None:
    """Raises `KeyboardInterrupt` if it is due. Needed because Python drops one raised inside a finaliser."""
    times = len(_received) or len(_remote[:1])
    if times > int(_graceful) and not _deferring:
        raise KeyboardInterrupt


def stop_requested() -> bool:
    """Whether the job was asked to stop. Clears `wakeup`."""
    if _received:
        with contextlib.suppress(BlockingIOError):
            os.set_blocking(wakeup, False)
            os.read(wakeup, 64)
    return bool(_received or _remote)


def receive_remote(number: int) -> None:
    """Record another node's signal. All remote signals count as one, and as none if this node received its own."""
    _requested_at.append(time.monotonic())
    _remote.append(number)


def received() -> int:
    """The signal that arrived first."""
    return (_received or _remote or [int(signal.SIGINT)])[0]


def grace_period() -> float:
    """Seconds that saving may take; unlimited after Ctrl-C, which the user can repeat."""
    return float("inf") if received() == signal.SIGINT else _SAVE_GRACE


def start_shutdown_timer() -> None:
    """Interrupt the shutdown again when its time is up, so that no unreachable store or database holds it up."""
    if len(_received) > 1:
        left = _FORCED_GRACE
    elif _requested_at and received() != signal.SIGINT:
        left = max(_FORCED_GRACE, _requested_at[0] + _SHUTDOWN_GRACE - time.monotonic())
    else:
        return
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.setitimer(signal.ITIMER_REAL, left)


def ignore() -> None:
    """Ignore all stop signals from now on: the rest of the shutdown is short and must be completed."""
    signal.setitimer(signal.ITIMER_REAL, 0)
    for stop in STOP_SIGNALS:
        signal.signal(stop, signal.SIG_IGN)


def exit_status() -> int:
    """The shell's exit status for death by signal: above 128, so that clusters restart the job."""
    return 128 + received()
