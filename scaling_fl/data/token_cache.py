"""Token stores that jobs share: tokenised once per machine, under a key made of all that they depend on."""

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

_FORMAT_VERSION = 1  # of a store's files
_SEAL = "seal.json"  # written last: the other files' checksums
_KEPT_DAYS = 30  # since a job last used it


def key(content: str, tokenizer_files: Iterable[Path], max_seq_len: int, token_types: bool) -> str:
    """Of texts with the digest `content`, and of a tokenizer by the files that it was saved to."""
    versions = (_FORMAT_VERSION, tokenizers.__version__, transformers.__version__)
    digest = hashlib.sha256(f"{versions} {content} {max_seq_len} {token_types}".encode())
    for path in sorted(tokenizer_files):
        digest.update(f"{path.name} {_checksum(path)}".encode())
    return digest.hexdigest()


def link(place: Path, key: str, build: Callable[[Path], None], report: Report) -> list[str]:
    """Let `place` be the store `key`, which `build(folder)` makes if no job has made it yet. Returns notes.

    A store is published by one rename and checked before it is used; a damaged one is built anew. Of several jobs at
    once one builds, and the others wait for it. Where the cache can't be written, the store is built at `place`.
    """
    cache, notes = host.cache_folder() / "tokens", list[str]()
    entry, partial = cache / key, cache / f"{key}.partial"
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with host.exclusive_lock(cache / f"{key}.lock", "waiting for another job to tokenise the same texts", report):
            shutil.rmtree(partial, ignore_errors=True)  # of a job that was killed
            if entry.exists() and not _is_sound(entry):
                notes.append(f"the tokens kept in {entry} are damaged; they were made anew")
                shutil.rmtree(entry)
            if not entry.exists():
                build(partial)
                seal = {path.name: _checksum(path) for path in partial.iterdir()}
                (partial / _SEAL).write_text(json.dumps(seal))
                partial.rename(entry)
            os.utime(entry)
        _prune(cache)
        place.symlink_to(entry)
    except OSError as error:
        notes.append(
            f"{cache}: tokens can't be kept there ({error}); set XDG_CACHE_HOME to save time at the next start"
        )
        build(place)
    return notes


def _is_sound(entry: Path) -> bool:
    try:
        seal = json.loads((entry / _SEAL).read_text())
        return bool(seal) and all(_checksum(entry / name) == checksum for name, checksum in seal.items())
    except (OSError, ValueError, AttributeError, RecursionError):
        return False


def _prune(cache: Path) -> None:
    """Remove what nobody has used for long. A job that has it open keeps it: what is mapped stays until it ends."""
    for path in cache.iterdir():
        with contextlib.suppress(OSError):
            if path.stat().st_mtime < time.time() - _KEPT_DAYS * 86400:
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def _checksum(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
