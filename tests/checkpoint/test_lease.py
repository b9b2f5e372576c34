import json
import time
import types
from pathlib import Path

import pytest

from scaling_fl.checkpoint import lease as lease_module
from scaling_fl.checkpoint.lease import FILE, Lease
from scaling_fl.checkpoint.store import Checkpoints
from scaling_fl.errors import UserError
from tests.conftest import ObjectStore


def elsewhere(folder: Path, age: float, now: float | None = None) -> dict[str, object]:
    """The lease of a run on another machine, renewed `age` seconds ago."""
    folder.mkdir(exist_ok=True)
    content = {"host": "far", "process": 7, "place": "far 0:0", "token": "t", "time": (now or time.time()) - age}
    (folder / FILE).write_text(json.dumps(content))
    return content


def test_a_lease_is_renewed_and_goes_with_its_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease_module, "_RENEWAL", 0.05)
    lease = Lease(Checkpoints(str(tmp_path)), "news")
    lease.check(pytest.fail)
    lease.take()
    first = json.loads((tmp_path / FILE).read_text())
    deadline = time.monotonic() + 120
    while json.loads((tmp_path / FILE).read_text())["time"] == first["time"] and time.monotonic() < deadline:
        time.sleep(0.01)
    assert json.loads((tmp_path / FILE).read_text())["time"] > first["time"]
    lease.confirm()
    lease.runs = lambda: "runs/4"
    while json.loads((tmp_path / FILE).read_text())["runs"] != "runs/4" and time.monotonic() < deadline:
        time.sleep(0.01)
    assert json.loads((tmp_path / FILE).read_text())["runs"] == "runs/4"
    lease.release()
    assert list(tmp_path.iterdir()) == []


def test_a_killed_run_of_this_machine_is_not_waited_for(tmp_path: Path) -> None:
    killed = Lease(Checkpoints(str(tmp_path)), "news")
    killed._write()
    Lease(Checkpoints(str(tmp_path)), "news").check(pytest.fail)


def test_a_dead_run_elsewhere_is_waited_for_until_its_lease_runs_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.time()  # and it stands, but for the naps

    def nap(seconds: float) -> None:
        nonlocal now
        now += seconds

    monkeypatch.setattr(lease_module, "SECONDS", 3.0)
    clock = types.SimpleNamespace(time=lambda: now, monotonic=lambda: now, sleep=nap)
    monkeypatch.setattr(lease_module, "time", clock)
    said: list[str] = []
    elsewhere(tmp_path, age=5.0, now=now)
    Lease(Checkpoints(str(tmp_path)), "news").check(pytest.fail)
    for age, waits in ((1.0, 2), (-3600.0, 3)):  # an hour in the future: its clock is wrong
        elsewhere(tmp_path, age, now)
        began = now
        Lease(Checkpoints(str(tmp_path)), "news").check(said.append)
        assert now - began == pytest.approx(waits)
    assert said[0].startswith("job news: a run on far was alive 1 s ago; waiting for up to 2 s for a sign of it")
    assert len(said) == 2


def test_a_run_that_is_alive_elsewhere_keeps_others_out(tmp_path: Path) -> None:
    elsewhere(tmp_path, age=1.0)

    def renew(text: str) -> None:
        elsewhere(tmp_path, age=0.0)

    with pytest.raises(UserError, match=r"a run on far \(process 7\) is alive and writes there; wait for its end"):
        Lease(Checkpoints(str(tmp_path)), "news").check(renew)


@pytest.mark.parametrize(
    "content",
    ['{"host": "x"}', "[1]", "5", "", "no JSON", "null", "[" * 100_000]
    + [
        json.dumps({"host": "far", "process": 7, "place": "far 0:0", "token": "t", "time": time} | other)
        for time, other in (("now", {}), (float("nan"), {}), (10**400, {}), (1.0, {"place": 3}), (1.0, {"token": None}))
    ],
)
def test_a_file_that_is_no_lease_is_named_and_stays(tmp_path: Path, content: str) -> None:
    (tmp_path / FILE).write_text(content)
    with pytest.raises(
        UserError, match=rf"{tmp_path}/lease\.json: it should say .* remove the file, or choose another"
    ):
        Lease(Checkpoints(str(tmp_path)), "news").check(pytest.fail)
    assert (tmp_path / FILE).read_text() == content


def test_a_run_that_was_taken_over_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease_module, "_RENEWAL", 0.05)
    lease = Lease(Checkpoints(str(tmp_path)), "news")
    lease.take()
    theirs = elsewhere(tmp_path, age=0.0)
    deadline = time.monotonic() + 120
    while lease.taken_by is None and time.monotonic() < deadline:
        if json.loads((tmp_path / FILE).read_text()) != theirs:  # a renewal under way came last
            theirs = elsewhere(tmp_path, age=0.0)
        time.sleep(0.01)
    with pytest.raises(UserError, match="a run on far has taken over"):
        lease.confirm()
    lease.release()
    assert json.loads((tmp_path / FILE).read_text()) == theirs, "it is theirs"


def test_a_run_that_was_taken_over_touches_nothing_even_before_it_knows(tmp_path: Path) -> None:
    lease = Lease(Checkpoints(str(tmp_path)), "news")
    lease.take()
    theirs = elsewhere(tmp_path, age=0.0)
    (tmp_path / ".partial-theirs").touch()
    lease.release()
    assert json.loads((tmp_path / FILE).read_text()) == theirs
    assert (tmp_path / ".partial-theirs").exists()


def test_a_store_that_is_away_at_the_end_is_no_failure(tmp_path: Path) -> None:
    lease = Lease(Checkpoints(str(tmp_path / "c")), "news")
    (tmp_path / "c").mkdir()
    lease.take()
    (tmp_path / "c" / FILE).unlink()
    (tmp_path / "c").rmdir()
    (tmp_path / "c").touch()
    lease.release()


def test_a_lease_lives_in_an_object_store(object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in object_store.environ.items():
        monkeypatch.setenv(name, value)
    place = Checkpoints(f"{object_store.bucket}/jobs/news")
    lease = Lease(place, "news")
    lease.check(pytest.fail)
    lease.take()
    assert place.read_json(FILE)["process"] == lease._mine["process"]
    lease.release()
    assert place.read_json(FILE) is None
