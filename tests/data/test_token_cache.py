import multiprocessing
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
import transformers

from scaling_fl.data import token_cache
from scaling_fl.progress import unreported


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "scaling_fl" / "tokens"


class Builder:
    """Builds stores with the given content, and counts its calls."""

    def __init__(self, content: bytes = b"tokens"):
        self.content, self.built = content, 0

    def __call__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "tokens.bin").write_bytes(self.content)
        np.save(folder / "labels.npy", np.arange(3))
        self.built += 1


def test_a_store_is_built_once_and_shared_by_all_jobs(tmp_path: Path) -> None:
    build = Builder()
    for number in range(3):
        assert token_cache.link(tmp_path / f"job {number}", "k", build, unreported) == []
        assert (tmp_path / f"job {number}" / "tokens.bin").read_bytes() == b"tokens"
    assert build.built == 1
    token_cache.link(tmp_path / "other", "k2", build, unreported)
    assert build.built == 2


@pytest.mark.parametrize("how", ["flip a bit", "cut", "lose a file", "lose the manifest", "empty the manifest"])
def test_a_damaged_store_is_rebuilt_with_a_note(tmp_path: Path, cache: Path, how: str) -> None:
    build = Builder()
    token_cache.link(tmp_path / "first", "k", build, unreported)
    file = cache / "k" / "tokens.bin"
    match how:
        case "flip a bit":
            file.write_bytes(b"tokenS")
        case "cut":
            file.write_bytes(b"token")
        case "lose a file":
            file.unlink()
        case "lose the manifest":
            (cache / "k" / "seal.json").unlink()
        case "empty the manifest":
            (cache / "k" / "seal.json").write_text("{}")
    (note,) = token_cache.link(tmp_path / "second", "k", build, unreported)
    assert "are damaged; they were rebuilt" in note
    assert build.built == 2
    assert (tmp_path / "second" / "tokens.bin").read_bytes() == b"tokens"


def test_a_partial_store_left_by_a_killed_job_is_never_used(tmp_path: Path, cache: Path) -> None:
    def fail(folder: Path) -> None:
        Builder(b"half")(folder)
        (folder / "types.bin").write_bytes(b"of another store")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        token_cache.link(tmp_path / "first", "k", fail, unreported)
    build = Builder()
    assert token_cache.link(tmp_path / "second", "k", build, unreported) == []
    assert (tmp_path / "second" / "tokens.bin").read_bytes() == b"tokens"
    assert sorted(path.name for path in cache.iterdir()) == ["k", "k.lock"]
    assert sorted(path.name for path in (cache / "k").iterdir()) == ["labels.npy", "seal.json", "tokens.bin"]


def test_a_job_builds_its_own_store_if_the_cache_is_not_writable(tmp_path: Path, cache: Path) -> None:
    cache.parent.mkdir(parents=True)
    cache.write_text("a file")
    (note,) = token_cache.link(tmp_path / "job", "k", Builder(), unreported)
    assert note.startswith(f"{cache}: cannot keep tokens there")
    assert (tmp_path / "job" / "tokens.bin").read_bytes() == b"tokens"


def test_stores_unused_for_a_month_are_removed(tmp_path: Path, cache: Path) -> None:
    for name in ("old", "young", "used"):
        token_cache.link(tmp_path / name, name, Builder(), unreported)
    long_ago, lately = (time.time() - days * 86400 for days in (31, 29))
    for name in ("old", "old.lock", "used"):
        os.utime(cache / name, (long_ago, long_ago))
    os.utime(cache / "young", (lately, lately))
    assert token_cache.link(tmp_path / "again", "used", Builder(b"no"), unreported) == []
    assert sorted(path.name for path in cache.iterdir()) == ["used", "used.lock", "young", "young.lock"]
    assert (tmp_path / "again" / "tokens.bin").read_bytes() == b"tokens"


def test_the_key_depends_on_everything_that_the_tokens_depend_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    files = [tmp_path / "tokenizer.json"]
    first = token_cache.key("content", files, 128, False)
    assert token_cache.key("content", files, 128, False) == first
    (tmp_path / "vocab.txt").write_text("river")
    two = [tmp_path / "vocab.txt", *files]
    assert token_cache.key("content", two, 128, False) == token_cache.key("content", two[::-1], 128, False) != first
    changed = {token_cache.key(*arguments) for arguments in (("c", files, 128, False), ("content", files, 64, False), ("content", files, 128, True))}  # fmt: skip
    (tmp_path / "tokenizer.json").write_text("[]")
    changed.add(token_cache.key("content", files, 128, False))
    monkeypatch.setattr(token_cache, "_FORMAT_VERSION", token_cache._FORMAT_VERSION + 1)
    changed.add(token_cache.key("content", files, 128, False))
    for library in (tokenizers, transformers):
        monkeypatch.setattr(library, "__version__", "0.0.1")
        changed.add(token_cache.key("content", files, 128, False))
    assert len(changed - {first}) == 7


def _job(folder: str, other_waits: Any, results: Any) -> None:
    reports: list[str] = []

    def build(target: Path) -> None:
        other_waits.wait()
        Builder(str(os.getpid()).encode())(target)

    def report(what: str, *_: object) -> None:
        reports.append(what)
        if what.startswith("waiting"):
            other_waits.set()

    token_cache.link(Path(folder), "k", build, report)
    results.put(((Path(folder) / "tokens.bin").read_bytes(), reports))


def test_of_two_concurrent_jobs_one_builds_and_the_other_waits(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    results, other_waits = context.Queue(), context.Event()
    jobs = [context.Process(target=_job, args=(str(tmp_path / f"job {n}"), other_waits, results)) for n in range(2)]
    for job in jobs:
        job.start()
    (first, reports), (second, more_reports) = (results.get() for _ in jobs)
    for job in jobs:
        job.join()
    assert first == second
    assert reports + more_reports == ["waiting for another job to tokenise the same texts"]
