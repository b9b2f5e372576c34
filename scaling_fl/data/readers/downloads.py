"""Downloads, once per machine, with progress and a checksum; broken transfers resume where they stopped."""

import hashlib
import os
from pathlib import Path

import requests

from scaling_fl import host
from scaling_fl.errors import UserError
from scaling_fl.progress import Report

_BLOCK = 2**14  # bytes; at most this much is lost when a connection breaks
_MB = 10**6
_TIMEOUT = 30  # seconds without a byte


def cached(url: str, md5: str, remedy: str, report: Report) -> Path:
    """The local copy of `url` in `~/.cache/scaling_fl` (or `$XDG_CACHE_HOME/scaling_fl`), downloaded if missing.

    `md5`: the expected checksum, in hexadecimal. If several jobs start at once, one downloads and the others wait. A
    broken transfer leaves `….part`, from which the next one resumes. Raises `UserError`, ending with `remedy`, if
    the download fails.
    """
    name = url.rpartition("/")[2]
    folder = host.cache_folder()
    file, part = folder / name, folder / f"{name}.part"
    if file.exists():  # verified before it was renamed to this
        return file
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with host.exclusive_lock(folder / f"{name}.lock", f"waiting for another job to download {name}", report):
            if file.exists():
                return file
            resumed = part.exists()
            if not resumed or _md5(part) != md5:  # otherwise complete: a job was killed before the rename
                _fetch(url, part, f"downloading {name}", remedy, report)
            if resumed and _md5(part) != md5:  # the leftover was not part of this file
                part.unlink()
                _fetch(url, part, f"downloading {name}", remedy, report)
            if (found := _md5(part)) != md5:
                part.unlink()
                raise UserError(
                    f"{url}: the download has the MD5 checksum {found}, expected {md5}; try again, or {remedy}"
                )
            with open(part, "rb") as finished:
                os.fsync(finished.fileno())
            part.rename(file)
    except OSError as error:
        raise UserError(f"{folder}: cannot keep {name} there ({error}); set XDG_CACHE_HOME, or {remedy}") from error
    return file


def _fetch(url: str, part: Path, what: str, remedy: str, report: Report) -> None:
    """Append the rest of the file to `part`; retry as long as each attempt makes progress."""
    while True:
        size_before = part.stat().st_size if part.exists() else 0
        # Uncompressed: otherwise Content-Length and Range could count other bytes than those written here.
        headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={size_before}-"} if size_before else {})
        try:
            with requests.get(url, headers=headers, stream=True, timeout=_TIMEOUT) as response:
                if size_before and response.status_code == requests.codes.requested_range_not_satisfiable:
                    part.unlink()  # longer than the file, so not a part of it
                    continue
                response.raise_for_status()
                resumed = response.status_code == requests.codes.partial_content
                with open(part, "ab" if resumed else "wb") as file:
                    total = file.tell() + int(response.headers.get("Content-Length", 0))
                    for block in response.iter_content(_BLOCK):
                        file.write(block)
                        if file.tell() // _MB > (file.tell() - len(block)) // _MB or file.tell() == total:
                            report(what, file.tell() / _MB, max(total, file.tell()) / _MB, "MB")
            return
        except requests.RequestException as error:
            size = part.stat().st_size if part.exists() else 0
            if size <= size_before:
                why = str(error) if isinstance(error, requests.HTTPError) else type(error).__name__
                kept = f"; {size / _MB:.1f} MB of it are kept in {part}" if size else ""
                raise UserError(
                    f"{url}: cannot download it ({why}){kept}; run the command again later, or {remedy}"
                ) from error


def _md5(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
