"""The predictions for the test set as a Parquet file: all examples, and the texts of the worst mistakes."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from scaling_fl.data.examples import Predictions, Split

_TEXTS = "test_texts.parquet"
_MAX_ROWS = 100_000  # a megabyte
_MAX_TEXTS = 100
_MAX_CHARACTERS = 2_000  # of a text


def write_texts(work: Path, test: Split) -> None:
    """Keep the texts of the test set in the work folder, for `content`."""
    columns = {"text": test.texts} | ({"text_pair": test.pairs} if test.pairs is not None else {})
    arrays = [_strings(texts) for texts in columns.values()]
    pq.write_table(pa.Table.from_arrays(arrays, names=list(columns)), work / _TEXTS)


def table(file: Path | BinaryIO) -> pa.Table:
    """The rows of a Parquet file.

    By the calling thread alone: a process that ends while pyarrow's threads for datasets still start is aborted.
    """
    return pq.ParquetFile(file, pre_buffer=False).read(use_threads=False)


def content(work: Path, label_names: Sequence[str], predictions: Predictions) -> bytes:
    """The file: row (from 1), label, predicted, probability, text, and text_pair where texts are pairs.

    The wrong predictions come first, the most confident ones at the top. Only those at the top have their texts. Rows
    beyond 100,000 are left out.
    """
    labels = np.load(work / "test" / "labels.npy")[predictions.rows]
    wrong = predictions.labels != labels
    order = np.lexsort((-predictions.probabilities, ~wrong))[:_MAX_ROWS]
    shown = order[: min(_MAX_TEXTS, int(wrong.sum()))]
    texts = table(work / _TEXTS).take(predictions.rows[shown])
    names = pa.array(label_names, pa.string())
    columns: dict[str, pa.Array] = {
        "row": pa.array(predictions.rows[order] + 1, pa.int32()),
        "label": pa.DictionaryArray.from_arrays(pa.array(labels[order], pa.int32()), names),
        "predicted": pa.DictionaryArray.from_arrays(pa.array(predictions.labels[order], pa.int32()), names),
        "probability": pa.array(predictions.probabilities[order], pa.float32()),
    }
    for name in texts.column_names:
        cut = [_shortened(text) for text in texts.column(name).to_pylist()]
        columns[name] = pa.array(cut + [None] * (len(order) - len(cut)), pa.string())
    file = io.BytesIO()
    pq.write_table(pa.table(columns), file, compression="zstd")
    return file.getvalue()


def _strings(texts: Sequence[str]) -> pa.Array:
    """As pa.array, which imports pandas: half a second before each job."""
    encoded = [text.encode() for text in texts]
    offsets = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
    return pa.LargeStringArray.from_buffers(len(texts), pa.py_buffer(offsets), pa.py_buffer(b"".join(encoded)))


def _shortened(text: str) -> str:
    return text if len(text) <= _MAX_CHARACTERS else text[:_MAX_CHARACTERS] + "…"
