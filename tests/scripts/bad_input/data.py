"""Data: files that are missing, damaged or malformed, and files that don't suit the keys."""

import gzip
import os
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from tests.scripts.bad_input.row import BY_COLUMN, Row, cut, put


def parquet() -> None:
    pyarrow.parquet.write_table(pyarrow.table({"body": ["a"] * 99, "topic": ["x"] * 99}), "train.parquet")


HEADERLESS: dict[str, Any] = {"text_column": None, "label_column": None}

DATA = (
    Row("a missing file", ("train_path='no.csv': there is no such file",), {"train_path": "no.csv"}),
    Row("a folder", ("test_path='model': it is a folder; name the files in it, such as model/*.csv",), {"test_path": "model"}),
    Row("a pipe", ("train_path='pipe': it is a pipe or a device; name a file",), {"train_path": "pipe"}, lambda: os.mkfifo("pipe")),
    Row("a pattern without matches", ("train_path='n*.csv': no file matches this pattern",), {"train_path": "n*.csv"}),
    Row("a file named twice", ("it names ./train.csv twice",), {"train_path": "train.csv,./train.csv"}),
    Row("an unknown protocol", ("train_path='nope://x': cannot read it: ",), {"train_path": "nope://x"}),
    Row("an empty file", ("train_path='train.csv': the file is empty",), spoil=put("train.csv", b"")),
    Row("blank lines only", ("test_path='test.csv': the file is empty",), spoil=put("test.csv", b"\n\r\n\n")),
    Row("a header only", ("it has columns, but no rows",), spoil=put("train.csv", "topic,body\n")),
    Row("an image", ("train.csv, row 1: expected text, found a NUL or bytes that are not UTF-8; ", "save the file as UTF-8"), spoil=put("train.csv", b"\x89PNG\r\n\x1a\n\0\0")),
    Row("UTF-16", ("train.csv, row 1: expected text, found UTF-16; save the file as UTF-8",), spoil=put("train.csv", "topic,body\nx,y\n".encode("utf-16"))),
    Row("Latin-1", ("train.csv, row 3, column body: expected text, found a NUL or bytes that are not UTF-8; ", "save the file as UTF-8"), spoil=put("train.csv", "topic,body\na,b\nc,é\n".encode("latin-1"))),
    Row("a NUL character", ("train.csv, row 2, column topic: expected text, found a NUL or bytes that are not UTF-8; ",), spoil=put("train.csv", "topic,body\na\0,b\n")),
    Row("an unclosed quote", ("train.csv, row 2, starting in line 2: ", "double the quotes inside it"), spoil=put("train.csv", 'topic,body\na,"b\nc,d\n')),
    Row("a quote inside a quoted field", ("train.csv, row 2, starting in line 2: ", "double the quotes inside it"), spoil=put("train.csv", 'topic,body\na,"b"c"\n')),
    Row("a short row", ("train.csv, row 3: expected 2 fields (topic, body), found 1",), spoil=put("train.csv", "topic,body\na,b\nc\n")),
    Row("another separator", ("train.csv, row 1: its fields seem to be separated by semicolons, not by commas; save it with commas",), spoil=put("train.csv", "topic;body\na;b\n")),
    Row("no such column", ("text_column='text': train.csv has no column text; choose from topic, body",), {"text_column": "text"}),
    Row("a column twice", ("text_column='body': train.csv has 2 columns named body; rename one",), spoil=put("train.csv", "topic,body,body\n")),
    Row("a missing label", ("train.csv, row 3, column topic: the label is empty",), spoil=put("train.csv", "topic,body\na,b\n ,d\n")),
    Row("labels with decimals", ("train.csv, row 2, column topic: the label is the number 0.5", "convert them to classes"), spoil=put("train.csv", "topic,body\n0.5,b\n1,d\n")),
    Row("one label", ("train.csv: every row has the label 'a'; there is nothing to classify",), {"test_path": "train.csv"}, put("train.csv", "topic,body\na,b\na,d\n")),
    Row("a label without training rows", ("test.csv, row 2, column topic: the label 'z' doesn't occur in train.csv",), spoil=put("test.csv", "topic,body\nz,b\n")),
    Row("a label outside AG News", ("ag.csv, row 2, column Class Index: expected 1 or 2 or 3 or 4, found '5'",), {**HEADERLESS, "task_name": "agnews", "train_path": "ag.csv"}, put("ag.csv", "1,a,b\n5,c,d\n")),
    Row("a review with six stars", ("yelp.csv, row 1, column stars: expected 1 or 2 or 3 or 4 or 5, found '6'",), {**HEADERLESS, "task_name": "yelp", "train_path": "yelp.csv"}, put("yelp.csv", "6,a\n")),
    Row("an unknown author", ("s.csv, row 2, column author: expected EAP or HPL or MWS, found 'XYZ'",), {**HEADERLESS, "task_name": "spooky_author", "train_path": "s.csv"}, put("s.csv", "id,text,author\n1,a,XYZ\n")),
    Row("a JSON list", ("t.json, row 1: expected one JSON object per line, found a JSON array; write one object per line, for example with jq",), {"train_path": "t.json"}, put("t.json", '[{"body": "a"}]')),
    Row("a truncated line of JSON", ("t.jsonl, row 2: expected one JSON object per line",), {"train_path": "t.jsonl"}, put("t.jsonl", '{"body": "a", "topic": 1}\n{"body": "b", "to')),
    Row("a number for text in JSON", ("t.jsonl, row 1, column body: expected text, found int",), {"train_path": "t.jsonl"}, put("t.jsonl", '{"body": 1, "topic": 1}')),
    Row("a truncated archive", ("train_path='t.csv.gz': cannot read it: EOFError", "is it complete"), {"train_path": "t.csv.gz"}, lambda: Path("t.csv.gz").write_bytes(gzip.compress(Path("train.csv").read_bytes())[:-20])),
    Row("a zip", ("train_path='t.csv.zip': a zip archive may hold several files; unpack it",), {"train_path": "t.csv.zip"}, put("t.csv.zip", b"PK\3\4")),
    Row("a truncated Parquet file", ("train_path='train.parquet': cannot read it: ArrowInvalid", "is it complete"), {"train_path": "train.parquet"}, lambda: (parquet(), cut("train.parquet")())),
    Row("fewer examples than sites", ("3 training examples are too few for 4 sites", "use fewer site_ids, or use more data"), {"site_ids": [-1] * 4, "max_train_examples": 3}),
    Row("fewer examples than num_sites", ("41 training examples are too few for 42 sites: each needs one; lower num_sites=42, or use more data",), {"num_sites": 42}),
    Row("fewer examples than the sites' minimum", ("41 training examples are too few for 2 sites: each needs min_examples_per_site=21; lower it, use fewer site_ids, or",), {"min_examples_per_site": 21}),
    Row("more labels per site than labels", ("labels_per_site=4: the training examples have 3 labels; lower it",), {"partition": "labels_per_site", "labels_per_site": 4}),
    Row("more pieces than examples", ("labels_per_site=3: 14 sites would need 42 pieces of 41 training examples; lower it, or use",), {"partition": "labels_per_site", "labels_per_site": 3, "num_sites": 14}),
    Row("a missing column of sites", ("partition_column='town': train.csv has no column town; choose from topic, body",), {**BY_COLUMN, "partition_column": "town"}),
    Row("a row without a site", ("train.csv, row 3, column town: the value is empty, so the row belongs to no site; fill it in",), {**BY_COLUMN, "partition_column": "town"}, put("train.csv", "topic,body,town\na,b,x\nc,d, \n")),
    Row("num_sites unlike the number of values", ("partition_column='topic': the training rows have 3 different values in it, one site each, but num_sites=5; leave",), {**BY_COLUMN, "num_sites": 5}),
    Row("fewer values than processes", ("have 3 different values in it, one site each: fewer than the 4 processes in site_ids; shorten site_ids",), {**BY_COLUMN, "site_ids": [-1] * 4}),
    Row("a value with too few rows", ("have 2 different values in it, of which 'y' has 1 to train on, fewer than min_examples_per_site=2; lower it",), {**BY_COLUMN, "partition_column": "town", "min_examples_per_site": 2}, put("train.csv", "topic,body,town\nclass 0,b,x\nclass 1,d,y\nclass 2,e,x\n")),
    Row("a truncated archive of reviews", ("train_path='a.tar.gz': cannot read it: ", "is it complete?"), {**HEADERLESS, "task_name": "imdb", "train_path": "a.tar.gz", "test_path": None}, put("a.tar.gz", gzip.compress(os.urandom(9999))[:5000])),
    Row("a folder without reviews", ("train_path='model': expected 12,500 reviews in train/neg, found 0",), {**HEADERLESS, "task_name": "imdb", "train_path": "model", "test_path": None}),
    Row("a missing saved data set", ("dataset=./no: there is no such folder; give a hub id",), {"task_name": "hub", "dataset": "./no", "train_path": None, "test_path": None}),
    Row("a damaged saved data set", ("dataset=./model: cannot load it: ", "is it complete"), {"task_name": "hub", "dataset": "./model", "train_path": None, "test_path": None}, put("model/dataset_dict.json", "{")),
)  # fmt: skip
