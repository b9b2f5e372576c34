import os
import sys
import threading
import time

import pytest

from scaling_fl.runtime.background import BackgroundWriter


def test_the_caller_continues_while_the_task_runs() -> None:
    writer, go, done = BackgroundWriter(), threading.Event(), []

    def work() -> None:
        assert go.wait(120)
        done.append(threading.current_thread())

    writer.submit(work)
    assert done == [], "the caller continues while the task waits"
    go.set()
    writer.wait()
    assert len(done) == 1
    assert done != [threading.current_thread()]


def test_tasks_never_run_at_the_same_time() -> None:
    writer, running, most_at_once = BackgroundWriter(), 0, 0
    lock = threading.Lock()

    def work() -> None:
        nonlocal running, most_at_once
        with lock:
            running += 1
            most_at_once = max(most_at_once, running)
        threading.Event().wait(0.02)
        with lock:
            running -= 1

    for _ in range(5):
        writer.submit(work)
        assert running <= 1
    writer.wait()
    assert (running, most_at_once) == (0, 1)


@pytest.mark.parametrize("then", ["submit", "wait"])
def test_a_failure_is_raised_once_at_the_next_call(then: str) -> None:
    writer, done = BackgroundWriter(), []

    def fail() -> None:
        raise OSError("the disk is full")

    writer.submit(fail)
    with pytest.raises(OSError, match="the disk is full"):
        writer.wait() if then == "wait" else writer.submit(lambda: done.append(1))
    writer.wait()
    assert done == []


def test_check_raises_a_failure_without_waiting() -> None:
    writer, go = BackgroundWriter(), threading.Event()

    def fail() -> None:
        assert go.wait(120)
        raise OSError("the disk is full")

    writer.check()
    writer.submit(fail)
    writer.check()
    go.set()
    deadline = time.monotonic() + 120
    with pytest.raises(OSError, match="the disk is full"):
        check_until(writer, deadline)


def check_until(writer: BackgroundWriter, deadline: float) -> None:
    while time.monotonic() < deadline:
        writer.check()
        time.sleep(0.01)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has thread priorities")
def test_tasks_have_a_lower_priority_than_the_caller() -> None:
    writer, priorities = BackgroundWriter(), list[int]()
    writer.submit(lambda: priorities.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id())))
    writer.wait()
    assert priorities == [10]
    assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) < 10


def test_two_threads_may_wait_for_the_same_task() -> None:
    """The end of a job, and a stop request that arrives meanwhile: neither may return before the task is done."""
    writer, done = BackgroundWriter(), threading.Event()
    writer.submit(lambda: (time.sleep(0.3), done.set())[1])  # a caller that doesn't wait finds it unset
    first = threading.Thread(target=writer.wait)
    first.start()
    time.sleep(0.05)
    writer.wait()
    assert done.is_set()
    first.join()
