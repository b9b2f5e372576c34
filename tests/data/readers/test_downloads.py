"""Downloads from a real HTTP server that breaks connections, ignores ranges, or serves the wrong file."""

import hashlib
import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from scaling_fl.data.readers import downloads
from scaling_fl.errors import UserError
from scaling_fl.progress import unreported
from tests.data.conftest import CONTENT, MD5, Server


def fetch(server: Server, md5: str = MD5, report: Callable[..., None] = unreported) -> Path:
    return downloads.cached(server.url, md5, "write train_path=…", report)


def part(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "scaling_fl" / "file.bin.part"


def test_a_file_is_downloaded_once_with_progress(server: Server, tmp_path: Path) -> None:
    seen: list[tuple[Any, ...]] = []
    server.pause = 0.2
    path = fetch(server, report=lambda *a: seen.append(a))
    assert path == tmp_path / "cache" / "scaling_fl" / "file.bin"
    assert path.read_bytes() == CONTENT
    assert {(what, total, unit) for what, _, total, unit in seen} >= {("downloading file.bin", 30.0, "MB")}
    assert [done for _, done, _, _ in seen] == sorted(done for _, done, _, _ in seen)
    assert seen[-1][1] == 30.0
    assert fetch(server) == path
    assert server.requests == [0]
    assert not part(tmp_path).exists()


def test_a_broken_connection_resumes_where_it_stopped(server: Server) -> None:
    server.cuts = [12_000_000, 7_000_000]
    assert fetch(server).read_bytes() == CONTENT
    assert server.requests[0] == 0
    assert len(server.requests) == 3
    assert 11_900_000 < server.requests[1] <= 12_000_000
    assert 18_900_000 < server.requests[2] <= 19_000_000


def test_a_later_run_resumes_where_the_last_one_stopped(server: Server, tmp_path: Path) -> None:
    part(tmp_path).parent.mkdir(parents=True)
    part(tmp_path).write_bytes(CONTENT[:20_000_000])
    seen: list[float] = []
    assert fetch(server, report=lambda what, done, total, unit: seen.extend([done, total])).read_bytes() == CONTENT
    assert server.requests == [20_000_000]
    assert min(seen) > 20
    assert max(seen) == 30


def test_a_server_without_range_support_sends_everything_again(server: Server, tmp_path: Path) -> None:
    server.ranges = False
    part(tmp_path).parent.mkdir(parents=True)
    part(tmp_path).write_bytes(CONTENT[:20_000_000])
    seen: list[float] = []
    assert fetch(server, report=lambda what, done, total, unit: seen.extend([done, total])).read_bytes() == CONTENT
    assert server.requests == [0]
    assert max(seen) == 30


def test_a_complete_part_needs_no_server(server: Server, tmp_path: Path) -> None:
    part(tmp_path).parent.mkdir(parents=True)
    part(tmp_path).write_bytes(CONTENT)
    assert fetch(server).read_bytes() == CONTENT
    assert server.requests == []


def test_a_part_longer_than_the_file_is_discarded(server: Server, tmp_path: Path) -> None:
    part(tmp_path).parent.mkdir(parents=True)
    part(tmp_path).write_bytes(CONTENT + b"more")
    assert fetch(server).read_bytes() == CONTENT
    assert server.requests == [30_000_004, 0]


def test_a_part_of_another_file_is_discarded(server: Server, tmp_path: Path) -> None:
    part(tmp_path).parent.mkdir(parents=True)
    part(tmp_path).write_bytes(bytes(20_000_000))
    assert fetch(server).read_bytes() == CONTENT
    assert server.requests == [20_000_000, 0]


def test_a_silent_server_times_out(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloads, "_TIMEOUT", 0.2)
    server.pause = 2
    with pytest.raises(UserError, match=r"cannot download it \(ReadTimeout|ConnectionError\)"):
        fetch(server)


def test_a_file_with_a_wrong_checksum_is_refused_and_discarded(server: Server, tmp_path: Path) -> None:
    server.content = b"<html>moved</html>"
    with pytest.raises(UserError, match=rf"has the MD5 checksum \w+, expected {MD5}; try again, or write train_path=…"):
        fetch(server)
    assert [p.name for p in part(tmp_path).parent.iterdir()] == ["file.bin.lock"]
    assert server.requests == [0], "the server would send the same file again"
    server.content = CONTENT
    assert fetch(server).read_bytes() == CONTENT


def test_a_failure_reports_the_part_that_is_kept_and_the_remedy(server: Server, tmp_path: Path) -> None:
    server.cuts = [12_000_000] + [0] * 100
    with pytest.raises(
        UserError, match=r"cannot download it .*; 12\.0 MB of it are kept in .*\.part; run the command again"
    ):
        fetch(server)
    assert CONTENT.startswith(part(tmp_path).read_bytes())
    assert part(tmp_path).stat().st_size > 1_000_000
    server.cuts = []
    assert fetch(server).read_bytes() == CONTENT
    assert server.requests[-1] > 1_000_000


def test_a_file_is_on_the_disk_before_it_gets_its_name(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody checks it again: after a power cut, a file under its name must be whole."""
    server.content, calls, fsync, rename = b"abc" * 1000, list[str](), os.fsync, Path.rename

    def recorded_fsync(descriptor: int) -> None:
        calls.append(f"synced {Path(os.readlink(f'/proc/self/fd/{descriptor}')).name}")
        fsync(descriptor)

    def recorded_rename(path: Path, target: Path) -> Path:
        calls.append(f"named {target.name}")
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", recorded_fsync)
    monkeypatch.setattr(Path, "rename", recorded_rename)
    assert fetch(server, hashlib.md5(server.content).hexdigest()).read_bytes() == server.content
    assert calls == ["synced file.bin.part", "named file.bin"]


def test_a_missing_file_is_reported_at_once(server: Server) -> None:
    server.content = b""
    with pytest.raises(UserError, match=r"file\.bin: cannot download it \(.*416.*\); run the command again"):
        fetch(server)


def test_a_cache_that_is_not_writable_is_reported(server: Server, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(UserError, match=rf"{tmp_path}/cache/scaling_fl: cannot keep file.bin there .*XDG_CACHE_HOME"):
        fetch(server)


def _fetch_in_process(url: str, other_waits: Any, results: Any) -> None:
    reports: list[str] = []

    def report(what: str, *_: object) -> None:
        reports.append(what)
        if what.startswith("waiting"):
            other_waits.set()

    path = downloads.cached(url, MD5, "", report)
    results.put((hashlib.md5(path.read_bytes()).hexdigest(), set(reports)))


def test_of_two_concurrent_jobs_one_downloads_and_the_other_waits(server: Server) -> None:
    context = multiprocessing.get_context("spawn")
    results, other_waits = context.Queue(), context.Event()
    server.before_body = other_waits.wait  # the download can't end before the other job waits
    jobs = [context.Process(target=_fetch_in_process, args=(server.url, other_waits, results)) for _ in range(2)]
    for job in jobs:
        job.start()
    (first, _), (second, _) = outcomes = [results.get() for _ in jobs]
    for job in jobs:
        job.join()
    assert first == second == MD5
    assert server.requests == [0], "one download for both"
    assert {"waiting for another job to download file.bin"} in [reports for _, reports in outcomes]
