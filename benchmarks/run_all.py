#!/usr/bin/env python
"""Run every benchmark that needs no GPU, and write their rows as one table to the console and benchmarks/README.md.

    ./run-local.sh benchmarks/run_all.py --model models/all-MiniLM-L6-v2 --train-path data/agnews/train.csv

If a script fails, it is named, the others still run, and the exit status is 1. The table shows missed bars. With --only,
the other scripts keep their rows, each with the commit it was measured at.
"""

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import measure
import torch

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "README.md"
BEGIN, END = "<!-- results -->", "<!-- end of results -->"
SCRIPTS = (
    "aggregation",
    "checkpoint",
    "cohorts",
    "evaluation",
    "hosting",
    "local_training",
    "lora",
    "lora_training",
    "outage",
    "reading",
    "round_overhead",
    "scaling",
    "startup",
    "token_store",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", required=True, help="a pre-trained model's folder: evaluation, local_training, token_store"
    )
    parser.add_argument("--train-path", required=True, help="AG News: evaluation, local_training")
    parser.add_argument("--language-model", help="folder of SmolLM2-135M: lora, lora_training; left out without it")
    parser.add_argument(
        "--conversations", help="JSON lines with prompt and response: lora_training; left out without it"
    )
    parser.add_argument("--only", nargs="+", default=SCRIPTS, choices=SCRIPTS, metavar="SCRIPT")
    options = parser.parse_args()
    needed = {"lora": [options.language_model], "lora_training": [options.language_model, options.conversations]}
    chosen = [name for name in options.only if all(needed.get(name, []))]
    arguments = {
        "evaluation": ["--model", options.model, "--train-path", options.train_path],
        "local_training": ["--model", options.model, "--train-path", options.train_path],
        "token_store": ["--model", options.model],
        "lora": ["--model", options.language_model],
        "lora_training": ["--model", options.language_model, "--train-path", options.conversations],
    }
    rows: dict[str, list[str]] = {name: [] for name in SCRIPTS}
    for line in RESULTS.read_text().splitlines():  # scripts that don't run keep their rows
        name = line.removeprefix("| `").split("`")[0]
        if name in rows and name not in chosen:
            rows[name].append(line)
    failed, commit = [], described()
    for name in chosen:
        print(f"\n{name}", flush=True)
        with tempfile.NamedTemporaryFile("r", suffix=".jsonl") as file:
            command = [sys.executable, str(HERE / f"{name}.py"), *arguments.get(name, [])]
            done = subprocess.run(command, env=os.environ | {measure.ROWS: file.name}, check=False)
            for line in file:
                row = json.loads(line)
                rows[name].append(f"| `{name}` | {' | '.join([*row, met(ratio=row[3], bar=row[4]), commit])} |")
        if done.returncode != 0:
            failed.append(f"{name} (exit status {done.returncode})")
    table = ["| script | claim | ours | peer | ratio | bar | met | commit |", f"|{' --- |' * 8}"]
    table += [row for name in SCRIPTS for row in rows[name]]
    results = "\n".join([machine(), "", *table, *(f"\nfailed: {name}" for name in failed)])
    print(f"\n{results}")
    publish(results)
    sys.exit(1 if failed else 0)


def met(ratio: str, bar: str) -> str:
    """Whether a ratio meets its bar, such as "≥ 0.45" or "≤ 1.5"; empty without a bar."""
    if not bar:
        return ""
    relation, limit = bar.split()
    value = float(ratio)
    return "yes" if (value >= float(limit) if relation == "≥" else value <= float(limit)) else "**no**"


def machine() -> str:
    """The line that names machine, versions and date."""
    processor = platform.machine()
    if (info := Path("/proc/cpuinfo")).exists():
        names = re.findall(r"^model name\s*: (.*)$", info.read_text(), re.MULTILINE)
        processor = names[0] if names else processor
    versions = f"torch {torch.__version__}, Python {platform.python_version()}"
    return f"{processor}, {measure.CORES} cores, {versions}, {time.strftime('%Y-%m-%d')}."


def described() -> str:
    """The measured commit, with "-dirty" if anything but the results has changed since."""

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", "-C", str(HERE), *words], capture_output=True, text=True, check=False
        ).stdout.strip()

    commit = git("describe", "--always")
    changed = git("status", "--porcelain", "--untracked-files=no", "--", ":/", f":!{RESULTS.name}")
    return commit + "-dirty" * bool(changed) or "unknown"


def publish(results: str) -> None:
    """Write the results between the markers in benchmarks/README.md."""
    text = RESULTS.read_text()
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        sys.exit(
            f"{RESULTS}: expected {BEGIN} and {END} once each; restore these lines (the results are printed above)"
        )
    before, rest = text.split(BEGIN)
    RESULTS.write_text(f"{before}{BEGIN}\n{results}\n{END}{rest.split(END)[1]}")


if __name__ == "__main__":
    main()
