"""Shared by the benchmarks: waiting for a quiet machine, its limits, peers in virtual environments, alternating runs."""

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
PEERS = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "scaling_fl" / "benchmarks"
CORES = len(os.sched_getaffinity(0))
ROWS = "SCALING_FL_BENCHMARK_ROWS"  # names a file to which `table` appends its rows as JSON lines


def wait_until_quiet(minutes: float = 10) -> None:
    """Wait until other processes use less than a tenth of a core, then print machine and load."""
    deadline = time.monotonic() + 60 * minutes
    while (busy := _busy_cores(2.0)) > 0.1 and time.monotonic() < deadline:
        pass
    load = ", ".join(f"{value:.2f}" for value in os.getloadavg())
    print(
        f"{platform.machine()}, {CORES} cores, torch {torch.__version__}; others use {busy:.2f} cores; load {load}",
        flush=True,
    )


def _busy_cores(seconds: float) -> float:
    def busy() -> int:
        with open("/proc/stat") as file:
            user, nice, system, *_ = map(int, file.readline().split()[1:])
        return user + nice + system

    before = busy()
    time.sleep(seconds)
    return (busy() - before) / os.sysconf("SC_CLK_TCK") / seconds


def copy_bandwidth(megabytes: int = 512, repeats: int = 7) -> float:
    """Bytes per second of a copy in memory with all cores, each byte counted as read and as written."""
    torch.set_num_threads(CORES)
    source = torch.ones(megabytes * 2**20 // 4)
    target = torch.zeros_like(source)
    seconds = [timed(lambda: target.copy_(source)) for _ in range(repeats)]
    return 2 * source.numel() * 4 / statistics.median(seconds)


def matrix_product_rate(size: int = 2048, repeats: int = 7) -> float:
    """Floating-point operations per second of a float32 matrix product with all cores."""
    torch.set_num_threads(CORES)
    a, b = torch.randn(size, size), torch.randn(size, size)
    torch.mm(a, b)
    return 2 * size**3 / statistics.median(timed(lambda: torch.mm(a, b)) for _ in range(repeats))


def timed(function: Callable[[], Any]) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def peer(name: str, *requirements: str) -> str:
    """The Python of a virtual environment with a peer and our version of torch, created at the first call."""
    python = PEERS / name / "bin" / "python"
    stamp = PEERS / name / "installed"
    wanted = "\n".join(requirements)
    if not stamp.exists() or stamp.read_text() != wanted:
        print(f"installing {' '.join(requirements)} into {PEERS / name}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", PEERS / name], check=True)
        pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        torch_version = torch.__version__.split("+")[0]
        subprocess.run([*pip, f"torch=={torch_version}", "setuptools<80.9"], check=True)
        subprocess.run([*pip, f"torch=={torch_version}", *requirements], check=True)
        stamp.write_text(wanted)
    return str(python)


def script(python: str, code: str, *arguments: Any, **environ: str) -> Any:
    """Run Python code in a new process. Returns its last line of output, parsed as JSON."""
    done = subprocess.run(
        [python, "-c", code, *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "true"} | environ,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode != 0:
        sys.exit(f"a benchmark's process failed:\n{done.stderr[-4000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def in_turn(runs: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, list[Any]]:
    """Alternate the runs, `repeats` times, so that a slow machine slows all of them."""
    results: dict[str, list[Any]] = {name: [] for name in runs}
    for number in range(repeats):
        for name, run in runs.items():
            results[name].append(run())
            print(f"  {number + 1}/{repeats} {name}: {results[name][-1]}", flush=True)
    return results


def table(claims: Sequence[tuple[str, str, str, str, str]]) -> None:
    """Print claims as table rows: claim, ours, peer, ratio, bar."""
    head()
    for claim in claims:
        row(claim)


def head() -> None:
    """Print the head of a table."""
    print("| claim | ours | peer | ratio | bar |\n| --- | --- | --- | --- | --- |", flush=True)


def row(claim: tuple[str, str, str, str, str]) -> None:
    """Print one row."""
    print(f"| {' | '.join(claim)} |", flush=True)
    if path := os.environ.get(ROWS):
        with open(path, "a") as file:
            file.write(json.dumps(claim) + "\n")
