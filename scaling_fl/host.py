"""What jobs use on this machine: a work folder per job, locks that keep other runs out, and a shared cache."""

import contextlib
import difflib
import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from filelock import FileLock, Timeout

from scaling_fl.errors import UserError
from scaling_fl.progress import Report

_PREFIX = "scaling_fl-"


def cache_folder() -> Path:
    """The cache that this user's jobs share: `~/.cache/scaling_fl`, or `$XDG_CACHE_HOME/scaling_fl`.

    Raises `UserError` if this user has no home folder: libraries would take `~` for the name of a folder.
    """
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "scaling_fl"
    except RuntimeError as error:
        raise UserError(
            f"HOME: not set, and user {os.getuid()} has no entry in /etc/passwd; set HOME to a folder that you can write to"
        ) from error


@contextlib.contextmanager
def exclusive_lock(path: Path, waiting: str, report: Report) -> Iterator[None]:
    """Hold the lock file `path`; `waiting` is reported until it is free. The system releases it if this process dies."""
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


def free_memory() -> float:
    """Return the free memory in bytes, by the system and by the limit of the container; infinity if neither says it."""
    free = float("inf")
    with contextlib.suppress(OSError):  # not Linux
        values = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        free = float(values["MemAvailable"].split()[0]) * 1024
    with contextlib.suppress(OSError, ValueError, KeyError):  # "max": no limit
        group = Path("/sys/fs/cgroup")
        used = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        # Files that nobody has open lately are in memory only as long as nobody needs it.
        in_use = float((group / "memory.current").read_text()) - float(used["inactive_file"])
        free = min(free, float((group / "memory.max").read_text()) - in_use)
    return free


def did_you_mean(path: str, known: Sequence[str] = ()) -> str:
    """What to add to the message that there is no `path`: the most similar name in its folder or in `known`, if any."""
    folder, name = os.path.split(path.rstrip("/"))
    try:
        names = os.listdir(os.path.expanduser(folder) or ".") if "://" not in path else []
    except (OSError, ValueError):
        names = []
    close = difflib.get_close_matches(path.lower(), known, 1, 0.75)
    by_case = {other.lower(): os.path.join(folder, other) for other in names if other != name}
    close += [by_case[other] for other in difflib.get_close_matches(name.lower(), by_case, 1, 0.75)]
    return f" (did you mean {close[0]}?)" if close else ""


@contextlib.contextmanager
def work_folder() -> Iterator[str]:
    """A folder for what the preparation builds, removed with the job. Leftovers of killed jobs are removed here."""
    for lock in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*/lock"):
        with contextlib.suppress(OSError), open(lock) as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fails while the owner is alive
            shutil.rmtree(lock.parent, ignore_errors=True)
    folder = tempfile.mkdtemp(prefix=_PREFIX)
    try:
        with open(f"{folder}/unlocked", "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            os.rename(
                f"{folder}/unlocked", f"{folder}/lock"
            )  # only once locked: another job must never find it unlocked
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def job_lock(job_name: str, checkpoints_dir: str | None, recorded: str = "") -> Iterator[None]:
    """Lock this job and its checkpoint folder.

    Raises `UserError` if another run of this user on this machine holds them.
    `recorded`: where the job's record is, if it has one, for the message.
    """
    with contextlib.ExitStack() as locks:
        in_use = f"job_name={job_name}: another run of this job is in progress on this machine"
        locks.enter_context(_lock(job_name, "job_name", f"{in_use}, recorded in {recorded}" if recorded else in_use))
        if checkpoints_dir is not None:
            folder = (
                checkpoints_dir if "://" in checkpoints_dir else os.path.realpath(os.path.expanduser(checkpoints_dir))
            )
            name = hashlib.sha256(folder.rstrip("/").encode()).hexdigest()[:16]
            in_use = f"checkpoints_dir={checkpoints_dir}: another run is writing there"
            locks.enter_context(_lock(name, "checkpoints_dir", in_use))
        yield


def is_locked(job_name: str) -> bool:
    """Whether a run of this job is in progress on this machine. (Trying the lock would disturb a run that starts.)"""
    try:
        os.kill(int(_lock_path(job_name).read_text()), 0)
    except (OSError, ValueError):
        return False
    return True


def _lock_path(name: str) -> Path:
    return Path(tempfile.gettempdir()) / f"{_PREFIX}{os.getuid()}-{name}.lock"


@contextlib.contextmanager
def _lock(name: str, key: str, in_use: str) -> Iterator[None]:
    path = _lock_path(name)
    with open(path, "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                raise BlockingIOError  # the owner has just removed it
        except (BlockingIOError, FileNotFoundError) as error:
            file.seek(0)
            process = file.read().strip() or "?"
            raise UserError(f"{in_use} (process {process}); wait for it to end, or choose another {key}") from error
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
