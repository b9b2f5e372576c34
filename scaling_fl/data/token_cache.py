"""Token stores shared by jobs: texts are tokenised once per machine, under a key that covers everything they depend on."""

import contextlib
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import tokenizers
import transformers

from scaling_fl import host
from scaling_fl.progress import Report

_FORMAT_VERSION = 4  # of the files in a store, and of what is refused before one is written
_MANIFEST = "seal.json"  # written last; holds the other files' checksums
_KEPT_DAYS = 30  # since the last use


def key(
    content: str,
    tokenizer_files: Iterable[Path],
    max_seq_len: int | None,
    token_types: bool,
    more: str = "",
) -> str:
    """The key of texts with the digest `content`, tokenised by the tokenizer that `tokenizer_files` hold.

    `more`: what else the store depends on.
    """
    versions = (_FORMAT_VERSION, tokenizers.__version__, transformers.__version__)
    digest = hashlib.sha256(f"{versions} {content} {max_seq_len} {token_types}{more}".encode())
    for path in sorted(tokenizer_files):
        digest.update(f"{path.name} {_checksum(path)}".encode())
    return digest.hexdigest()


def link(target: Path, key: str, build: Callable[[Path], None], report: Report) -> list[str]:
    """Make `target` a link to the store `key`, built by `build(folder)` if it isn't in the cache. Returns notes.

    Stores are published by an atomic rename and verified before use; damaged ones are rebuilt. If several jobs start at
    once, one builds and the others wait. If the cache isn't writable, the store is built at `target`.
    """
    cache, notes = host.cache_folder() / "tokens", list[str]()
    entry, partial = cache / key, cache / f"{key}.partial"
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with host.exclusive_lock(cache / f"{key}.lock", "waiting for another job to tokenise the same texts", report):
            shutil.rmtree(partial, ignore_errors=True)  # left by a job that was killed
            if entry.exists() and not _is_intact(entry):
                notes.append(f"the cached tokens in {entry} are damaged; they were rebuilt")
                shutil.rmtree(entry)
            if not entry.exists():
                build(partial)
                manifest = {path.name: _checksum(path) for path in partial.iterdir()}
                (partial / _MANIFEST).write_text(json.dumps(manifest))
                partial.rename(entry)
            os.utime(entry)
        _prune(cache)
        target.symlink_to(entry)
    except OSError as error:
        notes.append(f"{cache}: cannot keep tokens there ({error}); set XDG_CACHE_HOME to save time at the next start")
        build(target)
    return notes


def _is_intact(entry: Path) -> bool:
    try:
        manifest = json.loads((entry / _MANIFEST).read_text())
        return bool(manifest) and all(_checksum(entry / name) == checksum for name, checksum in manifest.items())
    except (OSError, ValueError, AttributeError, RecursionError):
        return False


def _prune(cache: Path) -> None:
    """Remove stores that haven't been used for long. A job that has mapped one keeps its content until the job ends."""
    for path in cache.iterdir():
        with contextlib.suppress(OSError):
            if path.stat().st_mtime < time.time() - _KEPT_DAYS * 86400:
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def _checksum(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
