"""Properties that hold for any input: files of rows, configurations, command lines, token stores."""

import csv
import dataclasses
import gzip
import io
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from scaling_fl.config.command_line import keep_text
from scaling_fl.config.schema import Config
from scaling_fl.data import partitioners, token_store
from scaling_fl.data.readers import tables
from scaling_fl.errors import UserError

WANTED = {"text": "text_column", "label": "label_column"}
characters = st.characters(codec="utf-8", exclude_characters="\0")
# Mostly characters that are special in CSV.
field = st.text(st.sampled_from(',;\t" \r\n\u2028') | characters, max_size=15)
records = st.lists(st.tuples(field, field), min_size=1, max_size=8)


@settings(max_examples=60)
@given(
    records,
    st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC]),
    st.booleans(),
    st.lists(st.integers(0, 8), max_size=3),
)
def test_csv_round_trips_with_the_row_numbers_of_the_file(
    tmp_path: Path, records: list[tuple[str, str]], quoting: Any, marked: bool, blank: list[int]
) -> None:
    """`blank`: numbers of the records preceded by a blank line; 0 is the header."""
    file, places = io.StringIO(newline=""), list[int]()
    writer = csv.writer(file, quoting=quoting)
    row = 0
    for number, record in enumerate([("text", "label"), *records]):
        for _ in range(blank.count(number)):
            file.write("\r\n")
        row += blank.count(number) + 1
        places.append(row)
        writer.writerow(record)
    path = tmp_path / "t.csv.gz"
    path.write_bytes(gzip.compress(file.getvalue().encode("utf-8-sig" if marked else "utf-8"), 1))
    table = tables.read(str(path), "train_path", WANTED)
    assert table.columns == {"text": [text for text, _ in records], "label": [label for _, label in records]}
    assert [table.location(i, "text") for i in range(len(records))] == [
        f"{path}, row {row}, column text" for row in places[1:]
    ]


def sound_files() -> dict[str, bytes]:
    """A file of each format, to be damaged."""
    rows = [("river, stone", "1"), ('"violin"', "2.0"), ("", " b ")]
    text = io.StringIO(newline="")
    csv.writer(text).writerows([("text", "label"), *rows])
    parquet = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"text": [t for t, _ in rows], "label": [la for _, la in rows]}), parquet)
    return {
        "t.csv": text.getvalue().encode(),
        "t.csv.gz": gzip.compress(text.getvalue().encode()),
        "t.tsv": text.getvalue().replace(",", "\t").encode(),
        "t.jsonl": "\n".join(json.dumps({"text": t, "label": label}) for t, label in rows).encode(),
        "t.parquet": parquet.getvalue(),
    }


SOUND_FILES = sound_files()


@pytest.mark.parametrize("name", SOUND_FILES)
@settings(max_examples=60)
@given(st.data())
def test_any_bytes_are_read_or_refused_with_the_path(tmp_path: Path, name: str, data: st.DataObject) -> None:
    content = bytearray(SOUND_FILES[name])
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(content)))
        stop = data.draw(st.integers(start, min(start + 8, len(content))))
        content[start:stop] = data.draw(st.binary(max_size=8))
    path = tmp_path / name
    path.write_bytes(content)
    try:
        table = tables.read(str(path), "train_path", WANTED)
        texts, labels = table.texts("text"), table.labels("label")
        assert len(texts) == len(labels) == len(table.classes("label", tables.class_numbers(set(labels))))
        "".join(texts + labels).encode()
    except UserError as error:
        message = str(error)
    else:
        return
    assert str(path) in message


plain = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
values = (
    plain | st.integers(10**400, 10**401) | st.lists(plain, max_size=4) | st.dictionaries(st.text(), plain, max_size=2)
)


