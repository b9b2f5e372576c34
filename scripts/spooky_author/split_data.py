#!/usr/bin/env python
"""Cut Kaggle's training file of the spooky author task into a training and a test file, author by author.

    ./run-local.sh scripts/spooky_author/split_data.py \
        --full-path data/spooky/full.csv --train-path data/spooky/train.csv --test-path data/spooky/test.csv

Kaggle's own test file has no authors. Paths are fsspec paths: local, s3:// or gs://. The same seed cuts the same way.
"""

import argparse
import csv
import io
import sys
from collections import Counter
from itertools import compress
from pathlib import Path

import fsspec
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from scaling_fl.errors import UserError
from scaling_fl.sharding import stratified
from scaling_fl.tasks import spooky_author, tables


def split(full_path: str, train_path: str, test_path: str, train_size: float, seed: int, force: bool) -> str:
    """Write the two files, and return the report: rows per author. Raises `UserError` before anything is written."""
    if not 0 < train_size < 1:
        raise UserError(f"--train-size={train_size}: expected a share between 0 and 1, such as 0.75")
    if len({full_path, train_path, test_path}) < 3:
        raise UserError("--full-path, --train-path and --test-path must be three different files")
    table = tables.read(full_path, "--full-path", dict.fromkeys(("id", "text", "author")))
    authors = [table.texts(column) for column in table.columns][-1]
    labels = table.classes("author", spooky_author.CLASSES)
    for path in (train_path, test_path):
        fs, place = fsspec.url_to_fs(path)
        if fs.exists(place) and not force:
            raise UserError(f"{path}: it is there already; choose another path, or write --force to replace it")

    in_train = np.zeros(len(authors), bool)
    in_train[stratified(labels, round(train_size * len(authors)), seed)] = True
    report = []
    for path, chosen in ((train_path, in_train), (test_path, ~in_train)):
        if not chosen.any():
            raise UserError(f"--train-size={train_size}: it leaves no row for {path}")
        buffer = io.StringIO()
        writer = csv.writer(buffer, quoting=csv.QUOTE_ALL, lineterminator="\n")
        writer.writerow(table.columns)
        writer.writerows(compress(zip(*table.columns.values(), strict=True), chosen))
        report.append((path, buffer.getvalue(), Counter(compress(authors, chosen))))
    for path, content, _ in report:
        fs, place = fsspec.url_to_fs(path)
        fs.makedirs(fs._parent(place), exist_ok=True)
        fs.pipe_file(place, content.encode())
    return "\n".join(
        f"{path}: {sum(counts.values()):,} rows ({', '.join(f'{a} {n:,}' for a, n in sorted(counts.items()))})"
        for path, _, counts in report
    )


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full-path", required=True, help="Kaggle's training file: id,text,author")
    parser.add_argument("--train-path", required=True, help="written: the training part")
    parser.add_argument("--test-path", required=True, help="written: the test part")
    parser.add_argument("--train-size", type=float, default=0.75, help="share of each author's rows (default: 0.75)")
    parser.add_argument("--seed", type=int, default=1, help="(default: 1)")
    parser.add_argument("--force", action="store_true", help="replace files that are there")
    options = parser.parse_args(argv)
    try:
        print(split(**vars(options)))
    except UserError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main(sys.argv[1:])
