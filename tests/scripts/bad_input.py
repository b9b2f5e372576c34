"""Tables of invalid input: each row spoils one thing in a valid job or its folder, and has parts of the message."""

import gzip
import json
import os
import pickle
import shutil
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import transformers

from scaling_fl.checkpoint import store
from tests import builders

# The valid job, in a folder with these files and with `out`, which contains the checkpoint of its first round.
SOUND: dict[str, Any] = {
    "site_ids": [-1, -1], "num_rounds": 2, "task_name": "csv", "train_path": "train.csv", "test_path": "test.csv",
    "text_column": "body", "label_column": "topic", "model": "./model", "max_seq_len": 16, "batch_size": 8,
    "threads_per_site": 1, "job_name": "j",
}  # fmt: skip
CHECKPOINT = Path("out/round-000001.safetensors")

Spoil = Callable[[], object]


class Row(NamedTuple):
    what: str
    says: tuple[str, ...]  # parts of the message: the thing and the remedy
    keys: Mapping[str, Any] = MappingProxyType({})  # that differ from the valid job's
    spoil: Spoil = lambda: None  # called in the job's folder


def table(*rows: Row) -> Any:
    return pytest.mark.parametrize("row", rows, ids=[row.what for row in rows])


def put(name: str, content: bytes | str) -> Spoil:
    return lambda: Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())


