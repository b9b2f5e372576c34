"""What a machine can hold at once: cores, GPUs and memory."""

import contextlib
import os
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from scaling_fl import host
from scaling_fl.models.weights import weights_size
from scaling_fl.sweep.cells import Cell

_PER_PROCESS = 0.6e9  # bytes: the interpreter with its libraries
_COPIES = {"sgd": 5, "adagrad": 6, "rmsprop": 6}  # of the weights: parameters, gradients, sum, activations; moments
_COPIES_ADAM = 7
_UNKNOWN = 1.5e9  # bytes for a process whose model's size isn't known yet
Memory = dict[str, float]  # peak bytes of complete cells, by `shape`


def shape(cell: Cell) -> str:
    """What the memory of a cell depends on."""
    config = cell.config
    trained = f"{config.trainable} {config.optimiser}"
    return f"{config.model} {config.batch_size}x{config.max_seq_len} {trained} {cell.num_processes}"


def memory_of(cell: Cell, measured: Mapping[str, float]) -> float:
    """Bytes that a cell is expected to use: as measured for a like cell, or estimated from the size of its weights."""
    if (peak := measured.get(shape(cell))) is not None:
        return peak
    size = weights_size(cell.config.model)
    if size is None:
        return cell.num_processes * (_PER_PROCESS + _UNKNOWN)
    if cell.config.trainable == "lora":  # one base for all processes; what belongs to adapters is small
        return cell.num_processes * _PER_PROCESS + size
    return cell.num_processes * (_PER_PROCESS + _COPIES.get(cell.config.optimiser, _COPIES_ADAM) * size)


@dataclass
class Slots:
    """Free resources. A cell that needs more than the machine has runs alone."""

    cores: int
    gpus: tuple[int, ...]
    memory: float  # bytes
    max_jobs: int | None = None
    measured: Memory = field(default_factory=dict)
    running: dict[str, tuple[int, tuple[int, ...], float]] = field(default_factory=dict)  # name -> cores, GPUs, memory

    def take(self, cell: Cell) -> dict[str, str] | None:
        """Reserve what the cell needs; returns the environment that it runs with, or `None` if it doesn't fit now."""
        if self.max_jobs is not None and len(self.running) >= self.max_jobs:
            return None
        wanted = max(cell.config.site_ids) + 1 if self.gpus else 0
        taken = {gpu for _, gpus, _ in self.running.values() for gpu in gpus}
        free = [gpu for gpu in self.gpus if gpu not in taken]
        cores = self.cores_of(cell)
        need = memory_of(cell, self.measured)
        used_cores = sum(cores for cores, _, _ in self.running.values())
        used_memory = sum(memory for _, _, memory in self.running.values())
        fits = wanted <= len(free) and used_memory + need <= self.memory and used_cores + cores <= self.cores
        if not fits and self.running:
            return None
        chosen = tuple(free[:wanted])
        self.running[cell.name] = cores, chosen, need
        return {"CUDA_VISIBLE_DEVICES": ",".join(map(str, chosen))} if chosen else {}

    def cores_of(self, cell: Cell) -> int:
        """On CPUs, a thread each; without `threads_per_site`, a job uses all cores. Beside a GPU, a core for each process."""
        threads = cell.config.threads_per_site
        if self.gpus and max(cell.config.site_ids) >= 0:
            return min(self.cores, cell.num_processes * (threads or 1))
        return self.cores if threads is None else min(self.cores, threads * cell.num_processes)

    def release(self, cell: Cell) -> None:
        self.running.pop(cell.name, None)


def of_this_machine(max_jobs: int | None, measured: Memory) -> Slots:
    """The cores, GPUs and free memory that this process may use."""
    return Slots(len(os.sched_getaffinity(0)), _gpus(), host.free_memory(), max_jobs, measured)


def _gpus() -> tuple[int, ...]:
    if (visible := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return tuple(int(word) for word in visible.split(",") if word.strip().isdigit())
    if shutil.which("nvidia-smi") is None:
        return ()
    done = subprocess.run(
        ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"], capture_output=True, text=True, check=False
    )
    return tuple(int(line) for line in done.stdout.split()) if done.returncode == 0 else ()


def memory_used(session: int) -> float:
    """Bytes that the processes of a session use, shared pages counted once."""
    total = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError, IndexError):  # it has ended
            if int(stat.read_text().rpartition(")")[2].split()[3]) == session:
                rollup = (stat.parent / "smaps_rollup").read_text()
                total += int(rollup.partition("\nPss:")[2].split()[0])
    return total * 1024.0
