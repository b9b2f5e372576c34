import fcntl
import os
from pathlib import Path

import pytest

from scaling_fl import host
from scaling_fl.errors import UserError


def test_a_second_run_of_a_job_or_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with host.job_lock("news", "out"):
        with host.job_lock("other", None):
            pass
        in_use = rf"job_name=news: another run of this job is in progress on this machine, recorded in runs/3 \(process {os.getpid()}\)"
        with pytest.raises(UserError, match=in_use), host.job_lock("news", "x", recorded="runs/3"):
            pass
        writing = rf"checkpoints_dir={os.getcwd()}/out/: another run is writing there"
        with pytest.raises(UserError, match=writing), host.job_lock("other", f"{os.getcwd()}/out/"):
            pass
    with host.job_lock("news", "s3://bucket/out"):
        with host.job_lock("other", "s3://bucket/out2"):
            pass
        with (
            pytest.raises(UserError, match="checkpoints_dir=s3://bucket/out/: another run is writing there"),
            host.job_lock("other", "s3://bucket/out/"),
        ):
            pass
    with host.job_lock("news", "out"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_the_lock_of_a_killed_run_is_taken_over_with_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    left = tmp_path / f"scaling_fl-{os.getuid()}-news.lock"
    left.write_text("4194304")  # the longest number that a process has
    assert not host.is_locked("news")
    with host.job_lock("news", None):
        assert left.read_text() == str(os.getpid())
        assert host.is_locked("news")
    assert not left.exists()


@pytest.mark.parametrize("by_third", [False, True])
def test_a_run_whose_lock_file_the_owner_removes_meanwhile_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by_third: bool
) -> None:
    """A third run may have made another file of that name by then: it and this run would hold locks on two files."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    place, flock = tmp_path / f"scaling_fl-{os.getuid()}-news.lock", fcntl.flock

    def after_the_owner(file: object, how: int) -> None:
        place.rename(tmp_path / "removed")  # rather than unlinked, so that no new file gets its number
        if by_third:
            place.write_text("4194304")
        flock(file, how)  # type: ignore[arg-type]

    monkeypatch.setattr(fcntl, "flock", after_the_owner)
    with pytest.raises(UserError, match="job_name=news: another run of this job"), host.job_lock("news", None):
        pass
    assert place.exists() == by_third, "the file of the third run stays"


def test_a_folder_is_the_same_with_the_home_folder_abbreviated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    refused = pytest.raises(UserError, match="another run is writing there")
    with host.job_lock("news", "~/out"), refused, host.job_lock("other", str(tmp_path / "out")):
        pass


@pytest.mark.parametrize(
    ("limit", "available", "free"),
    [("7000000", 8000, 5_500_000), ("max", 8000, 8_192_000), ("7000000", 5000, 5_120_000)],
)
def test_free_memory_is_what_both_the_machine_and_the_container_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, available: int, free: int
) -> None:
    """Of the 3,000,000 bytes in use, 1,500,000 are files that nobody has open, which make room."""
    group = tmp_path / "sys/fs/cgroup"
    group.mkdir(parents=True)
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text(f"MemTotal:       16000 kB\nMemFree: 1 kB\nMemAvailable:   {available} kB\n")
    (group / "memory.stat").write_text("anon 1500000\ninactive_file 1500000\nactive_file 0\n")
    (group / "memory.current").write_text("3000000\n")
    (group / "memory.max").write_text(f"{limit}\n")
    monkeypatch.setattr(host, "Path", lambda path: tmp_path / path.lstrip("/"))
    assert host.free_memory() == free


def test_leftovers_of_a_killed_launcher_are_removed_but_not_folders_in_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    left, foreign = tmp_path / "scaling_fl-left", tmp_path / "scaling_fl-1-job.lock"
    left.mkdir()
    (left / "lock").write_text("")
    foreign.write_text("")
    with host.work_folder() as first, host.work_folder() as second:
        assert not left.exists()
        assert sorted(map(str, tmp_path.iterdir())) == sorted([first, second, str(foreign)])
    assert list(tmp_path.iterdir()) == [foreign]


def test_the_work_folder_is_removed_with_the_job() -> None:
    def interrupted() -> None:
        with host.work_folder() as folder:
            folders.append(Path(folder))
            (folders[0] / "x").write_text("y")
            raise KeyboardInterrupt

    folders: list[Path] = []
    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not folders[0].exists()


def test_a_user_without_a_home_folder_is_refused_unless_the_cache_is_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 2**31 - 5)  # has no entry in /etc/passwd
    monkeypatch.setenv("XDG_CACHE_HOME", "/elsewhere")
    assert host.cache_folder() == Path("/elsewhere/scaling_fl")
    monkeypatch.delenv("XDG_CACHE_HOME")
    with pytest.raises(UserError, match="HOME: not set, and user 2147483643 has no entry in /etc/passwd; set HOME to"):
        host.cache_folder()


def test_a_limit_that_the_system_does_not_tell_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither on another system than Linux; nor that of the container, by version 1 of control groups, for one."""
    monkeypatch.setattr(host, "Path", lambda path: tmp_path / path.lstrip("/"))
    assert host.free_memory() == float("inf")
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemAvailable:   5000 kB\n")
    assert host.free_memory() == 5_120_000
    group = tmp_path / "sys/fs/cgroup"
    group.mkdir(parents=True)
    for name, content in (("memory.stat", "anon 1\n"), ("memory.current", "9\n"), ("memory.max", "10\n")):
        (group / name).write_text(content)
    assert host.free_memory() == 5_120_000


def test_the_most_similar_name_in_the_folder_or_among_those_that_are_known_is_proposed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "Train.csv").touch()
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for path, meant in (
        ("train.csv", "Train.csv"), ("~/trian.csv", "~/Train.csv"), (f"{tmp_path}/Train.cvs/", f"{tmp_path}/Train.csv"),
        ("PAPERS", "paper"),
    ):  # fmt: skip
        assert host.did_you_mean(path, ["demo", "paper"]) == f" (did you mean {meant}?)"
    for path in ("zzz", "Train.csv", "none/train.csv", "s3://lab/train.csv", "a\0/b"):
        assert host.did_you_mean(path, ["demo", "paper"]) == ""
