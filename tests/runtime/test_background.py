import os
import sys
import threading
import time

import pytest

from scaling_fl.runtime.background import BackgroundWriter


def test_the_caller_goes_on_while_the_work_is_done() -> None:
    behind, go, done = BackgroundWriter(), threading.Event(), []

    def work() -> None:
        assert go.wait(120)
        done.append(threading.current_thread())

    behind.submit(work)
    assert done == [], "the caller continues while the work waits"
    go.set()
    behind.wait()
    assert len(done) == 1
    assert done != [threading.current_thread()]


def test_tasks_never_run_at_the_same_time() -> None:
    behind, running, most = BackgroundWriter(), 0, 0
    lock = threading.Lock()

    def work() -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        threading.Event().wait(0.02)
        with lock:
            running -= 1

    for _ in range(5):
        behind.submit(work)
        assert running <= 1
    behind.wait()
    assert (running, most) == (0, 1)


@pytest.mark.parametrize("then", ["do", "wait"])
def test_a_failure_is_raised_once_at_the_next_call(then: str) -> None:
    behind, done = BackgroundWriter(), []

    def fail() -> None:
        raise OSError("the disk is full")

    behind.submit(fail)
    with pytest.raises(OSError, match="the disk is full"):
        behind.wait() if then == "wait" else behind.submit(lambda: done.append(1))
    behind.wait()
    assert done == []


def test_check_raises_a_failure_without_waiting() -> None:
    behind, go = BackgroundWriter(), threading.Event()

    def fail() -> None:
        assert go.wait(120)
        raise OSError("the disk is full")

    behind.check()
    behind.submit(fail)
    behind.check()
    go.set()
    deadline = time.monotonic() + 120
    with pytest.raises(OSError, match="the disk is full"):
        asked_until(behind, deadline)


def asked_until(behind: BackgroundWriter, deadline: float) -> None:
    while time.monotonic() < deadline:
        behind.check()
        time.sleep(0.01)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has thread priorities")
def test_the_work_gives_way_to_the_caller() -> None:
    behind, found = BackgroundWriter(), list[int]()
    behind.submit(lambda: found.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id())))
    behind.wait()
    assert found == [10]
    assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) < 10


def test_two_threads_may_wait_for_the_same_task() -> None:
    """The end of a job and a stop request during it: neither may return before the task is done."""
    behind, done = BackgroundWriter(), threading.Event()
    behind.submit(lambda: (time.sleep(0.3), done.set())[1])  # if nobody waits, it is hardly done
    first = threading.Thread(target=behind.wait)
    first.start()
    time.sleep(0.05)
    behind.wait()
    assert done.is_set()
    first.join()
