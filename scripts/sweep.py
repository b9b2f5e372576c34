#!/usr/bin/env python
"""Run many jobs of one study: every combination of some keys.

./run-local.sh scripts/sweep.py sweeps/smoke.yaml
./run-local.sh scripts/sweep.py with demo num_sites=[1,2,4] seed=[1,2,3] threads_per_site=1
./run-local.sh scripts/sweep.py sweeps/scaling.yaml with model=[bert,distilbert] --dry-run
./run-local.sh scripts/sweep.py report sweeps/smoke.yaml

Complete cells are skipped, and started ones resume: to go on after an interruption, type the same command again.
"""

import argparse
import os
import shlex
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.realpath(__file__))))

from scaling_fl import env_file
from scaling_fl.errors import UserError
from scaling_fl.text import for_stderr

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scaling_fl.sweep.cells import Cell

FOLDER = Path("runs") / "_sweeps"


def main(argv: list[str]) -> int:
    """Run the command; returns its exit status: 1 if a cell failed or the input can't be used."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "words", nargs="*", metavar="[report] [FILE] [with KEY=VALUE …]", help="a sweep as YAML, and keys"
    )
    parser.add_argument("--name", help="of the sweep, which the names of its jobs begin with (default: the file's)")
    parser.add_argument(
        "--jobs", type=int, metavar="N", help="at most so many at once (default: what the machine holds)"
    )
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--dry-run", action="store_true", help="print the jobs with estimated time and memory")
    mode.add_argument("--print-commands", action="store_true", help="print a shell line for each job that is left")
    mode.add_argument("--slurm", action="store_true", help="hand the jobs to Slurm, by submitit")
    parser.add_argument("--cluster", default="slurm", help=argparse.SUPPRESS)  # local and debug, for tests
    options = parser.parse_intermixed_args(argv)  # flags may stand between or before words
    words = options.words
    position = words.index("with") if "with" in words else len(words)
    files, updates = words[:position], words[position + 1 :]
    report = files[:1] == ["report"]
    files = files[report:]
    if len(files) > 1 or not (files or updates):
        parser.error("expected the file of a sweep, or `with` and keys")
    try:
        env_file.load(Path(__file__).resolve().parent.parent / ".env")
        return sweep(files, updates, report, options)
    except UserError as error:
        print(for_stderr(f"Refused: {error}"), file=sys.stderr)
        return 1


def sweep(files: list[str], updates: list[str], report: bool, options: argparse.Namespace) -> int:
    """Run, list or report the sweep; returns the exit status."""
    from scaling_fl.sweep import cells, definition, estimate, runner, slots, slurm
    from scaling_fl.sweep.view import CellTable

    found = definition.load(Path(files[0])) if files else definition.Definition()
    found = definition.updated(found, updates, options.name)
    all_cells = found.cells()
    folder = FOLDER / found.name
    if report or options.dry_run or options.print_commands:
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # for `| head`
    if report:
        if not _print_results(found.name, all_cells, folder):
            raise UserError(
                f"sweep {found.name}: none of its {len(all_cells)} jobs has started; run it without `report`"
            )
        return 0
    states = {cell.name: cells.state(cell) for cell in all_cells}
    if changed := [state.reason for state in states.values() if state.status == "changed"]:
        raise UserError(
            f"sweep {found.name}: {len(changed)} of its jobs ran with other settings: {changed[0]}; or set --name"
        )
    todo = [cell for cell in all_cells if states[cell.name].status != "complete"]
    measured = runner.load_memory(folder)
    if options.dry_run:
        print("\n".join(estimate.lines(all_cells, states, slots.of_this_machine(options.jobs, measured))))
        return 0
    if options.print_commands:
        for cell in todo:
            print(shlex.join(["./run-local.sh", "scripts/train_federated.py", *cell.words()]))
        return 0
    folder.mkdir(parents=True, exist_ok=True)
    if options.slurm:
        print("\n".join(slurm.submit(todo, found.name, folder, found.slurm, options.cluster)))
        return 0
    print(
        f"sweep {found.name}: {len(all_cells)} cells, {len(all_cells) - len(todo)} complete; logs in {folder}",
        flush=True,
    )
    places = slots.of_this_machine(options.jobs, measured)
    with CellTable(found.name, all_cells, states) as table:
        running = runner.Runner(folder, places, table)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, lambda *_: running.stop())
        running.run(todo)
    runner.save_memory(folder, measured)
    print(f"sweep {found.name}: {table.counts()}")
    if running.stopped:
        print("stopped: type the same command again to go on", file=sys.stderr)
        return 130
    for name, reason in running.failures.items():
        print(for_stderr(f"failed: {name}: {reason}\n  {folder / name}.log"), file=sys.stderr)
    _print_results(found.name, all_cells, folder)
    return int(bool(running.failures))


def _print_results(name: str, all_cells: "Sequence[Cell]", folder: Path) -> bool:
    """Write and print the results; returns whether there are any, because a job has started."""
    from scaling_fl.sweep import results

    paths = results.write(name, all_cells, folder)
    if paths:
        print((folder / "results.md").read_text(), end="")
        print(*paths, sep="\n")
    return bool(paths)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
