"""Checkpoints: damaged, of another model, and of a job with other settings."""

import json
import pickle
import shutil
import struct
from collections.abc import Callable
from typing import Any

import numpy as np

from scaling_fl.checkpoint import store
from tests import builders
from tests.scripts.bad_input.row import CHECKPOINT, OUT, Hostile, Row, Spoil, cut, put


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
    Row("a future format version", ("it has format version 3; this program reads versions 1 and 2", "Restore one"), OUT, raw_metadata('{"format_version": 3, "sha256": ""}')),
    Row("a malformed best round", ("the header of this checkpoint is invalid: ", "best"), OUT, header(best={"metric": 1})),
    Row("a wrong checksum", ("its checksum doesn't match its content", "Restore one"), OUT, raw_metadata('{"format_version": 2, "xxh3_128": "0"}')),
    Row("a checkpoint renamed to another round", ("round-000007.safetensors is damaged (it was written as round 1)", "Restore one"), OUT, lambda: CHECKPOINT.rename("out/round-000007.safetensors")),
    Row("a round that is NaN", ("is damaged (it was written as round nan)", "Restore one"), OUT, header(round=float("nan"))),
    Row("a header without job name", ("checkpoints_dir=out: round 1: ", "job_name is missing or of the wrong type; restore"), OUT, header(job_name=None)),
    Row("text for threads", ("checkpoints_dir=out: round 1: ", "threads is missing or of the wrong type; restore"), OUT, header(threads="many")),
    Row("no threads", ("checkpoints_dir=out: round 1: ", "threads is missing or of the wrong type; restore"), OUT, header(threads=0)),
    Row("threads below one", ("checkpoints_dir=out: round 1: ", "threads is missing or of the wrong type; restore"), OUT, header(threads=-1)),
    Row("a list for the environment", ("checkpoints_dir=out: round 1: ", "environment is missing or of the wrong type; restore"), OUT, header(environment=[])),
    Row("text for the unreported round", ("checkpoints_dir=out: round 1: ", "reported is missing or of the wrong type; restore"), OUT, header(reported="no")),
    Row("a malformed model origin", ("checkpoints_dir=out: round 1: ", "origin is missing or of the wrong type; restore"), OUT, header(origin={"weights": 1})),
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
