#!/usr/bin/env python
"""Seconds from the command line until every site is ready for its first step, and the memory of an additional site.

    ./run-local.sh benchmarks/startup.py

The real command runs on model folders with random weights and a few rows. The sites are ready at the event of round 0,
when all workers hold model and state and have evaluated (one example, on worker 0). Separate runs of the same command,
with clocks between its phases, show where the time goes; "fork server" is the wait that remains when Sacred is ready.
The memory of an additional site is a quarter of the difference between 8 and 4 sites: the peak proportional set size
of all processes during round 2 of AdamW, with one text of 8 tokens per step, so that activations hardly count. Its peer
is what a site must hold: parameters, gradients and two moments, 4 bytes each.
"""

import argparse
import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import command
import measure

PHASES = ("Python", "imports", "Sacred before", "fork server", "preparation", "Sacred after", "workers")
CLOCK = """
import time
times = [time.time()]
import importlib.util, json, os, sys
del sys.argv[0]
sys.path.insert(0, os.path.dirname(os.path.dirname(sys.argv[0])))
from scaling_fl.runtime import fork_server, launcher
fork_server.start()  # as the script does when it is run
spec = importlib.util.spec_from_file_location("train_federated", sys.argv[0])
script = importlib.util.module_from_spec(spec)
spec.loader.exec_module(script)
times.append(time.time())
prepare, train = launcher.prepare, launcher.train
def timed_prepare(config, folder, on_event, *more):
    times.append(time.time())
    def first(event):
        if len(times) == 3:
            times.append(time.time())
        on_event(event)
    plan = prepare(config, folder, first, *more)
    times.append(time.time())
    return plan
def timed_train(plan, on_event, *more):
    times.append(time.time())
    def first(event):
        if event["event"] == "round" and len(times) == 6:
            times.append(time.time())
            print("CLOCK", json.dumps(times), flush=True)
        on_event(event)
    train(plan, first, *more)
launcher.prepare, launcher.train = timed_prepare, timed_train
script.main(sys.argv)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=["MiniLM", "DistilBERT"], choices=command.SHAPES)
    parser.add_argument("--sites", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    measure.wait_until_quiet()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = command.data(folder, rows=48, test_rows=1, words=6)
        keys = data | {"max_seq_len": 8, "batch_size": 1, "num_rounds": 2, "eval_every": 1000}
        models = {shape: command.model_folder(folder, shape) for shape in {*options.shapes, "DistilBERT"}}
        runs: dict[str, Callable[[], Any]] = {}
        for shape in options.shapes:
            for sites in options.sites:
                own = keys | {"model": models[shape][0], "site_ids": command.sites(sites)}
                runs[f"{shape}, {sites} sites"] = partial(until_ready, folder, own)
        runs[next(iter(runs))]()  # warm-up: fills the system's file cache and our token cache
        for number, run in list(runs.items())[:: len(runs) - 1]:
            runs[f"phases of {number}"] = partial(phases, *run.args)
        results = measure.in_turn(runs, options.repeats)
        place, size = models["DistilBERT"]
        memory = {}
        for sites in (4, 8):
            own = keys | {"model": place, "site_ids": command.sites(sites)}
            memory[sites] = highest_memory(folder, own)
            print(f"  DistilBERT's shape, {sites} sites: {memory[sites] / 1e6:,.0f} MB", flush=True)

    print(f"\n{'seconds':<36}" + "".join(f"{phase:>15}" for phase in PHASES))
    for number in [name for name in results if name.startswith("phases")]:
        medians = [statistics.median(column) for column in zip(*results[number], strict=True)]
        print(f"{number:<36}" + "".join(f"{value:>15.2f}" for value in medians))
    print()
    claims = []
    for shape in options.shapes:
        one, *others = (statistics.median(results[f"{shape}, {sites} sites"]) for sites in options.sites)
        for sites, seconds in zip(options.sites[1:], others, strict=True):
            claim = f"{shape}'s shape, {sites} sites ready, against {options.sites[0]}"
            bar = "≤ 1.5" if sites == 16 else ""
            claims.append((claim, f"{seconds:.1f} s", f"{one:.1f} s", f"{seconds / one:.2f}", bar))
    slope, needed = (memory[8] - memory[4]) / 4, 16 * size
    claim = "DistilBERT's shape, memory of an additional site, against what it must hold"
    ours, peer = f"{slope / 1e6:,.0f} MB", f"{needed / 1e6:,.0f} MB"
    measure.table([*claims, (claim, ours, peer, f"{slope / needed:.2f}", "≤ 1.15")])


def until_ready(parent: Path, keys: dict[str, Any]) -> float:
    """Seconds until all sites are ready."""
    with command.Job(parent, keys) as job:
        return round(job.wait_for(0)["time"] - job.typed_at, 2)


def phases(parent: Path, keys: dict[str, Any]) -> list[float]:
    """Seconds of each of `PHASES`."""
    with command.Job(parent, keys, "-c", CLOCK, str(measure.ROOT / "scripts" / "train_federated.py")) as job:
        job.wait_for(0)
        while "CLOCK" not in job.output():
            time.sleep(0.02)
        line = next(line for line in job.output().splitlines() if line.startswith("CLOCK"))
        times = [job.typed_at, *json.loads(line.removeprefix("CLOCK"))]
    return [round(after - before, 2) for before, after in itertools.pairwise(times)]


def highest_memory(parent: Path, keys: dict[str, Any]) -> int:
    """Peak memory of all processes together during round 2, in bytes."""
    with command.Job(parent, keys) as job:
        job.wait_for(1)
        seen = []
        while 2 not in job.rounds():
            seen.append(job.memory())
            if job.process.poll() is not None:
                break
        job.end()
    return max(seen)


if __name__ == "__main__":
    main()
