import json
import os
import socket
import tempfile
import threading
import time
import types
from pathlib import Path

import pytest

from scaling_fl.checkpoint import lease as lease_module
from scaling_fl.checkpoint.lease import FILE, Lease
from scaling_fl.checkpoint.store import CheckpointStore
from scaling_fl.errors import UserError
from tests.conftest import ObjectStore


def write_other_lease(folder: Path, age: float, now: float | None = None) -> dict[str, object]:
    """Write the lease of a run on another machine, renewed `age` seconds ago."""
    folder.mkdir(exist_ok=True)
    content = {"host": "far", "process": 7, "place": "far 0:0", "token": "t", "time": (now or time.time()) - age}
    (folder / FILE).write_text(json.dumps(content))
    return content


def test_a_lease_is_renewed_until_its_run_releases_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease_module, "_RENEWAL_INTERVAL", 0.05)
    lease = Lease(CheckpointStore(str(tmp_path)), "news")
    lease.wait_until_free(pytest.fail)
    lease.acquire()
    first = json.loads((tmp_path / FILE).read_text())
    deadline = time.monotonic() + 120
    while json.loads((tmp_path / FILE).read_text())["time"] == first["time"] and time.monotonic() < deadline:
        time.sleep(0.01)
    assert json.loads((tmp_path / FILE).read_text())["time"] > first["time"]
    lease.ensure_held()
    lease.runs = lambda: "runs/4"
    while json.loads((tmp_path / FILE).read_text())["runs"] != "runs/4" and time.monotonic() < deadline:
        time.sleep(0.01)
    assert json.loads((tmp_path / FILE).read_text())["runs"] == "runs/4"
    (tmp_path / ".partial-file").touch()
    (tmp_path / ".partial-folder").mkdir()
    lease.release()
    assert list(tmp_path.iterdir()) == [], "nor is anything left that was not finished"


def test_a_lease_is_renewed_again_once_the_store_can_be_reached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise another run would take over from one that is alive."""
    monkeypatch.setattr(lease_module, "_RENEWAL_INTERVAL", 0.01)
    lease, failures, renewed = Lease(CheckpointStore(str(tmp_path)), "news"), list[str](), threading.Event()
    write = lease._storage.write_json

    def write_later(name: str, value: object) -> None:
        if len(failures) < 3:
            failures.append(name)
            raise UserError("no route to host")
        write(name, value)
        renewed.set()

    lease.acquire()
    monkeypatch.setattr(lease._storage, "write_json", write_later)
    assert renewed.wait(120)
    assert failures == [FILE] * 3
    lease.ensure_held()
    lease.release()
    assert list(tmp_path.iterdir()) == []


def test_a_renewal_in_progress_ends_before_the_lease_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise it would write the lease again, and the next run would wait for a run that has ended."""
    monkeypatch.setattr(lease_module, "_RENEWAL_INTERVAL", 0.01)
    monkeypatch.setattr(lease_module, "_RELEASE_TIMEOUT", 0.1)
    lease, steps, threads = Lease(CheckpointStore(str(tmp_path)), "news"), list[str](), set(threading.enumerate())
    begun, may_end, write = threading.Event(), threading.Event(), lease._write

    def renew() -> None:
        begun.set()
        may_end.wait(120)
        write()
        steps.append("renewed")

    lease.acquire()
    monkeypatch.setattr(lease, "_write", renew)
    monkeypatch.setattr(lease._storage, "remove", lambda name: steps.append(f"removed {name}"))
    assert begun.wait(120)
    lease.release()
    assert steps == [], "the job doesn't wait for the store"
    assert all(thread.daemon for thread in set(threading.enumerate()) - threads), "nor does its process"
    may_end.set()
    deadline = time.monotonic() + 120
    while len(steps) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert steps == ["renewed", f"removed {FILE}"]


def test_a_killed_run_on_this_machine_is_not_waited_for(tmp_path: Path) -> None:
    killed = Lease(CheckpointStore(str(tmp_path)), "news")
    killed._write()
    Lease(CheckpointStore(str(tmp_path)), "news").wait_until_free(pytest.fail)