def cut(name: str) -> Spoil:
    """Truncate the file to half its size."""
    return lambda: Path(name).write_bytes(Path(name).read_bytes()[: Path(name).stat().st_size // 2])


def remove(*names: str) -> Spoil:
    return lambda: [Path("model", name).unlink() for name in names]


def model_config(**changes: Any) -> Spoil:
    def spoil() -> None:
        path = Path("model/config.json")
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return spoil


def header(**changes: Any) -> Spoil:
    """Change the checkpoint's header, with a valid checksum. None removes the entry."""

    def spoil() -> None:
        tensors, before = builders.read(CHECKPOINT)
        now = {key: value for key, value in (before | changes).items() if value is not None}
        store.write_state(CHECKPOINT, tensors, now)

    return spoil


def tensors(change: Callable[[dict[str, Any]], object]) -> Spoil:
    """Change the checkpoint's tensors, with a valid checksum."""

    def spoil() -> None:
        found, before = builders.read(CHECKPOINT)
        change(found)
        store.write_state(CHECKPOINT, found, before)

    return spoil


def raw_metadata(text: str) -> Spoil:
    """Write a safetensors file without tensors, whose metadata holds `text`."""
    content = json.dumps({"__metadata__": {"scaling_fl": text}}).encode()
    return put(str(CHECKPOINT), struct.pack("<Q", len(content)) + content)


class Hostile:
    """Creates the folder `owned` if unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("owned",)


def nan_weights() -> None:
    module = transformers.AutoModel.from_pretrained("model")
    module.embeddings.word_embeddings.weight.data[3, 3] = float("nan")
    module.save_pretrained("model")


def own_code() -> None:
    model_config(model_type="mine", auto_map={"AutoConfig": "mine.Mine"})()
    put("model/mine.py", "import os; os.mkdir('owned')")()


def parquet() -> None:
    pyarrow.parquet.write_table(pyarrow.table({"body": ["a"] * 99, "topic": ["x"] * 99}), "train.parquet")


HEADERLESS: dict[str, Any] = {"text_column": None, "label_column": None}
OUT = {"checkpoints_dir": "out"}
BY_COLUMN = {"partition": "column", "partition_column": "topic"}

KEYS = (
    Row("an unknown key", ("num_round=3: unknown key; did you mean num_rounds?",), {"num_round": 3}),
    Row("a key unlike any other", ("xyz=1: unknown key; `help` lists the keys",), {"xyz": 1}),
    Row(
        "two unknown keys",
        ("num_round=3: unknown key; did you mean num_rounds? Also lr=0.1: unknown key; did you mean learning_rate?",),
        {"num_round": 3, "lr": 0.1},
    ),
    Row(
        "keys under a heading",
        ("demo={'num_rounds': 3}: unknown key; keys stand alone, without a heading above them",),
        {"demo": {"num_rounds": 3}},
    ),
    Row("text for a number", ("num_rounds='ten': expected a whole number, 1 or more",), {"num_rounds": "ten"}),
    Row("text for True or False", ("iid_split='no': expected True or False, with a capital",), {"iid_split": "no"}),
    Row("a number for text", ("model=7: expected text; in a config file, put it in quotes",), {"model": 7}),
    Row("a fraction for a count", ("batch_size=1.5: expected a whole number",), {"batch_size": 1.5}),
    Row("a number for a list", ("site_ids=2: ", "write site_ids=[2]"), {"site_ids": 2}),
    Row("text for a list", ("site_ids='0,0': ", "write site_ids=[0,0], without spaces"), {"site_ids": "0,0"}),
    Row("no sites", ("site_ids=[]: expected a list of GPU indices such as [0,0,1,1]",), {"site_ids": []}),
    Row("sites on GPU and CPU", ("site_ids=[0, -1]: ", "or of -1 for the CPU, without mixing the two"), {"site_ids": [0, -1]}),
    Row("NaN for a number", ("learning_rate=nan: expected a number above 0",), {"learning_rate": float("nan")}),
    Row("a number too large", ("learning_rate=1000", ": expected a number above 0"), {"learning_rate": 10**400}),
    Row("a negative seed", ("data_seed=-1: expected a whole number from 0 to 4294967295",), {"data_seed": -1}),
    Row("too many threads", ("threads_per_site=1000000: ", "from 1 to 1024"), {"threads_per_site": 10**6}),
    Row("an empty value", ("job_name='': empty (an unset shell variable?); set a value",), {"job_name": ""}),
    Row("a path for a job name", ("job_name='../j': expected letters, digits",), {"job_name": "../j"}),
    Row("a path with a NUL", ("train_path='a\\x00b': ", "without NUL; correct it, or rename the file"), {"train_path": "a\0b"}),
    Row("text that is not UTF-8", ("author='caf\\udce9': expected UTF-8 text",), {"author": "caf\udce9"}),
    Row("an unknown optimiser", ("optimiser='lion': expected one of adamw, adam, sgd",), {"optimiser": "lion"}),
    Row("warm-up as long as the training", ("warmup=2: expected less than num_rounds=2; lower warmup",), {"warmup": 2}),
    Row("an unknown partition", ("partition='iid_split': expected one of iid, by_label, dirichlet",), {"partition": "iid_split"}),
    Row("two partitions", ("iid_split=False: short for partition=by_label, but partition=iid is set as well; leave one",), {"iid_split": False, "partition": "iid"}),
    Row("a key of another partition", ("alpha=0.1: belongs to partition=dirichlet, but this is partition=iid; leave it out",), {"alpha": 0.1}),
    Row("a flag of another partition", ("balanced=True: belongs to partition=dirichlet, but this is partition=by_label",), {"balanced": True, "iid_split": False}),
    Row("a column without its partition", ("partition_column='topic': belongs to partition=column, but this is partition=iid",), {"partition_column": "topic"}),
    Row("no alpha", ("partition='dirichlet': needs alpha; set alpha=0.5 as well",), {"partition": "dirichlet"}),
    Row("an alpha of 0", ("alpha=0: expected a number above 0",), {"partition": "dirichlet", "alpha": 0}),
    Row("an alpha too large", ("alpha=1e+300: expected a number above 0 (from 1e-9 to 1e9)",), {"partition": "dirichlet", "alpha": 1e300}),
    Row("an unknown law", ("size_law='zipf': expected one of lognormal, power",), {"partition": "sizes", "size_law": "zipf"}),
    Row("a negative skew", ("size_skew=-1: expected a number above 0",), {"partition": "sizes", "size_skew": -1}),
    Row("no column", ("partition='column': needs partition_column; set partition_column=NAME as well",), {"partition": "column"}),
    Row("a minimum of 0 examples", ("min_examples_per_site=0: expected a whole number, 1 or more",), {"min_examples_per_site": 0}),
    Row("a column for a task without columns", ("partition_column='topic': task_name=demo doesn't use it; it takes none of these keys",), {**BY_COLUMN, "task_name": "demo", "text_column": None, "label_column": None, "train_path": None, "test_path": None}),
    Row("an unknown task", ("task_name='ag': expected one of agnews, csv",), {"task_name": "ag"}),
    Row("a missing key of the task", ("label_column: task_name=csv needs it; set",), {"label_column": None}),
    Row("a key of another task", ("dataset='x': task_name=csv doesn't use it; it takes",), {"dataset": "x"}),
    Row("the same column for two keys", ("label_column='body': text_column names the same",), {"label_column": "body"}),
    Row("texts longer than the model supports", ("max_seq_len=65: model=./model takes at most 64 tokens; lower max_seq_len",), {"max_seq_len": 65}),
)  # fmt: skip

DATA = (
    Row("a missing file", ("train_path='no.csv': there is no such file",), {"train_path": "no.csv"}),
    Row("a folder", ("test_path='model': it is a folder; name the files in it, such as model/*.csv",), {"test_path": "model"}),
    Row("a pipe", ("train_path='pipe': it is a pipe or a device; name a file",), {"train_path": "pipe"}, lambda: os.mkfifo("pipe")),
    Row("a pattern without matches", ("train_path='n*.csv': no file matches this pattern",), {"train_path": "n*.csv"}),
    Row("a file named twice", ("it names ./train.csv twice",), {"train_path": "train.csv,./train.csv"}),
    Row("an unknown protocol", ("train_path='nope://x': cannot read it: ",), {"train_path": "nope://x"}),
    Row("an empty file", ("train_path='train.csv': the file is empty",), spoil=put("train.csv", b"")),
    Row("blank lines only", ("test_path='test.csv': the file is empty",), spoil=put("test.csv", b"\n\r\n\n")),
    Row("a header only", ("it has columns (body, topic), but no rows",), spoil=put("train.csv", "topic,body\n")),
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
    Row("a JSON list", ("t.json, row 1: expected one JSON object per line, found one list",), {"train_path": "t.json"}, put("t.json", '[{"body": "a"}]')),
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

MODELS = (
    Row("a missing model folder", ("model=./no: there is no such folder; give albert, bert, distilbert, tiny",), {"model": "./no"}),
    Row("an invalid hub id", ("model=no such: there is no such folder, and", "is not a valid hub id; give the path"), {"model": "no such"}),
    Row("the hub in offline mode", ("model=lab/m: it is not on this machine", "give the path of a local model folder"), {"model": "lab/m"}),
    Row("no config.json", ("model=./model: the folder has no config.json; name a folder",), spoil=remove("config.json")),
    Row("config.json isn't JSON", ("model=./model: cannot load it: ", "It needs config.json"), spoil=cut("model/config.json")),
    Row("config.json is a list", ("model=./model: cannot load it: ", "It needs config.json"), spoil=put("model/config.json", "[]")),
    Row("an unknown architecture", ("model=./model: cannot load it: ", "It needs config.json"), spoil=model_config(model_type="none")),
    Row("text for a width", ("model=./model: cannot load it: ", "It needs config.json"), spoil=model_config(hidden_size="wide")),
    Row("a negative width", ("model=./model: cannot load it: ", "It needs config.json"), spoil=model_config(hidden_size=-16)),
    Row("a model with its own code", ("model=./model: cannot load it: ", "without custom code"), spoil=own_code),
    Row("no weights", ("model=./model: cannot load it: ", "It needs config.json, weights"), spoil=remove("model.safetensors")),
    Row("truncated weights", ("model=./model: cannot load it: SafetensorError: ", "is it complete?"), spoil=cut("model/model.safetensors")),
    Row("a hostile pickle", ("model=./model: cannot load it: UnpicklingError: ",), spoil=lambda: (remove("model.safetensors")(), put("model/pytorch_model.bin", pickle.dumps(Hostile(), 2))())),
    Row("weights that are not finite", ("model=./model: ", "word_embeddings.weight contains NaN or infinite values; restore it"), spoil=nan_weights),
    Row("no tokenizer", ("model=./model: its tokenizer has no vocabulary; save the tokenizer's files",), spoil=remove("tokenizer.json", "tokenizer_config.json")),
    Row("a truncated tokenizer", ("model=./model: cannot load it: ", "a tokenizer"), spoil=cut("model/tokenizer.json")),
    Row("a tokenizer of another model", ("model=./model: it can't take 16 tokens of its tokenizer's vocabulary", "check that model and tokenizer belong together"), spoil=lambda: transformers.AutoModel.from_config(transformers.AutoConfig.from_pretrained("model", vocab_size=9)).save_pretrained("model")),
)  # fmt: skip

CHECKPOINTS = (
    Row("one slash after a protocol", ("checkpoints_dir='s3:/lab/x': expected two slashes after s3:; give a folder, s3://",), {"checkpoints_dir": "s3:/lab/x"}),
    Row("an unknown protocol for checkpoints", ("checkpoints_dir='nope://x': Protocol not known: nope; give a folder, s3://",), {"checkpoints_dir": "nope://x"}),
    Row("a file in the way", ("checkpoints_dir=train.csv/out: cannot ", "check the path or URL, free space, permissions"), {"checkpoints_dir": "train.csv/out"}),
    Row("a folder that isn't writable", ("checkpoints_dir=/proc/here: cannot write to it", "check the path or URL, free space, permissions"), {"checkpoints_dir": "/proc/here"}),
    Row("a pickle", ("checkpoints_dir=out: found only damaged checkpoints: round-000001.safetensors is damaged (", "Restore one, or choose another folder"), OUT, put(str(CHECKPOINT), pickle.dumps(Hostile(), 2))),
    Row("an empty checkpoint", ("found only damaged checkpoints: round-000001", "Restore one"), OUT, put(str(CHECKPOINT), b"")),
    Row("a truncated checkpoint", ("found only damaged checkpoints: round-000001", "Restore one"), OUT, cut(str(CHECKPOINT))),
    Row("a header of 8 EiB", ("found only damaged checkpoints: round-000001", "Restore one"), OUT, put(str(CHECKPOINT), struct.pack("<Q", 2**63) + b"{}")),
    Row("safetensors of another program", ("found only damaged checkpoints: round-000001", "Restore one"), OUT, lambda: shutil.copy("model/model.safetensors", CHECKPOINT)),
    Row("metadata that isn't JSON", ("found only damaged checkpoints: round-000001", "Restore one"), OUT, raw_metadata("{")),
    Row("metadata that is a list", ("found only damaged checkpoints: round-000001", "Restore one"), OUT, raw_metadata("[1]")),
    Row("deeply nested metadata", ("found only damaged checkpoints: round-000001", "Restore one"), OUT, raw_metadata("[" * 100_000)),
    Row("a future format version", ("it has format version 2; this program reads version 1", "Restore one"), OUT, raw_metadata('{"format_version": 2, "sha256": ""}')),
    Row("a malformed best round", ("the header of this checkpoint is invalid: ", "best"), OUT, header(best={"metric": 1})),
    Row("a wrong checksum", ("its checksum doesn't match its content", "Restore one"), OUT, raw_metadata('{"format_version": 1, "sha256": "0"}')),
    Row("a checkpoint renamed to another round", ("round-000007.safetensors is damaged (it was written as round 1)", "Restore one"), OUT, lambda: CHECKPOINT.rename("out/round-000007.safetensors")),
    Row("a round that is NaN", ("is damaged (it was written as round nan)", "Restore one"), OUT, header(round=float("nan"))),
    Row("a header without job name", ("checkpoints_dir=out: round 1: ", "job_name is missing or of the wrong type; restore"), OUT, header(job_name=None)),
    Row("text for threads", ("checkpoints_dir=out: round 1: ", "threads is missing or of the wrong type; restore"), OUT, header(threads="many")),
    Row("no threads", ("checkpoints_dir=out: round 1: ", "threads is missing or of the wrong type; restore"), OUT, header(threads=0)),
    Row("threads below one", ("checkpoints_dir=out: round 1: ", "threads is missing or of the wrong type; restore"), OUT, header(threads=-1)),
    Row("a list for the environment", ("checkpoints_dir=out: round 1: ", "environment is missing or of the wrong type; restore"), OUT, header(environment=[])),
    Row("text for the unreported round", ("checkpoints_dir=out: round 1: ", "reported is missing or of the wrong type; restore"), OUT, header(reported="no")),
    Row("a malformed model origin", ("checkpoints_dir=out: round 1: ", "origin is missing or of the wrong type; restore"), OUT, header(origin={"weights": 1})),
    Row("fewer sites than processes", ("num_sites=1: fewer than the 2 processes in site_ids; raise num_sites or shorten site_ids",), {"num_sites": 1}),
    Row("a cohort larger than the number of sites", ("sites_per_round=9: there are 2 sites; lower it",), {"sites_per_round": 9}),
    Row("a cohort set by two keys", ("sites_per_round=2 participation=0.5: both set the number of sites per round; leave one of them out",), {"sites_per_round": 2, "participation": 0.5}),
    Row("no participation", ("participation=0.0: expected a number above 0, up to 1",), {"participation": 0.0}),
    Row("an unknown sampling", ("sampling='size': expected one of uniform, by_examples",), {"sampling": "size"}),
    Row("sampling without a cohort", ("sampling='by_examples': all sites take part in every round; set sites_per_round",), {"sampling": "by_examples"}),
    Row("a cohort with local_only", ("baseline=local_only: each site trains on its own in every round; leave",), {"baseline": "local_only", "participation": 0.5}),
    Row("a resume with another number of sites", ("job_name=j can't be resumed with different settings: the number of sites was 2, is now 4.",), {**OUT, "num_sites": 4}),
    Row("NaN for the configuration", ("checkpoints_dir=out: round 1: ", "config is missing or of the wrong type; restore"), OUT, header(config=float("nan"))),
    Row("a configuration without sites", ("checkpoints_dir=out: round 1: ", "site_ids, num_rounds is missing"), OUT, header(config={})),
    Row("a missing tensor", ("checkpoints_dir=out: round 1: this checkpoint belongs to another model", "found nothing, expected float32 [3]); go back"), OUT, tensors(lambda found: found.pop("classifier.bias"))),
    Row("a renamed tensor", ("checkpoints_dir=out: round 1: this checkpoint belongs to another model (tensor a.b: found float32 [3], expected nothing); go back",), OUT, tensors(lambda found: found.update({"a.b": found.pop("classifier.bias")}))),
    Row("a tensor of another shape", ("(tensor classifier.bias: found float32 [4], expected float32 [3]); go back",), OUT, tensors(lambda found: found.update({"classifier.bias": np.zeros(4, np.float32)}))),
    Row("a tensor of another type", ("(tensor classifier.bias: found int8 [3], expected float32 [3]); go back",), OUT, tensors(lambda found: found.update({"classifier.bias": np.zeros(3, np.int8)}))),
    Row("a tensor that is not finite", ("checkpoints_dir=out: round 1: classifier.bias contains NaN or infinite values; restore it",), OUT, tensors(lambda found: found.update({"classifier.bias": np.full(3, np.inf, np.float32)}))),
    Row("another job's folder", ("checkpoints_dir=out: it holds the checkpoints of job j; set job_name=j to resume it",), {**OUT, "job_name": "k"}),
    Row("a resume with another seed", ("job_name=j can't be resumed with different settings: seed was 20210201, is now 5. Use the earlier",), {**OUT, "seed": 5}),
    Row("a resume with another partition", ("job_name=j can't be resumed with different settings: partition was 'iid', is now 'sizes'. Use",), {**OUT, "partition": "sizes"}),
    Row("a resume with another minimum", ("can't be resumed with different settings: min_examples_per_site was 1, is now 2. Use",), {**OUT, "min_examples_per_site": 2}),
    Row("a resume with other data", ("job_name=j: the data have changed since the job started", "restore them, or start a new job"), {**OUT, "max_test_examples": None}, put("test.csv", "topic,body\nclass 0,river\n")),
)  # fmt: skip


TYPED = (
    Row("an unknown key", ("num_round=3: unknown key; did you mean num_rounds?",), {"num_round": 3}),
    Row("`with` twice", ("with: it is there twice",), {"with": None}),
    Row("a key of another tool", ("lr=0.1: unknown key; did you mean learning_rate?",), {"lr": 0.1}),
    Row("a flag that Sacred applies too late", ("-t x: there is no record in TinyDB; records go to runs/",), {"-tx": None}),
    Row("text for a seed", ("seed='abc': expected a whole number",), {"seed": "abc"}),
    Row("an invalid literal", ("num_rounds='{[]: 1}': expected a whole number",), {"num_rounds": "{[]: 1}"}),
    Row("bytes that are not UTF-8", ("author='caf\\udce9': expected UTF-8 text",), {"author": "caf\udce9"}),
    Row("a missing configuration file", ("no.json: expected key=value, a named configuration (demo, paper) or an existing file",), {"no.json": None}),
    Row("a truncated configuration file", ("c.json: expected a configuration as JSON or YAML, found an error (Expecting value: line 1", "correct it"), {"c.json": None}, put("c.json", '{"seed": ')),
    Row("a tab in a configuration file", ("c.yaml: expected a configuration as JSON or YAML, found an error (while scanning", "line 1, column 7"), {"c.yaml": None}, put("c.yaml", "seed: \t- 3")),
    Row("an empty configuration file", ("c.yaml: expected keys and values, found nothing; write a line such as",), {"c.yaml": None}, put("c.yaml", "")),
    Row("a mistyped named configuration", ("dmeo: expected key=value, a named configuration (demo, paper) or an existing file (did you mean demo?)",), {"dmeo": None}),
    Row("a missing file", ("train_path='no.csv': there is no such file",), {"train_path": "no.csv"}),
    Row("fewer examples than sites", ("2 training examples are too few for 3 sites", "use fewer site_ids"), {"site_ids": [-1] * 3, "max_train_examples": 2}),
    Row("a key of another partition", ("labels_per_site=2: belongs to partition=labels_per_site, but this is partition=iid",), {"labels_per_site": 2}),
    Row("a checkpoint folder that isn't writable", ("checkpoints_dir=/proc/here: cannot write to it", "check the path or URL"), {"checkpoints_dir": "/proc/here"}),
    Row("a pickle for a checkpoint", ("found only damaged checkpoints", "Restore one"), OUT, put(str(CHECKPOINT), pickle.dumps(Hostile(), 2))),
    Row("a record folder that isn't writable", ("runs: cannot write to it (", "run the command in a folder you can write to"), {"checkpoints_dir": "new"}, put("runs", "")),
    Row("another record folder that isn't writable", ("/proc/here: cannot write to it (", "pass -u for no record"), {"checkpoints_dir": "new", "-F/proc/here": None}),
)  # fmt: skip
