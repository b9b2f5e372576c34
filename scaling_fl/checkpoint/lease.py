"""One live run per job, on all machines: a file beside the checkpoints that its holder keeps renewing.

Locks of the operating system (machine.py) tell at once, but only on one machine.
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

from scaling_fl.checkpoint.store import Checkpoints
from scaling_fl.errors import UserError

FILE = "lease.json"
DURATION = 30.0  # without a renewal, after which the holder counts as dead
_RENEWAL_INTERVAL = DURATION / 3
_FIELD_TYPES = {"host": str, "process": int, "place": str, "token": str, "time": int | float}
_RELEASE_TIMEOUT = 2.0  # seconds that the end of a job waits for the store at most


class Lease:
    """The right to write to a folder of checkpoints."""

    def __init__(self, checkpoints: Checkpoints, job_name: str):
        self._checkpoints, self._job_name = checkpoints, job_name
        self._identity = {
            "host": socket.gethostname(),
            "process": os.getpid(),
            "place": _lock_scope(),
            "token": uuid.uuid4().hex,
        }
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self.runs: Callable[[], str] = lambda: ""  # where the holder is recorded, for those whom it keeps out
        self.taken_over_by: str | None = None  # the host that has taken it over while this process didn't renew it

    def wait_until_free(self, say: Callable[[str], None]) -> None:
        """Wait for a dead holder's lease to run out. Raises `UserError` while a run holds it that is alive.

        A run of this very machine is known to be dead, since its lock is free, and not waited for.
        """
        found = self._read()
        if not found or found["place"] == self._identity["place"]:
            return
        age = time.time() - found["time"]
        if age >= DURATION:
            return
        deadline = time.monotonic() + (DURATION - age if age >= 0 else DURATION)  # < 0: clocks differ
        say(
            f"job {self._job_name}: a run on {found['host']} was alive {max(age, 0):.0f} s ago; "
            f"waiting for up to {deadline - time.monotonic():.0f} s for a sign of it"
        )
        while time.monotonic() < deadline:
            time.sleep(1)
            again = self._read()
            if not again:
                return
            if again != found:
                recorded = f", recorded in {again['runs']}" if again.get("runs") else ""
                raise UserError(
                    f"checkpoints_dir={self._checkpoints.url}: a run on {again['host']} (process {again['process']}"
                    f"{recorded}) is alive and writes there; wait for its end, or take another job_name and "
                    "checkpoints_dir"
                )

    def acquire(self) -> None:
        """Hold it from now on, until `release`."""
        self._write()
        self._thread = threading.Thread(target=self._renew, daemon=True)
        self._thread.start()

    def ensure_held(self) -> None:
        """Raises `UserError` where another run has taken the lease over."""
        if self.taken_over_by is not None:
            raise UserError(
                f"job {self._job_name}: a run on {self.taken_over_by} has taken over, since this one gave no sign of life "
                f"for {DURATION:.0f} s; nothing is lost, and there is nothing to do"
            )

    def release(self) -> None:
        """Let others have it at once, and leave nothing half-written behind; where the store is away, it runs out."""
        self._stop.set()
        if self._thread is not None:
            last = threading.Thread(target=self._remove, args=(self._thread,), daemon=True)
            last.start()
            last.join(_RELEASE_TIMEOUT)  # a store that is away would be tried for minutes

    def is_held(self) -> bool:
        """Whether nobody has taken it over."""
        found = self._read()
        return self.taken_over_by is None and found is not None and found["token"] == self._identity["token"]

    def _remove(self, renewing: threading.Thread) -> None:
        renewing.join()  # a renewal under way would bring it back
        with contextlib.suppress(Exception):  # each file system has its own
            if self.is_held():
                self._checkpoints.remove_partial_files()
                self._checkpoints.remove(FILE)

    def _renew(self) -> None:
        while not self._stop.wait(_RENEWAL_INTERVAL):
            try:
                found = self._read()
                if found and found["token"] != self._identity["token"]:
                    self.taken_over_by = found["host"]
                    return
                self._write()
            except Exception:  # the store is away for a while; so it is for others
                continue

    def _read(self) -> dict[str, Any] | None:
        """The lease, if there is one. Raises `UserError` where the file is another's, which is not written over."""
        content = self._checkpoints.read(FILE)
        if content is None:
            return None
        try:
            found: dict[str, Any] = json.loads(content)
            sound = (
                all(isinstance(found[name], kind) for name, kind in _FIELD_TYPES.items()) and abs(found["time"]) < 1e12
            )
        except (ValueError, RecursionError, KeyError, TypeError):
            sound = False
        if not sound:
            raise UserError(
                f"{self._checkpoints.url_of(FILE)}: it should say which run writes there, and holds something else; if no run "
                "does, remove the file, or choose another checkpoints_dir"
            )
        return found

    def _write(self) -> None:
        self._checkpoints.write_json(FILE, self._identity | {"time": time.time(), "runs": self.runs()})


def _lock_scope() -> str:
    """What runs share whose locks exclude each other: the machine, and its folder for temporary files."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:  # not Linux
        boot = ""
    folder = os.stat(tempfile.gettempdir())
    return f"{socket.gethostname()} {boot} {folder.st_dev}:{folder.st_ino} {os.getuid()}"
