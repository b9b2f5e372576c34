"""Which checkpoint `evaluate` and `export` read, and what they refuse."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest

from scaling_fl.commands import evaluate
from scaling_fl.commands.export import export
from scaling_fl.commands.job_checkpoint import JobCheckpoint
from scaling_fl.config.schema import Config
from scaling_fl.errors import UserError


@pytest.mark.parametrize("command", [functools.partial(evaluate.show, width=80), export])
@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({}, r"checkpoint: none is given; add checkpoint=.*NNNNNN\.safetensors, or job_name=…"),
        ({"job_name": "j", "checkpoints_dir": None}, r"checkpoint: none is given"),
        ({"checkpoint": "out/model.safetensors"}, r"checkpoint=out/model\.safetensors: expected a file round-NNNNNN\."),
        ({"job_name": "j"}, r"checkpoints_dir=checkpoints/j: expected a checkpoint, found rounds: none; correct"),
        (
            {"checkpoint": "{out}/round-000001.safetensors"},
            r": expected a checkpoint of round 1, found rounds: 7; correct",
        ),
        ({"checkpoint": "nope://x/round-000001.safetensors"}, r"checkpoints_dir='nope://x': Protocol not known"),
        ({"checkpoint": "{out}/round-000009.safetensors"}, r"round-000009\.safetensors: it is damaged"),
        ({"checkpoint": "{out}/round-000007.safetensors", "model": "{folder}/other"}, "digest of the weights was"),
    ],
)
def test_what_is_no_checkpoint_is_refused(
    job: tuple[Config, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    command: Callable[..., None], keys: dict[str, Any], message: str,
) -> None:  # fmt: skip
    config, module = job
    out = Path(str(config.checkpoints_dir))
    if "000009" in str(keys):
        (out / "round-000009.safetensors").write_bytes((out / "round-000007.safetensors").read_bytes()[:-1])
    if "other" in str(keys):
        module.save_pretrained(tmp_path / "other")
        for file in Path(config.model).glob("*token*"):
            (tmp_path / "other" / file.name).write_bytes(file.read_bytes())
    monkeypatch.chdir(tmp_path)
    before = set(tmp_path.rglob("*"))
    filled = {k: v.format(out=out, folder=tmp_path) if isinstance(v, str) else v for k, v in keys.items()}
    with pytest.raises(UserError, match=message):
        command(MagicMock(), Config.from_mapping(filled))
    assert set(tmp_path.rglob("*")) == before


def test_the_newest_checkpoint_of_a_job_is_meant_unless_one_is_named(
    job: tuple[Config, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = str(job[0].checkpoints_dir)
    Path(out, "round-000003.safetensors").touch()
    assert JobCheckpoint(MagicMock(), Config(job_name="j", checkpoints_dir=out)).round == 7
    assert JobCheckpoint(MagicMock(), Config(checkpoints_dir=out)).round == 7
    with pytest.raises(UserError, match=r"round-000003\.safetensors: it is damaged"):
        JobCheckpoint(MagicMock(), Config(checkpoint=f"{out}/round-000003.safetensors"))
    monkeypatch.chdir(out)
    assert JobCheckpoint(MagicMock(), Config(checkpoint="round-000007.safetensors")).round == 7


def test_a_test_file_that_is_typed_replaces_the_jobs_part_of_its_training_file(job: tuple[Config, Any]) -> None:
    out = str(job[0].checkpoints_dir)
    checkpoint = JobCheckpoint(MagicMock(), Config(checkpoints_dir=out))
    checkpoint.header["config"] |= {"test_path": None, "test_fraction": 0.25}
    own, other = (checkpoint.config_with(Config(checkpoints_dir=out, test_path=path)) for path in (None, "new.csv"))
    assert (own.test_path, own.test_fraction) == (None, 0.25)
    assert (other.test_path, other.test_fraction) == ("new.csv", 0.0)
