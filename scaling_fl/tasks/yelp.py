"""Yelp reviews, one to five stars (Zhang et al. 2015): headerless `"5","text"`, as in the Crepe distribution."""

import numpy as np

from scaling_fl.config import Config
from scaling_fl.tasks import Split, Task, tables

COLUMNS = ["stars", "text"]
LABEL_NAMES = ("1 star", "2 stars", "3 stars", "4 stars", "5 stars")


def load(config: Config) -> Task:
    return Task(_split(config, "train_path"), _split(config, "test_path"), LABEL_NAMES)


def _split(config: Config, key: str) -> Split:
    table = tables.read(getattr(config, key), key, headerless=COLUMNS)
    stars = table.labels("stars", {"1", "2", "3", "4", "5"})
    texts = [text.replace("\\n", "\n") for text in table.column("text", key)]  # line breaks come as backslash, n
    return Split(texts, np.array(stars, np.int64) - 1)
