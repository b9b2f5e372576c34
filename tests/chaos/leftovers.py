"""What a job has left behind: files, shared memory, processes."""

import os
import time
from pathlib import Path

# Seconds for another program's shared memory to go: the semaphores of a process that was killed stay until its job ends.
_PATIENCE = 90.0


def left_behind(folder: Path) -> list[str]:
    """Temporary files, partial files and named shared memory that the job has left behind."""
    temporary_folder, since = Path(os.environ["TMPDIR"]), (folder / "train.csv").stat().st_mtime
    return [path.name for path in (*temporary_folder.iterdir(), *folder.glob("out/.*"), *shared_memory_since(since))]


def shared_memory_since(since: float) -> list[Path]:
    """Named shared memory created since then, and still there although no process maps it."""

    def unmapped() -> set[Path]:
        mapped = "".join(map(memory_maps, Path("/proc").glob("[0-9]*")))
        return {path for path in Path("/dev/shm").glob("*") if modified(path) > since and str(path) not in mapped}

    found, deadline = unmapped(), time.monotonic() + _PATIENCE
    while found and time.monotonic() < deadline:
        time.sleep(1)
        found &= unmapped()
    return sorted(found)


def modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def memory_maps(process: Path) -> str:
    try:
        return (process / "maps").read_text()
    except OSError:  # the process has ended, or belongs to another user
        return ""


def processes_in(folder: Path) -> list[int]:
    """The processes of the job started in `folder`, found by their working folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "cwd").resolve() == folder.resolve() and int(process.name) != os.getpid():
                found.append(int(process.name))
        except OSError:
            continue
    return found
