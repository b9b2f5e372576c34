"""Texts that occur more than once: within the training or the test rows, and in both. Millions of rows take a second."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from scaling_fl.data.examples import Split


class Duplicates(NamedTuple):
    """Numbers of rows. A pair of texts is a duplicate if both texts are."""

    in_train: int  # training rows that repeat the text of an earlier training row
    in_test: int  # test rows that repeat the text of an earlier test row
    shared: int  # test rows whose text is also in the training rows
    relabelled: int  # of the shared ones: those whose label no training row with that text has


def count(train: Split, test: Split) -> Duplicates:
    """Count by 64-bit hash: among a million different texts, two have the same hash with probability 3e-8."""
    distinct, ids = np.unique(np.concatenate([_hashes(train), _hashes(test)]), return_inverse=True)
    in_train, in_test = np.split(ids, [len(train)])
    known = np.zeros(len(distinct), bool)
    known[in_train] = True
    num_labels = int(max(train.labels.max(initial=0), test.labels.max(initial=0))) + 1
    same_label = np.isin(in_test * num_labels + test.labels, in_train * num_labels + train.labels)
    return Duplicates(
        in_train=len(train) - int(known.sum()),
        in_test=len(test) - len(np.unique(in_test)),
        shared=int(known[in_test].sum()),
        relabelled=int((known[in_test] & ~same_label).sum()),
    )


def notes(train: Split, test: Split, name: str = "test", remedy: str = "use another test set") -> list[str]:
    """Notes for the user on rows that training and test share, and on duplicates in training."""
    found, said = count(train, test), list[str]()
    if found.shared:
        relabelled = f", {found.relabelled:,} of them with another label" if found.relabelled else ""
        mostly = f"; most of them do, so {name} metrics say little about new texts: {remedy}"
        said.append(
            f"{name} rows that repeat a training text: {found.shared:,} of {len(test):,} "
            f"({found.shared / len(test):.1%}){relabelled}{mostly if 2 * found.shared > len(test) else ''}"
        )
    if found.in_train and name == "test":
        said.append(
            f"training rows that repeat an earlier text: {found.in_train:,} of {len(train):,} "
            f"({found.in_train / len(train):.1%})"
        )
    return said


def _hashes(split: Split) -> npt.NDArray[np.int64]:
    contents = split.texts if split.pairs is None else zip(split.texts, split.pairs, strict=True)
    return np.fromiter(map(hash, contents), np.int64, len(split))