def test_a_dead_run_on_another_machine_is_waited_for_until_its_lease_expires(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.time()  # of a clock that advances only while the lease sleeps

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds

    monkeypatch.setattr(lease_module, "DURATION", 3.0)
    clock = types.SimpleNamespace(time=lambda: now, monotonic=lambda: now, sleep=sleep)
    monkeypatch.setattr(lease_module, "time", clock)
    messages: list[str] = []
    for age in (5.0, 3.0):
        write_other_lease(tmp_path, age, now)
        Lease(CheckpointStore(str(tmp_path)), "news").wait_until_free(pytest.fail)
    for age, wait in ((1.0, 2), (-3600.0, 3)):  # -3600: the other clock is an hour fast
        write_other_lease(tmp_path, age, now)
        start = now
        Lease(CheckpointStore(str(tmp_path)), "news").wait_until_free(messages.append)
        assert now - start == pytest.approx(wait)
    assert messages[0].startswith(
        "job news: a run on far renewed its lease 1 s ago; waiting up to 2 s for its next heartbeat"
    )
    assert messages[1].startswith("job news: a run on far renewed its lease 0 s ago; waiting up to 3 s")
    assert len(messages) == 2


@pytest.mark.parametrize(
    ("age", "live"),
    [(0.0, True), (29.0, True), (30.0, False), (-29.0, True), (-3600.0, False)],  # below 0: the other clock is fast
)
def test_a_run_elsewhere_is_live_as_long_as_it_renews_its_lease(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, age: float, live: bool
) -> None:
    now = time.time()
    monkeypatch.setattr(lease_module, "time", types.SimpleNamespace(time=lambda: now))
    lease = Lease(CheckpointStore(str(tmp_path)), "news")
    assert not lease.is_live_elsewhere()
    content = write_other_lease(tmp_path, age, now)
    assert lease.is_live_elsewhere() == live
    (tmp_path / FILE).write_text(json.dumps(content | {"place": lease._identity["place"]}))
    assert not lease.is_live_elsewhere(), "it is on this machine, where lock files tell"


def test_a_live_run_on_another_machine_keeps_a_second_run_out(tmp_path: Path) -> None:
    write_other_lease(tmp_path, age=1.0)

    def renew(text: str) -> None:
        (tmp_path / FILE).write_text(json.dumps(write_other_lease(tmp_path, age=0.0) | {"runs": "runs/4"}))

    message = r"a run on far \(process 7, recorded in runs/4\) is still writing to it; wait for it to end"
    with pytest.raises(UserError, match=message):
        Lease(CheckpointStore(str(tmp_path)), "news").wait_until_free(renew)


def test_a_run_that_ends_is_waited_for_no_longer(tmp_path: Path) -> None:
    write_other_lease(tmp_path, age=1.0)
    waiting: list[str] = []

    def end(text: str) -> None:
        waiting.append(text)
        (tmp_path / FILE).unlink()

    Lease(CheckpointStore(str(tmp_path)), "news").wait_until_free(end)
    assert len(waiting) == 1


def test_runs_that_do_not_see_each_others_lock_files_are_in_different_places(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lock files are in the machine's temporary folder, and each user has their own."""
    user, places = os.getuid(), {lease_module._lock_scope(), lease_module._lock_scope()}
    assert len(places) == 1
    for owner, name, other in (
        (os, "getuid", lambda: user + 1),
        (tempfile, "gettempdir", lambda: str(tmp_path)),
        (socket, "gethostname", lambda: "far"),
        (Path, "read_text", lambda path: "another boot"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, other)
            places.add(lease_module._lock_scope())
    assert len(places) == 5


@pytest.mark.parametrize(
    "content",
    ['{"host": "x"}', "[1]", "5", "", "no JSON", "null", "[" * 100_000]
    + [
        json.dumps({"host": "far", "process": 7, "place": "far 0:0", "token": "t", "time": time} | other)
        for time, other in (
            ("now", {}),
            (float("nan"), {}),
            (10**400, {}),
            (1e12, {}),
            (-1e12, {}),
            (1.0, {"place": 3}),
            (1.0, {"token": None}),
        )
    ],
)
def test_a_file_that_is_not_a_lease_is_named_and_left_alone(tmp_path: Path, content: str) -> None:
    (tmp_path / FILE).write_text(content)
    with pytest.raises(
        UserError,
        match=rf"{tmp_path}/lease\.json: the file is not a lease; expected .* remove the file, or choose another",
    ):
        Lease(CheckpointStore(str(tmp_path)), "news").wait_until_free(pytest.fail)
    assert (tmp_path / FILE).read_text() == content


def test_a_run_ends_after_another_has_taken_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease_module, "_RENEWAL_INTERVAL", 0.05)
    lease = Lease(CheckpointStore(str(tmp_path)), "news")
    lease.acquire()
    theirs = write_other_lease(tmp_path, age=0.0)
    deadline = time.monotonic() + 120
    while lease.taken_over_by is None and time.monotonic() < deadline:
        if json.loads((tmp_path / FILE).read_text()) != theirs:  # a renewal in progress overwrote it
            theirs = write_other_lease(tmp_path, age=0.0)
        time.sleep(0.01)
    with pytest.raises(UserError, match="a run on far has taken over"):
        lease.ensure_held()
    lease.release()
    assert json.loads((tmp_path / FILE).read_text()) == theirs, "the lease is still theirs"


def test_of_two_runs_that_prepare_at_once_one_acquires_the_lease(tmp_path: Path) -> None:
    lease = Lease(CheckpointStore(str(tmp_path)), "news")
    lease.wait_until_free(pytest.fail)
    other = write_other_lease(tmp_path, 1)
    with pytest.raises(UserError, match=r"a run on far \(process 7\) has meanwhile begun to write to it; wait for it"):
        lease.acquire()
    assert json.loads((tmp_path / FILE).read_text()) == other
    write_other_lease(tmp_path, lease_module.DURATION)  # it has died since
    lease.acquire()
    lease.release()
    assert list(tmp_path.iterdir()) == []


def test_a_dead_run_whose_clock_is_fast_is_not_taken_for_a_live_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_other_lease(tmp_path, -20)
    lease = Lease(CheckpointStore(str(tmp_path)), "news")
    monkeypatch.setattr(lease_module, "DURATION", 0.1)
    lease.wait_until_free(lambda line: None)
    monkeypatch.undo()
    lease.acquire()
    lease.release()


def test_a_run_that_has_not_noticed_the_takeover_removes_nothing(tmp_path: Path) -> None:
    lease = Lease(CheckpointStore(str(tmp_path)), "news")
    lease.acquire()
    theirs = write_other_lease(tmp_path, age=0.0)
    (tmp_path / ".partial-theirs").touch()
    lease.release()
    assert json.loads((tmp_path / FILE).read_text()) == theirs
    assert (tmp_path / ".partial-theirs").exists()


def test_releasing_in_an_unreachable_store_does_not_fail(tmp_path: Path) -> None:
    lease = Lease(CheckpointStore(str(tmp_path / "c")), "news")
    (tmp_path / "c").mkdir()
    lease.acquire()
    (tmp_path / "c" / FILE).unlink()
    (tmp_path / "c").rmdir()
    (tmp_path / "c").touch()
    lease.release()


def test_a_lease_works_in_an_object_store(object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in object_store.environ.items():
        monkeypatch.setenv(name, value)
    checkpoints = CheckpointStore(f"{object_store.bucket}/jobs/news")
    lease = Lease(checkpoints, "news")
    lease.wait_until_free(pytest.fail)
    lease.acquire()
    assert checkpoints.read_json(FILE)["process"] == lease._identity["process"]
    lease.release()
    assert checkpoints.read_json(FILE) is None
