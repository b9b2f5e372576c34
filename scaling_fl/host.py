"""What jobs hold on this machine: a work folder each, locks that keep another run out, and a cache that all share."""

import contextlib
import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from scaling_fl.errors import UserError
from scaling_fl.progress import Report

_PREFIX = "scaling_fl-"


def cache_folder() -> Path:
    """Where this user's jobs keep what others may use: `~/.cache/scaling_fl`, or `$XDG_CACHE_HOME/scaling_fl`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "scaling_fl"


@contextlib.contextmanager
def exclusive_lock(path: Path, waiting: str, report: Report) -> Iterator[None]:
    """Hold the lock file `path`, which the system takes back if this process is killed. `waiting` is reported."""
    lock = FileLock(path)
    while True:
        try:
            lock.acquire(timeout=2)
            break
        except Timeout:
            report(waiting, 0, 1, "jobs")
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def work_folder() -> Iterator[str]:
    """A folder for what the preparation builds. It goes with the job; what a killed one left goes now."""
    for lock in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*/lock"):
        with contextlib.suppress(OSError), open(lock) as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fails while its owner lives
            shutil.rmtree(lock.parent, ignore_errors=True)
    folder = tempfile.mkdtemp(prefix=_PREFIX)
    try:
        with open(f"{folder}/unlocked", "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            os.rename(f"{folder}/unlocked", f"{folder}/lock")  # nobody sees it before it is locked
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def job_lock(job_name: str, checkpoints_dir: str | None, recorded: str = "") -> Iterator[None]:
    """Raises `UserError` while another run, of the same user on this machine, has this job or writes to this folder.

    `recorded`: where this job has a record, if it has one, for the message.
    """
    with contextlib.ExitStack() as locks:
        taken = f"job_name={job_name}: a run of this job is alive on this machine"
        locks.enter_context(_lock(job_name, f"{taken}, recorded in {recorded}" if recorded else taken))
        if checkpoints_dir is not None:
            place = (
                checkpoints_dir if "://" in checkpoints_dir else os.path.realpath(os.path.expanduser(checkpoints_dir))
            )
            name = hashlib.sha256(place.rstrip("/").encode()).hexdigest()[:16]
            locks.enter_context(_lock(name, f"checkpoints_dir={checkpoints_dir}: a run that is alive writes there"))
        yield


@contextlib.contextmanager
def _lock(name: str, taken: str) -> Iterator[None]:
    path = Path(tempfile.gettempdir()) / f"{_PREFIX}{os.getuid()}-{name}.lock"
    with open(path, "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                raise BlockingIOError  # removed by its owner meanwhile
        except (BlockingIOError, FileNotFoundError) as error:
            file.seek(0)
            process = file.read().strip() or "?"
            raise UserError(f"{taken} (process {process}); wait for its end, or take another one") from error
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