@settings(max_examples=300)
@given(st.sampled_from([key.name for key in dataclasses.fields(Config)]), values)
@example("author", "").via("an unset shell variable")
def test_any_value_of_any_key_is_kept_unchanged_or_refused_with_the_key(key: str, value: Any) -> None:
    try:
        config = Config.from_mapping({key: value})
    except UserError as error:
        message = str(error)
    else:
        assert Config.from_mapping(json.loads(json.dumps(config.to_mapping()))) == config
        field = next(field for field in dataclasses.fields(Config) if field.name == key)
        is_unset = value == "" and field.metadata["may_be_empty"]
        assert config.to_mapping()[key] == (None if is_unset else value)
        return
    assert message.startswith(f"{key}=")


words = st.text(max_size=6) | st.builds("{}={}".format, st.sampled_from(["author", "seed", "no_key", ""]), st.text())


@given(st.lists(st.just("with") | words, max_size=4), st.text("([{}])-~'\"\\,:1a", max_size=60))
@example([], "{[]:1}").via("a literal of a wrong type")
@example([], "-" * 10**5).via("deeper than the parser allows")
def test_any_command_line_is_kept_except_for_quotes(argv: list[str], value: str) -> None:
    argv = [*argv, "with", f"author={value}", f"seed={value}"]
    kept = keep_text(argv)
    assert [word.partition("=")[0] for word in kept] == [word.partition("=")[0] for word in argv]
    assert keep_text(kept) == kept


class JsonTokenizer:
    """A tokenizer whose texts are lists of token ids in JSON; it adds no special tokens."""

    pad_token_id, unk_token_id = 0, None
    all_special_ids: tuple[int, ...] = ()

    def __init__(self, size: int):
        self.size = size

    def __len__(self) -> int:
        return self.size

    def get_vocab(self) -> dict[str, int]:
        return {str(number): number for number in range(self.size)}

    def __call__(self, texts: Sequence[str], pairs: None, max_length: int, **_: Any) -> dict[str, list[list[int]]]:
        return {"input_ids": [json.loads(text or "[]")[:max_length] for text in texts]}


token_lists = st.sampled_from([1, 255, 256, 257, 65535, 65536, 65537]).flatmap(
    lambda size: st.tuples(
        st.just(size),
        st.lists(st.lists(st.sampled_from([0, size // 2, size - 1]), max_size=9), min_size=1, max_size=40),
    )
)


@settings(max_examples=60)
@given(token_lists, st.integers(1, 5), st.integers(1, 9), st.booleans(), st.booleans())
def test_any_token_lists_round_trip_and_each_site_sees_each_of_its_examples_once(
    tmp_path: Path, lists: tuple[int, list[list[int]]], num_sites: int, batch_size: int, grouped: bool, iid: bool
) -> None:
    size, everything = lists
    labels = np.arange(len(everything)) % 3
    token_store.write(
        tmp_path / "store", JsonTokenizer(size), [json.dumps(ids) for ids in everything], labels, max_seq_len=6
    )
    store = token_store.TokenStore(tmp_path / "store", pad_token_id=0)
    assert np.iinfo(store.tokens.dtype).max >= size - 1
    expected = [ids[:6] or [0] for ids in everything]  # a text without tokens gets one padding token

    num_sites = min(num_sites, len(labels))
    owners = partitioners.iid(labels, num_sites, seed=7) if iid else partitioners.by_label(labels, num_sites)
    shards = partitioners.shards(owners, num_sites)
    everyone = np.arange(len(everything))
    epochs = [
        token_store.training_batches(store, shard, batch_size, grouped, 7, 1, site, 0)
        for site, shard in enumerate(shards)
    ]
    for batches in (list(itertools.chain(*epochs)), token_store.evaluation_batches(store, everyone, batch_size)):
        assert sorted(np.concatenate(batches).tolist()) == list(range(len(everything)))
        for indices in batches:
            assert len(indices) <= batch_size
            batch = store.batch(indices)
            rows = zip(indices, batch.input_ids, batch.attention_mask.bool(), batch.labels, strict=True)
            for index, ids, mask, label in rows:
                assert ids[mask].tolist() == expected[index]
                assert not ids[~mask].any()
                assert label == labels[index]
    for shard, batches in zip(shards, epochs, strict=True):
        assert sorted(np.concatenate(batches).tolist()) == shard.tolist()
