"""Files from the web, fetched once per machine: with progress, a checksum, and transfers that go on where they broke."""

import hashlib
import os
from pathlib import Path

import requests

from scaling_fl import host
from scaling_fl.errors import UserError
from scaling_fl.progress import Report

_BLOCK = 2**14  # bytes; as much is lost when a connection breaks
_MB = 10**6
_TIMEOUT = 30  # seconds without a byte


def cached(url: str, md5: str, instead: str, report: Report) -> Path:
    """The local copy of `url` in `~/.cache/scaling_fl` (or `$XDG_CACHE_HOME/scaling_fl`), fetched if it isn't there.

    `md5`: its checksum in hexadecimal digits. Of several jobs at once one fetches, and the others wait for it. A
    transfer that breaks off leaves `….part`, where the next one goes on. Raises `UserError`, which names what to do
    `instead`, if the file can't be had.
    """
    name = url.rpartition("/")[2]
    folder = host.cache_folder()
    file, part = folder / name, folder / f"{name}.part"
    if file.exists():  # checked before it got this name
        return file
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with host.exclusive_lock(folder / f"{name}.lock", f"waiting for another job to download {name}", report):
            if file.exists():
                return file
            resumed = part.exists()
            if not resumed or _md5(part) != md5:  # it may have been killed just before the new name
                _fetch(url, part, f"downloading {name}", instead, report)
            if resumed and _md5(part) != md5:  # what was there was no part of this file
                part.unlink()
                _fetch(url, part, f"downloading {name}", instead, report)
            if (found := _md5(part)) != md5:
                part.unlink()
                raise UserError(
                    f"{url}: what came has the MD5 checksum {found}, expected {md5}; try again, or {instead}"
                )
            with open(part, "rb") as finished:
                os.fsync(finished.fileno())
            part.rename(file)
    except OSError as error:
        raise UserError(f"{folder}: {name} can't be kept there ({error}); set XDG_CACHE_HOME, or {instead}") from error
    return file


def _fetch(url: str, part: Path, what: str, instead: str, report: Report) -> None:
    """Append to `part` what it lacks, in as many attempts as bring something."""
    while True:
        had = part.stat().st_size if part.exists() else 0
        # As it is stored: a server may offer to pack it, and count other bytes than those that arrive here.
        headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={had}-"} if had else {})
        try:
            with requests.get(url, headers=headers, stream=True, timeout=_TIMEOUT) as response:
                if had and response.status_code == requests.codes.requested_range_not_satisfiable:
                    part.unlink()  # it is longer than the whole: not a part of it
                    continue
                response.raise_for_status()
                goes_on = response.status_code == requests.codes.partial_content
                with open(part, "ab" if goes_on else "wb") as file:
                    total = file.tell() + int(response.headers.get("Content-Length", 0))
                    for block in response.iter_content(_BLOCK):
                        file.write(block)
                        if file.tell() // _MB > (file.tell() - len(block)) // _MB or file.tell() == total:
                            report(what, file.tell() / _MB, max(total, file.tell()) / _MB, "MB")
            return
        except requests.RequestException as error:
            has = part.stat().st_size if part.exists() else 0
            if has <= had:
                why = str(error) if isinstance(error, requests.HTTPError) else type(error).__name__
                kept = f"; {has / _MB:.1f} MB of it are kept in {part}" if has else ""
                raise UserError(
                    f"{url}: it can't be downloaded ({why}){kept}; type the command again when it can, or {instead}"
                ) from error


def _md5(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
