"""One live run per job, across machines: a file beside the checkpoints that its holder keeps renewing.

On one machine the lock files of `host.py` detect a second run at once.
"""

import contextlib
import json
import os
import socket
import tempfile
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from scaling_fl.checkpoint.storage import Storage
from scaling_fl.errors import UserError

FILE = "lease.json"
DURATION = 30.0  # seconds after a renewal until the holder counts as dead
_RENEWAL_INTERVAL = DURATION / 3
_FIELD_TYPES = {"host": str, "process": int, "place": str, "token": str, "time": int | float}
_RELEASE_TIMEOUT = 2.0  # seconds that the end of a job waits for the store


class Lease:
    """The right to write to a folder of checkpoints."""

    def __init__(self, storage: Storage, job_name: str):
        self._storage, self._job_name = storage, job_name
        self._identity = {
            "host": socket.gethostname(),
            "process": os.getpid(),
            "place": _lock_scope(),
            "token": uuid.uuid4().hex,
        }
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self.runs: Callable[[], str] = lambda: ""  # where this run is recorded, for the message that refuses others
        self._dead: dict[str, Any] | None = None  # the lease of a run that is gone
        self.taken_over_by: str | None = None  # the host of a run that acquired it after it had expired

    def wait_until_free(self, say: Callable[[str], None]) -> None:
        """Wait until a dead holder's lease expires. Raises `UserError` if the holder is alive.

        A holder on this machine is known to be dead, because this run has its lock file: no need to wait.
        """
        found = self._dead = self._read()
        if not found or found["place"] == self._identity["place"]:
            return
        age = time.time() - found["time"]
        if age >= DURATION:
            return
        deadline = time.monotonic() + (DURATION - age if age >= 0 else DURATION)  # negative: the clocks differ
        say(
            f"job {self._job_name}: a run on {found['host']} renewed its lease {max(age, 0):.0f} s ago; "
            f"waiting up to {deadline - time.monotonic():.0f} s for its next heartbeat"
        )
        while time.monotonic() < deadline:
            time.sleep(1)
            again = self._read()
            if not again:
                return
            if again != found:
                raise self._refusal(again, "is still writing")

    def is_live_elsewhere(self) -> bool:
        """Whether a run on another machine has renewed the lease lately."""
        return self._is_live(self._read())

    def _is_live(self, found: dict[str, Any] | None) -> bool:
        return (
            found is not None
            and found["place"] != self._identity["place"]
            and abs(time.time() - found["time"]) < DURATION
        )

    def _refusal(self, found: dict[str, Any], what: str) -> UserError:
        recorded = f", recorded in {found['runs']}" if found.get("runs") else ""
        return UserError(
            f"checkpoints_dir={self._storage.url}: a run on {found['host']} (process {found['process']}{recorded}) {what} "
            "to it; wait for it to end, or choose another job_name and checkpoints_dir"
        )

    def acquire(self) -> None:
        """Write the lease, and renew it in the background until `release`.

        Raises `UserError` if a run on another machine has acquired it since `wait_until_free`.
        """
        found = self._read()
        if found and found != self._dead and self._is_live(found):
            raise self._refusal(found, "has meanwhile begun to write")
        self._write()
        self._thread = threading.Thread(target=self._renew, daemon=True)
        self._thread.start()

    def ensure_held(self) -> None:
        """Raises `UserError` if another run has taken over the lease."""
        if self.taken_over_by is not None:
            raise UserError(
                f"job {self._job_name}: a run on {self.taken_over_by} has taken over, because this run did not renew its "
                f"lease for {DURATION:.0f} s; nothing is lost, and no action is needed"
            )

    def release(self) -> None:
        """Remove the lease and partial files, so that others needn't wait. If the store is unreachable, the lease expires."""
        self._stop.set()
        if self._thread is not None:
            last = threading.Thread(target=self._remove, args=(self._thread,), daemon=True)
            last.start()
            last.join(_RELEASE_TIMEOUT)  # an unreachable store would be retried for minutes

    def is_held(self) -> bool:
        """Whether the stored lease is still this run's."""
        found = self._read()
        return self.taken_over_by is None and found is not None and found["token"] == self._identity["token"]

    def _remove(self, renewing: threading.Thread) -> None:
        renewing.join()  # a renewal in progress would write it again
        with contextlib.suppress(Exception):  # a file system may raise anything
            if self.is_held():
                self._storage.remove_partial_files()
                self._storage.remove(FILE)

    def _renew(self) -> None:
        while not self._stop.wait(_RENEWAL_INTERVAL):
            try:
                found = self._read()
                if found and found["token"] != self._identity["token"]:
                    self.taken_over_by = found["host"]
                    return
                self._write()
            except Exception:  # the store is unreachable; the next renewal may succeed
                continue

    def _read(self) -> dict[str, Any] | None:
        """The stored lease, or `None`. Raises `UserError` if the file is not a lease: it must not be overwritten."""
        content = self._storage.read(FILE)
        if content is None:
            return None
        try:
            found: dict[str, Any] = json.loads(content)
            valid = (
                all(isinstance(found[name], kind) for name, kind in _FIELD_TYPES.items()) and abs(found["time"]) < 1e12
            )
        except (ValueError, RecursionError, KeyError, TypeError):
            valid = False
        if not valid:
            raise UserError(
                f"{self._storage.url_of(FILE)}: the file is not a lease; expected JSON that names the run that writes "
                "there; if there is no such run, remove the file, or choose another checkpoints_dir"
            )
        return found

    def _write(self) -> None:
        self._storage.write_json(FILE, self._identity | {"time": time.time(), "runs": self.runs()})


def _lock_scope() -> str:
    """What runs have in common if they see each other's lock files: the machine, temporary folder and user."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:  # not Linux
        boot = ""
    folder = os.stat(tempfile.gettempdir())
    return f"{socket.gethostname()} {boot} {folder.st_dev}:{folder.st_ino} {os.getuid()}"
