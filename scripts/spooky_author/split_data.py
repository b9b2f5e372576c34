#!/usr/bin/env python
"""Split Kaggle's training file of the spooky author task into a training and a test file, stratified by author.

    ./run-local.sh scripts/spooky_author/split_data.py \
        --full-path data/spooky/full.csv --train-path data/spooky/train.csv --test-path data/spooky/test.csv

Kaggle's own test file has no authors. Paths are fsspec paths: local, s3:// or gs://. The split depends
only on the rows, --train-size and --seed.
"""

import argparse
import csv
import io
import sys
from collections import Counter
from itertools import compress
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from scaling_fl.checkpoint.storage import storage_errors
from scaling_fl.data.readers import paths, tables
from scaling_fl.data.subsets import stratified
from scaling_fl.data.tasks import spooky_author
from scaling_fl.errors import UserError


def split(full_path: str, train_path: str, test_path: str, train_size: float, seed: int, force: bool) -> str:
    """Write the two files; return a report of rows per author. Raises `UserError` before writing if an option is invalid."""
    if not 0 < train_size < 1:
        raise UserError(f"--train-size={train_size}: expected a number between 0 and 1, such as 0.75")
    if not 0 <= seed < 2**32:
        raise UserError(f"--seed={seed}: expected a whole number from 0 to 4294967295")
    sources = paths.expand(full_path, "--full-path")
    if len({paths.place(path) for path in (*sources, train_path, test_path)}) < len(sources) + 2:
        raise UserError("--full-path, --train-path and --test-path must be three different files")
    table = tables.read(full_path, "--full-path", dict.fromkeys(("id", "text", "author")))
    for column in ("id", "text"):
        table.texts(column)
    authors = table.texts("author")
    labels = table.classes("author", spooky_author.CLASSES)
    for path in (train_path, test_path):
        if not path.endswith(".csv"):
            raise UserError(f"{path}: the output is CSV; choose a name ending in .csv")
        with storage_errors(path, "cannot write to it"):
            fs, place = paths.file_system(path)
            if fs.isdir(place):
                raise UserError(f"{path}: found a folder, expected a file; choose another path")
            if fs.exists(place) and not force:
                raise UserError(f"{path}: already exists; choose another path, or add --force to replace it")

    in_train = np.zeros(len(authors), bool)
    in_train[stratified(labels, round(train_size * len(authors)), seed)] = True
    report = []
    for path, chosen in ((train_path, in_train), (test_path, ~in_train)):
        if not chosen.any():
            raise UserError(f"--train-size={train_size}: it leaves no row for {path}; move it closer to 0.5")
        buffer = io.StringIO()
        writer = csv.writer(buffer, quoting=csv.QUOTE_ALL, lineterminator="\n")
        writer.writerow(table.columns)
        writer.writerows(compress(zip(*table.columns.values(), strict=True), chosen))
        report.append((path, buffer.getvalue(), Counter(compress(authors, chosen))))
    for path, *_ in report:
        with storage_errors(path, "cannot write to it"):
            fs, place = paths.file_system(path)
            fs.makedirs(fs._parent(place), exist_ok=True)
    lines = list(table.notes)
    for path, content, counts in report:
        with storage_errors(path, "cannot write to it"):
            fs, place = paths.file_system(path)
            fs.pipe_file(place, content.encode())
        shares = ", ".join(f"{author} {count:,}" for author, count in sorted(counts.items()))
        lines.append(f"{path}: {sum(counts.values()):,} rows ({shares})")
    return "\n".join(lines)


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full-path", required=True, help="Kaggle's training file: id,text,author")
    parser.add_argument("--train-path", required=True, help="output: the training part")
    parser.add_argument("--test-path", required=True, help="output: the test part")
    parser.add_argument("--train-size", type=float, default=0.75, help="share of each author's rows (default: 0.75)")
    parser.add_argument("--seed", type=int, default=1, help="(default: 1)")
    parser.add_argument("--force", action="store_true", help="replace existing files")
    options = parser.parse_args(argv)
    try:
        print(split(**vars(options)))
    except UserError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main(sys.argv[1:])
