"""Spooky author identification (Kaggle 2017): sentences of three authors, `id,text,author`.

Kaggle's test file has no authors: `scripts/spooky_author/split_data.py` cuts a test set from its training file.
"""

import numpy as np

from scaling_fl.config import Config
from scaling_fl.tasks import Split, Task, tables

AUTHORS = {"EAP": "Edgar Allan Poe", "HPL": "H. P. Lovecraft", "MWS": "Mary Wollstonecraft Shelley"}


def load(config: Config) -> Task:
    return Task(_split(config, "train_path"), _split(config, "test_path"), tuple(AUTHORS.values()))


def _split(config: Config, key: str) -> Split:
    table = tables.read(getattr(config, key), key)
    numbers = {author: number for number, author in enumerate(AUTHORS)}
    labels = [numbers[author] for author in table.labels("author", set(AUTHORS))]
    return Split(table.column("text", key), np.array(labels, np.int64))
