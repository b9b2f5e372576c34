from pathlib import Path
from unittest.mock import MagicMock

import numpy as np
import pytest

from scaling_fl.commands import show_task
from scaling_fl.config.schema import Config
from scaling_fl.data.examples import Split, Task
from scaling_fl.text import num_columns
from tests import builders

TRAIN = Split(["a b", "c", "a b", "c", "d " * 200, ""], np.array([0, 0, 0, 1, 1, 1]))
TEST = Split(["a b", "a b", "c", "new", "c"], np.array([0, 1, 1, 0, 0]))


def describe(task: Task, **keys: object) -> list[str]:
    lengths = [np.array([len(text.split()) + 2 for text in split.texts]) for split in (task.train, task.test)]
    return show_task.describe(Config(**keys), task, *lengths)  # type: ignore[arg-type]


def test_counts_shares_lengths_and_truncation_match_the_rows() -> None:
    lines = describe(Task(TRAIN, TEST, ("sea", "land", "moon"), ("a note",)), max_seq_len=4)
    assert lines[:2] == ["task agnews: 6 training and 5 test rows", "note: a note"]
    assert [line.split() for line in lines[4:7]] == [
        ["0", "sea", "3", "50.0%", "3", "60.0%"],
        ["1", "land", "3", "50.0%", "2", "40.0%"],
        ["2", "moon", "0", "0.0%", "0", "0.0%"],
    ]
    assert lines[9].endswith("over max_seq_len=4")
    # lengths 4, 3, 4, 3, 202, 2, of which one exceeds 4; the 3rd of 6 is the median, the 6th all higher quantiles
    assert lines[10].split() == ["training", "2", "3", "202", "202", "202", "1", "(16.7%)"]
    assert lines[11].split() == ["test", "3", "3", "4", "4", "4", "0", "(0.0%)"]


def test_duplicates_within_and_between_splits_are_counted() -> None:
    lines = describe(Task(TRAIN, TEST, ("sea", "land")))
    # train: the second "a b" and the second "c"; test: the second "a b" and the second "c"
    assert "duplicates within a split: 2 training and 2 test rows repeat an earlier text" in lines
    # all but "new"; "a b" is only 0 in train, so that its test row with 1 has another label; "c" is both
    between = "duplicates between splits: 4 test rows repeat a training text, 1 of them with another label"
    assert between in lines


def test_pairs_are_duplicates_if_both_texts_are() -> None:
    train = Split(["a", "a", "a"], np.array([0, 1, 1]), ["x", "y", "x"])
    test = Split(["a", "b"], np.array([0, 1]), ["z", "x"])
    lines = describe(Task(train, test, ("no", "yes")))
    assert "duplicates within a split: 1 training and 0 test rows repeat an earlier text" in lines
    assert any(line.startswith("duplicates between splits: 0 test rows") for line in lines)
    assert "yes: a ‖ y" in lines


def test_five_examples_of_all_labels_are_shown_on_one_shortened_line_each() -> None:
    texts = [f"text {i}\nof two lines" for i in range(50)] + ["word " * 100]
    train = Split(texts, np.array([0] * 30 + [1] * 20 + [2]))
    lines = describe(Task(train, TEST, ("sea", "land", "moon")))
    examples = lines[lines.index("training examples") + 1 :]
    assert sorted(line.split(":")[0] for line in examples) == ["land", "land", "sea", "sea", "sea"]
    assert all(line.endswith("of two lines") for line in examples)
    assert lines == describe(Task(train, TEST, ("sea", "land", "moon"))), "the same examples each time"
    long = describe(Task(Split(["word " * 100] * 2, np.array([0, 1])), TEST, ("sea", "land")))[-1]
    assert len(long) < 170
    assert long.endswith(" …")


def test_many_labels_are_abridged() -> None:
    train = Split(["x"] * 100, np.arange(100))
    lines = describe(Task(train, train, tuple(f"label {i}" for i in range(100))))
    assert "       … and 70 more labels" in lines
    assert sum("  label " in line for line in lines) == 31, "and the heading"


def test_lengths_are_those_of_whole_texts_and_pairs(tmp_path: Path) -> None:
    lines: list[str] = []
    train = tmp_path / "train.csv"
    train.write_text("text,more,label\nriver stone,engine,a\n" + '"' + "river " * 600 + '",,b\n')
    test = tmp_path / "test.csv"
    test.write_text("text,more,label\nriver,stone,a\n")
    config = Config(
        task_name="csv", train_path=str(train), test_path=str(test), text_column="text", text_pair_column="more",
        label_column="label", model=str(builders.pretrained(tmp_path / "model")), max_seq_len=10,
    )  # fmt: skip
    send = MagicMock(side_effect=lambda event: lines.append(event.get("text", "")))
    show_task.show(send, config, 120)
    # [CLS] river stone [SEP] engine [SEP], and [CLS] 600 words [SEP] [SEP]
    assert any(line.split() == ["training", "6", "6", "603", "603", "603", "1", "(50.0%)"] for line in lines)
    assert any(line.split() == ["test", "5", "5", "5", "5", "5", "0", "(0.0%)"] for line in lines)


def test_control_characters_reach_neither_the_terminal_nor_the_table() -> None:
    train = Split(["\x1b[2Jgone"] * 2, np.array([0, 1]))
    lines = describe(Task(train, train, ("a\nb", "\x1b[31m" + "long " * 100)))
    assert all(line.isprintable() and len(line) < 120 for line in lines)
    assert "a b: �[2Jgone" in lines


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize("start", ["Business and Industry, all the categories of ", "農"])
def test_rows_fit_the_terminal(width: int, start: str) -> None:
    names = tuple(f"{start}{kind}" for kind in ("farming", "fishing", "banking"))
    lengths = [np.full(120_000, 9_999), np.full(10, 3)]
    task = Task(Split(["word " * 99, "新闻 " * 99] * 2, np.array([0, 1, 2, 2])), TEST, names)
    lines = show_task.describe(Config(max_seq_len=128), task, *lengths, width)
    prose = ("tokens of model=", "duplicates ")
    rows = [line for line in lines if not line.startswith(prose)]
    assert all(num_columns(line) <= width for line in rows), max(rows, key=num_columns)
    assert len({num_columns(line) for line in rows[2:6]}) == 1, "the columns of the table are aligned"
    assert [line.split()[-5].removeprefix("農") for line in lines[3:6]] == ["farming", "fishing", "banking"]


def test_documents_have_no_table_of_labels(tmp_path: Path) -> None:
    lines = describe(Task(TRAIN, TEST, (), predicts_tokens=True), task_name="lm")
    assert not any("label" in line for line in lines[:6])
    assert "tokens of model=distilbert, special tokens included; documents are packed into blocks" in lines
    assert "a b" in lines[lines.index("training examples") + 1 :]


def test_conversations_are_shown_as_the_model_reads_them(tmp_path: Path) -> None:
    for name in ("train", "test"):
        (tmp_path / f"{name}.jsonl").write_text('{"prompt": "river", "response": "stone"}\n' * 3)
    paths = {f"{name}_path": str(tmp_path / f"{name}.jsonl") for name in ("train", "test")}
    model = str(builders.pretrained(tmp_path / "llama", "llama"))
    keys = {
        "task_name": "instructions",
        "model": model,
        "prompt_template": "Q {prompt} A {response}",
        "max_seq_len": 32,
    } | paths
    send = MagicMock()
    show_task.show(send, Config.from_mapping(keys), 100)
    lines = [call.args[0]["text"] for call in send.call_args_list if call.args[0]["event"] == "said"]
    assert "Q river A stone[SEP]" in lines
