from pathlib import Path

import numpy as np
import pytest

from scaling_fl.config.schema import Config
from scaling_fl.data import duplicates
from scaling_fl.data.examples import Split
from scaling_fl.federated.run_plan import Plan
from scaling_fl.runtime import launcher


def split(texts: list[str], labels: list[int], pairs: list[str] | None = None) -> Split:
    return Split(texts, np.array(labels), pairs)


def test_repeated_texts_are_counted_as_by_a_loop_over_all_rows() -> None:
    rng = np.random.default_rng(3)
    train, test = (
        split([f"text {number}" for number in rng.integers(0, 40, size)], rng.integers(0, 3, size).tolist())
        for size in (50, 31)
    )
    labels_of: dict[str, set[int]] = {}
    for text, label in zip(train.texts, train.labels.tolist(), strict=True):
        labels_of.setdefault(text, set()).add(label)
    shared = [(t, n) for t, n in zip(test.texts, test.labels.tolist(), strict=True) if t in labels_of]
    relabelled = sum(label not in labels_of[text] for text, label in shared)
    assert duplicates.count(train, test) == (50 - len(labels_of), 31 - len(set(test.texts)), len(shared), relabelled)
    assert 0 < relabelled < len(shared) < 31, "every number counts"


def test_a_pair_is_a_duplicate_if_both_texts_are() -> None:
    train = split(["a", "a", "a"], [0, 1, 1], ["x", "y", "x"])
    assert duplicates.count(train, split(["a", "x", "a"], [0, 0, 0], ["z", "a", "y"])) == (1, 0, 1, 1)


def test_a_label_that_only_test_rows_have_is_another_label() -> None:
    assert duplicates.count(split(list("abc"), [0, 0, 1]), split(list("abc"), [2, 2, 2])) == (0, 0, 3, 3)


def test_notes_give_numbers_and_a_remedy_if_most_test_rows_are_training_rows() -> None:
    train = split(["a", "b", "c", "c", "d"], [0, 1, 0, 0, 1])
    assert duplicates.notes(train, split(["a", "e", "b", "f"], [1, 0, 1, 1])) == [
        "test rows that repeat a training text: 2 of 4 (50.0%), 1 of them with another label",
        "training rows that repeat an earlier text: 1 of 5 (20.0%)",
    ]
    (note,) = duplicates.notes(split(["a", "b"], [0, 1]), split(["a", "b"], [0, 1]))
    assert note.startswith("test rows that repeat a training text: 2 of 2 (100.0%); most of them do, so test metrics")
    assert note.endswith("use another test set")
    assert duplicates.notes(split(["a", "b"], [0, 1]), split(["c", "c"], [0, 1])) == []


@pytest.mark.parametrize("fraction", [0.0, 0.25])
def test_the_same_file_for_training_and_test_is_noted_before_training(
    small_config: Config, tmp_path: Path, fraction: float
) -> None:
    lines = [f"{label},text {number // 2}" for number, label in enumerate("abbaabba" * 3)]  # each text twice
    Path(str(small_config.train_path)).write_text("\n".join(["topic,body", *lines]))
    config = Config.from_mapping(
        small_config.to_mapping() | {"test_path": small_config.train_path, "validation_fraction": fraction}
    )
    (tmp_path / "work").mkdir()
    plan: Plan = launcher.prepare(config, str(tmp_path / "work"), lambda event: None)
    assert any(n.startswith("test rows that repeat a training text: 24 of 24 (100.0%); most") for n in plan.notes)
    repeated = [note for note in plan.notes if note.startswith("training rows that repeat an earlier text")]
    assert repeated == ["training rows that repeat an earlier text: 12 of 24 (50.0%)"], "once, of all rows"
    held_back = [note for note in plan.notes if note.startswith("held-back rows that repeat a training text: ")]
    assert [" of 6 (" in note for note in held_back] == [True] * (fraction > 0), "6 of 24 rows are held back"
