"""AG News (Zhang et al. 2015): four classes of news, with Kaggle's header, or headerless as in the Crepe distribution."""

from scaling_fl.config.schema import Config
from scaling_fl.data.examples import NO_EXAMPLES, Split, Task
from scaling_fl.data.readers import tables
from scaling_fl.errors import UserError
from scaling_fl.progress import Report

NEEDS = ("train_path", "test_path")
TAKES = ("text_column", "partition_column", "test_fraction")
COLUMNS = ("Class Index", "Title", "Description")
LABEL_NAMES = ("World", "Sports", "Business", "Sci/Tech")
CLASSES = {"1": 0, "2": 1, "3": 2, "4": 3}
TEXTS = {"Title": ("Title",), "Description": ("Description",), "Title+Description": ("Title", "Description")}


def load(config: Config, report: Report) -> Task:
    text_column = config.text_column or "Description"
    if text_column not in TEXTS:
        raise UserError(f"text_column={text_column!r}: expected one of {', '.join(TEXTS)} with task_name=agnews")
    columns = dict.fromkeys(("Class Index", *TEXTS[text_column]))

    def split(key: str) -> Split:
        if getattr(config, key) is None:
            return NO_EXAMPLES
        table = tables.read(getattr(config, key), key, tables.wanted(config, key, columns), headerless=COLUMNS)
        texts = [" ".join(parts) for parts in zip(*map(table.texts, TEXTS[text_column]), strict=True)]
        labels, sites = table.classes("Class Index", CLASSES), table.sites(config.partition_column)
        return Split(texts, labels, notes=table.notes, sites=sites)

    return Task(split("train_path"), split("test_path"), LABEL_NAMES)
