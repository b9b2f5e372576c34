"""What signals ask for; whole jobs are stopped in test_stopping.py and tests/scripts."""

import signal
from collections.abc import Callable

import pytest

from scaling_fl.runtime import signals


@pytest.fixture
def receive(monkeypatch: pytest.MonkeyPatch) -> Callable[..., bool]:
    """Receive signals as a job in training does, from the start; returns whether it is interrupted at once."""

    def received(*numbers: int, remote: int = 0, graceful: bool = True) -> bool:
        for name in ("_received", "_remote", "_requested_at"):
            monkeypatch.setattr(signals, name, [])
        monkeypatch.setattr(signals, "_graceful", graceful)
        try:
            for _ in range(remote):
                signals.receive_remote(signal.SIGTERM)
            for number in numbers:
                signals._receive(number, None)
            signals.check()
        except KeyboardInterrupt:
            return True
        finally:
            assert signals.stop_requested() == bool(numbers or remote)
        return False

    return received


@pytest.mark.parametrize(
    ("numbers", "interrupted"),
    [
        ([signal.SIGTERM], False),
        ([signal.SIGTERM, signal.SIGTERM], True),
        ([signal.SIGINT, signal.SIGTERM], True),
        # The shell and the kernel both tell of a terminal that was closed.
        ([signal.SIGHUP, signal.SIGHUP], False),
        ([signal.SIGHUP, signal.SIGHUP, signal.SIGHUP], False),
        ([signal.SIGHUP, signal.SIGINT], True),
        ([signal.SIGINT, signal.SIGHUP], True),
    ],
)
def test_the_first_signal_asks_and_the_second_interrupts(
    receive: Callable[..., bool], numbers: list[int], interrupted: bool
) -> None:
    assert receive(*numbers) == interrupted
    assert signals.exit_status() == 128 + numbers[0]
    assert receive(*numbers, graceful=False), "outside training the first interrupts"


def test_signals_of_other_nodes_count_as_one_and_as_none_beside_an_own(receive: Callable[..., bool]) -> None:
    assert not receive(remote=3)
    assert signals.exit_status() == 128 + signal.SIGTERM
    assert not receive(signal.SIGINT, remote=3)
    assert signals.exit_status() == 128 + signal.SIGINT
    assert receive(remote=1, graceful=False)


def test_saving_has_ten_seconds_after_a_clusters_signal_and_all_the_time_after_ctrl_c(
    receive: Callable[..., bool],
) -> None:
    receive(signal.SIGTERM)
    assert signals.grace_period() == 10
    receive(signal.SIGINT)
    assert signals.grace_period() == float("inf")


@pytest.mark.parametrize(
    ("numbers", "at_once"),
    [
        ([signal.SIGTERM], False), ([signal.SIGTERM, signal.SIGTERM], True), ([signal.SIGINT, signal.SIGINT], True),
        ([signal.SIGHUP, signal.SIGTERM], True), ([signal.SIGINT], None), ([], None),
    ],
)  # fmt: skip
def test_the_shutdown_has_the_rest_of_a_clusters_time_and_a_second_after_a_second_signal(
    receive: Callable[..., bool], monkeypatch: pytest.MonkeyPatch, numbers: list[int], at_once: bool | None
) -> None:
    receive(*numbers)
    timers: list[float] = []
    monkeypatch.setattr(signal, "setitimer", lambda kind, seconds: timers.append(seconds))
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(signals.time, "monotonic", lambda: signals._requested_at[0] + 5)
    signals.start_shutdown_timer()
    assert timers == ([] if at_once is None else [1.0] if at_once else [14.0 - 5])


def test_a_terminal_that_is_told_closed_twice_puts_off_no_end(
    receive: Callable[..., bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    times = iter([100.0, 104.0, 107.0])
    timers: list[float] = []
    with monkeypatch.context() as patched:
        patched.setattr(signals.time, "monotonic", lambda: next(times))
        patched.setattr(signal, "setitimer", lambda kind, seconds: timers.append(seconds))
        patched.setattr(signal, "signal", lambda *_: None)
        assert not receive(signal.SIGHUP, signal.SIGHUP)
        signals.start_shutdown_timer()
    assert timers == [100.0 + 14.0 - 107.0]


def test_signals_that_nohup_ignores_stay_ignored_and_the_end_of_the_shutdown_ignores_all() -> None:
    before, timer = [signal.getsignal(stop) for stop in signals.STOP_SIGNALS], signal.getitimer(signal.ITIMER_REAL)
    try:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signals.install()
        found = [signal.getsignal(stop) for stop in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
        assert found == [signals._receive, signals._receive, signal.SIG_IGN]
        signal.setitimer(signal.ITIMER_REAL, 1000)
        signals.ignore()
        assert [signal.getsignal(stop) for stop in signals.STOP_SIGNALS] == [signal.SIG_IGN] * 3
        assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0), "no time-out interrupts it either"
    finally:
        for stop, handler in zip(signals.STOP_SIGNALS, before, strict=True):
            signal.signal(stop, handler)
        signal.setitimer(signal.ITIMER_REAL, *timer)
