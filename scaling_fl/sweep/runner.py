"""Running the cells of a sweep: as many processes at once as the machine holds, each a job of its own."""

import ctypes
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from subprocess import DEVNULL, Popen
from typing import Protocol

from scaling_fl.sweep import cells, slots
from scaling_fl.sweep.cells import Cell
from scaling_fl.text import one_line

SCRIPT = Path(__file__).resolve().parent.parent.parent / "scripts" / "train_federated.py"
_POLL = 0.2  # seconds
_LOOK = 2.0  # seconds between looks at memory and rounds, or more if a look takes long
_LOOK_SHARE = 0.02  # of the time
_ASK = 5.0  # seconds between looks at cells that run elsewhere
_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


class View(Protocol):
    """Shows how the cells are doing."""

    def change(self, cell: Cell, status: str, detail: str = "") -> None:
        """Status: waiting, running, elsewhere, complete or failed."""

    def progress(self, cell: Cell, state: cells.State) -> None: ...


class Runner:
    """Runs cells until all are complete or have failed."""

    def __init__(self, folder: Path, places: slots.Slots, view: View, environ: dict[str, str] | None = None):
        """`folder` gets a log for each cell."""
        self.folder, self._slots, self._view = folder, places, view
        self._environ = dict(os.environ) if environ is None else environ
        self.failures: dict[str, str] = {}  # by cell, the reason
        self._running: dict[str, tuple[Cell, Popen[bytes], float]] = {}
        self._stopping = 0  # signals received

    def stop(self) -> None:
        """Ask all jobs to save their last complete round and end; the second time, kill them."""
        self._stopping += 1
        for _, process, _ in self._running.values():
            process.send_signal(signal.SIGTERM if self._stopping == 1 else signal.SIGKILL)

    @property
    def stopped(self) -> bool:
        return self._stopping > 0

    def run(self, todo: Sequence[Cell]) -> None:
        """Run the cells in order. One that another sweep runs is left to it, and taken over if that one dies."""
        waiting, asked, look_at = list(todo), 0.0, 0.0
        elsewhere: list[Cell] = []
        while ((waiting or elsewhere) and not self.stopped) or self._running:
            if time.monotonic() - asked > _ASK:
                asked = time.monotonic()
                waiting += self._free_again(elsewhere)
            self._start(waiting, elsewhere)
            if (now := time.monotonic()) >= look_at:
                self._look()
                look_at = time.monotonic() + max(_LOOK, (time.monotonic() - now) / _LOOK_SHARE)
            for name, (cell, process, _) in list(self._running.items()):
                if process.poll() is not None:
                    del self._running[name]
                    self._slots.release(cell)
                    if self._ended(cell, process.returncode):
                        elsewhere.append(cell)
            time.sleep(_POLL)

    def _free_again(self, elsewhere: list[Cell]) -> list[Cell]:
        """Take complete cells off the list; return those that nobody runs any more."""
        free = []
        for cell in list(elsewhere):
            held, state = _held_and_state(cell)
            self._view.progress(cell, state)
            if state.status == "complete":
                self._view.change(cell, "complete")
            elif not held:
                free.append(cell)
            else:
                continue
            elsewhere.remove(cell)
        return free

    def _start(self, waiting: list[Cell], elsewhere: list[Cell]) -> None:
        for cell in list(waiting):
            if self.stopped or (environ := self._slots.take(cell)) is None:
                return  # in order: a large cell isn't overtaken for ever by small ones
            waiting.remove(cell)
            held, state = _held_and_state(cell)
            if state.status == "complete" or held:
                self._slots.release(cell)
                if state.status != "complete":
                    elsewhere.append(cell)
                self._view.change(cell, "complete" if state.status == "complete" else "elsewhere")
                continue
            log = open(self.folder / f"{cell.name}.log", "ab")  # noqa: SIM115  # the process keeps it
            process = Popen(
                [sys.executable, str(SCRIPT), *cell.words()], stdin=DEVNULL, stdout=log, stderr=log,
                env=self._environ | environ, start_new_session=True, preexec_fn=_end_with(os.getpid()),
            )  # fmt: skip
            log.close()
            self._running[cell.name] = cell, process, 0.0
            self._view.change(cell, "running")

    def _look(self) -> None:
        for name, (cell, process, peak) in self._running.items():
            self._running[name] = cell, process, max(peak, slots.memory_used(process.pid))
            self._view.progress(cell, cells.state(cell))
            measured = self._slots.measured
            measured[slots.shape(cell)] = max(measured.get(slots.shape(cell), 0.0), self._running[name][2])

    def _ended(self, cell: Cell, status: int) -> bool:
        """Note how the cell ended. Returns whether another run has it."""
        held, state = _held_and_state(cell)
        self._view.progress(cell, state)
        if state.status == "complete":
            self._view.change(cell, "complete")
        elif held:
            self._view.change(cell, "elsewhere")
            return True
        elif self.stopped:
            self._view.change(cell, "waiting", "stopped")
        else:
            self.failures[cell.name] = _reason(self.folder / f"{cell.name}.log", status)
            self._view.change(cell, "failed", self.failures[cell.name])
        return False


def _held_and_state(cell: Cell) -> tuple[bool, cells.State]:
    """Whether a run has the cell, and then its state: a run that ends in between has completed it."""
    return cells.is_held(cell), cells.state(cell)


def _reason(log: Path, status: int) -> str:
    """The error in the last lines of a job's output."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    told = [line for line in lines[-60:] if line.startswith(("Refused:", "Failed:"))]
    return one_line((told or lines or [f"exit status {status}"])[-1], 300)


def _end_with(parent: int) -> Callable[[], None]:
    """Have a new process end as if asked to when this one dies: a sweep that is killed leaves no job behind."""

    def prepare() -> None:
        if hasattr(ctypes, "CDLL") and sys.platform == "linux":
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
            if os.getppid() != parent:  # it has died meanwhile
                os._exit(1)

    return prepare


def load_memory(folder: Path) -> slots.Memory:
    """The peaks that earlier calls measured."""
    try:
        found = json.loads((folder / "memory.json").read_text())
        return {str(name): float(value) for name, value in found.items()}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}


def save_memory(folder: Path, measured: slots.Memory) -> None:
    (folder / "memory.json").write_text(json.dumps(measured, indent=2))
