"""Spooky author identification (Kaggle 2017): sentences by three authors, `id,text,author`.

Kaggle's test file has no authors: `scripts/spooky_author/split_data.py` splits off a test set from its training file.
"""

from scaling_fl.config.schema import Config
from scaling_fl.data.examples import NO_EXAMPLES, Split, Task
from scaling_fl.data.readers import tables
from scaling_fl.progress import Report

NEEDS = ("train_path", "test_path")
TAKES = ("partition_column", "test_fraction")
AUTHORS = {"EAP": "Edgar Allan Poe", "HPL": "H. P. Lovecraft", "MWS": "Mary Wollstonecraft Shelley"}
CLASSES = {author: number for number, author in enumerate(AUTHORS)}


def load(config: Config, report: Report) -> Task:
    return Task(_split(config, "train_path"), _split(config, "test_path"), tuple(AUTHORS.values()))


def _split(config: Config, key: str) -> Split:
    if getattr(config, key) is None:
        return NO_EXAMPLES
    wanted = tables.wanted(config, key, dict.fromkeys(("text", "author")))
    table = tables.read(getattr(config, key), key, wanted)
    labels, sites = table.classes("author", CLASSES), table.sites(config.partition_column)
    return Split(table.texts("text"), labels, notes=table.notes, sites=sites)
