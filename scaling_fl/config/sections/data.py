"""Keys of tasks and data: which texts and labels, and how many of them."""

import pkgutil
from dataclasses import dataclass
from pathlib import Path

import scaling_fl
from scaling_fl.config.key import at_least, key, one_of

# The modules in data/tasks, listed but not imported: the configuration must not depend on the code of tasks.
TASKS = tuple(
    sorted(module.name for module in pkgutil.iter_modules([str(Path(scaling_fl.__path__[0], "data", "tasks"))]))
)


@dataclass(frozen=True)
class DataKeys:
    """Tasks and data."""

    task_name: str = key(
        "agnews",
        "the task: agnews, csv, demo, hub, imdb, instructions, lm, spooky_author or yelp; see docs/tasks.md",
        **one_of(TASKS),
    )
    train_path: str | None = key(
        None, "training file or files: paths separated by commas, or a pattern; see docs/tasks.md", may_change=True
    )
    test_path: str | None = key(
        None, "test file or files: paths separated by commas, or a pattern; see docs/tasks.md", may_change=True
    )
    text_column: str | None = key(
        None,
        "column that holds the text (tasks csv, hub; lm: default text); for agnews: Description (default), Title or "
        "Title+Description",
    )
    text_pair_column: str | None = key(None, "column that holds the second text of a pair (tasks csv, hub)")
    label_column: str | None = key(
        None,
        "column that holds the label: words or whole numbers (tasks csv, hub); for language models, it only divides rows among sites",
    )
    prompt_column: str | None = key(None, "column that holds the prompt (task instructions); default: prompt")
    response_column: str | None = key(None, "column that holds the response (task instructions); default: response")
    messages_column: str | None = key(
        None, "column that holds a whole chat, as a list of messages with role and content (task instructions)"
    )
    prompt_template: str | None = key(
        None,
        "text with {prompt} and, at its end, {response}, in the place of the tokenizer's chat template (task instructions)",
    )
    choices_column: str | None = key(
        None,
        "column that holds the possible responses, as a JSON list, of which the response is one: the test set is then also "
        "measured by the response that the model finds most probable; training data may lack it (task instructions)",
    )
    dataset: str | None = key(
        None,
        "Hugging Face hub id of a data set, or a folder saved by the package `datasets` (tasks hub, instructions, lm)",
        may_change=True,
    )
    dataset_config: str | None = key(
        None, "configuration of the data set, if it has several (tasks hub, instructions, lm)"
    )
    train_split: str = key(
        "train", "split with the training data, or part of a split such as `train[:80%]` (tasks hub, instructions, lm)"
    )
    test_split: str = key(
        "test", "split with the test data, or part of a split such as `train[80%:]` (tasks hub, instructions, lm)"
    )
    keep_br_tags: bool = key(False, "for imdb: True keeps the reviews' `<br />` tags; False replaces each with a space")
    max_train_examples: int | None = key(
        None,
        "maximum number of training rows; the rows are drawn with `data_seed`, stratified by label; default: all",
        **at_least(1),
    )
    max_test_examples: int | None = key(
        None,
        "maximum number of test rows; the rows are drawn with `data_seed`, stratified by label; default: all",
        **at_least(1),
    )
    test_fraction: float = key(
        0.0,
        "share of the rows of `train_path` (task hub: `train_split`) that become the test set, instead of `test_path`; drawn "
        "with `data_seed`, stratified by label (tasks agnews, csv, hub, instructions, lm, spooky_author, yelp)",
        "a number from 0 to less than 1",
        lambda share: 0 <= share < 1,
    )
    validation_fraction: float = key(
        0.0,
        "share of the training rows held back from all sites for the metrics `held_back.…`; drawn with `data_seed`, "
        "stratified by label",
        "a number from 0 to less than 1",
        lambda share: 0 <= share < 1,
    )
