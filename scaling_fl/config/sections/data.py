"""Tasks: which texts and labels, and how many of them."""

import pkgutil
from dataclasses import dataclass
from pathlib import Path

import scaling_fl
from scaling_fl.config.key import at_least, key, one_of

# The names of the modules in data/tasks. They are only listed: a task's code stands above the configuration.
TASKS = tuple(
    sorted(module.name for module in pkgutil.iter_modules([str(Path(scaling_fl.__path__[0], "data", "tasks"))]))
)


@dataclass(frozen=True)
class DataKeys:
    """Tasks and data."""

    task_name: str = key(
        "agnews",
        "the task: agnews, csv, demo, hub, imdb, spooky_author or yelp; see docs/tasks.md",
        **one_of(TASKS),
    )
    train_path: str | None = key(None, "training file or files; see docs/tasks.md", free=True)
    test_path: str | None = key(None, "test file or files", free=True)
    text_column: str | None = key(
        None, "column that holds the text; agnews: Description (default), Title or Title+Description"
    )
    text_pair_column: str | None = key(None, "column that holds the second of two texts, for tasks on pairs (csv, hub)")
    label_column: str | None = key(None, "column that holds the label: words or whole numbers (csv, hub)")
    dataset: str | None = key(
        None, "hub id of a data set, or a folder that the package `datasets` saved (hub)", free=True
    )
    dataset_config: str | None = key(None, "which of the data set's configurations, if it has several (hub)")
    train_split: str = key("train", "the training data: a split, or a part of one such as `train[:80%]` (hub)")
    test_split: str = key("test", "the test data, likewise (hub)")
    keep_br_tags: bool = key(False, "imdb: True keeps the reviews' `<br />`; False puts a space in its place")
    max_train_examples: int | None = key(
        None, "train on so many rows only, drawn with `data_seed` in the proportions of the labels", **at_least(1)
    )
    max_test_examples: int | None = key(None, "test on so many rows only, drawn likewise", **at_least(1))
    validation_fraction: float = key(
        0.0,
        "share of the training rows that no site trains on, drawn with `data_seed` like those; they yield `held_back.…`",
        "a number from 0 to less than 1",
        lambda share: 0 <= share < 1,
    )
