import dataclasses

import numpy as np
import pytest

from scaling_fl.data.examples import Split, Task

SPLIT = Split(
    ["ab", "c", "d"], np.array([0, 1, 2]), pairs=["x", "y", "z"], sites=["n", "s", "n"],
    choices=[["ab", "o"], ["p", "c", "q"], ["d", "r"]],
)  # fmt: skip


@pytest.mark.parametrize(
    "change",
    [
        {"texts": ["a", "bc", "d"]},  # the same letters, cut elsewhere
        {"pairs": ["x", "yz", ""]},
        {"texts": ["ab", "c", "dx"], "pairs": ["", "y", "z"]},
        {"pairs": None},
        {"choices": None},
        {"choices": [["ab", "o"], ["p", "c", "q"], ["r", "d"]]},
        {"labels": np.array([0, 2, 1])},
    ],
)
def test_the_digest_tells_texts_pairs_and_labels_apart(change: dict[str, object]) -> None:
    assert dataclasses.replace(SPLIT, **change).digest != SPLIT.digest  # type: ignore[arg-type]
    assert dataclasses.replace(SPLIT, labels=SPLIT.labels.astype(np.int32), notes=("read",)).digest == SPLIT.digest


def test_the_digest_of_a_task_covers_both_splits_the_names_and_the_sites() -> None:
    task = Task(SPLIT, SPLIT, ("p", "q", "r"))
    other = dataclasses.replace(SPLIT, labels=np.array([1, 1, 1]))
    changed = [
        dataclasses.replace(task, train=other), dataclasses.replace(task, test=other),
        dataclasses.replace(task, label_names=("p", "r", "q")),
        dataclasses.replace(task, train=dataclasses.replace(SPLIT, sites=["n", "n", "s"])),
    ]  # fmt: skip
    assert len({task.digest(), *(variant.digest() for variant in changed)}) == 5


def test_rows_are_taken_with_all_that_belongs_to_them() -> None:
    taken = SPLIT.take(np.array([2, 0]))
    assert (taken.texts, taken.labels.tolist(), taken.pairs, taken.sites) == (
        ["d", "ab"],
        [2, 0],
        ["z", "x"],
        ["n", "n"],
    )
    assert taken.choices == [["d", "r"], ["ab", "o"]]
