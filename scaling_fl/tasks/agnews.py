"""AG News (Zhang et al. 2015): four classes of news, with Kaggle's header or headerless as in the Crepe distribution."""

import numpy as np

from scaling_fl.config import Config
from scaling_fl.errors import UserError
from scaling_fl.tasks import Split, Task, tables

COLUMNS = ["Class Index", "Title", "Description"]
LABEL_NAMES = ("World", "Sports", "Business", "Sci/Tech")
TEXTS = {"Title": ("Title",), "Description": ("Description",), "Title+Description": ("Title", "Description")}


def load(config: Config) -> Task:
    return Task(_split(config, "train_path"), _split(config, "test_path"), LABEL_NAMES)


def _split(config: Config, key: str) -> Split:
    text_column = config.text_column or "Description"
    if text_column not in TEXTS:
        raise UserError(f"text_column={text_column!r}: task_name=agnews has {', '.join(TEXTS)}")
    table = tables.read(getattr(config, key), key, headerless=COLUMNS)
    labels = table.labels("Class Index", {"1", "2", "3", "4"})
    columns = [table.column(name, "text_column") for name in TEXTS[text_column]]
    return Split([" ".join(parts) for parts in zip(*columns, strict=True)], np.array(labels, np.int64) - 1)
