"""Yelp reviews, one to five stars (Zhang et al. 2015): headerless `"5","text"`, as in the Crepe distribution."""

from scaling_fl.config.schema import Config
from scaling_fl.data.examples import NO_EXAMPLES, Split, Task
from scaling_fl.data.readers import tables
from scaling_fl.progress import Report

NEEDS = ("train_path", "test_path")
TAKES = ("partition_column", "test_fraction")
COLUMNS = ("stars", "text")
CLASSES = {"1": 0, "2": 1, "3": 2, "4": 3, "5": 4}
LABEL_NAMES = ("1 star", "2 stars", "3 stars", "4 stars", "5 stars")


def load(config: Config, report: Report) -> Task:
    return Task(_split(config, "train_path"), _split(config, "test_path"), LABEL_NAMES)


def _split(config: Config, key: str) -> Split:
    if getattr(config, key) is None:
        return NO_EXAMPLES
    wanted = tables.wanted(config, key, dict.fromkeys(COLUMNS))
    table = tables.read(getattr(config, key), key, wanted, headerless=COLUMNS)
    # The distribution escapes line breaks. Searching for one character is several times faster than for two.
    texts = [text.replace("\\n", "\n") if "\\" in text else text for text in table.texts("text")]
    labels, sites = table.classes("stars", CLASSES), table.sites(config.partition_column)
    return Split(texts, labels, notes=table.notes, sites=sites)
