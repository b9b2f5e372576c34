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
