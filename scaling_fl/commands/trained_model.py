"""The model that `evaluate` measures: a checkpoint of a job, or a trained model as a folder or on the hub."""

import contextlib
import dataclasses
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import fsspec
import torch

from scaling_fl import host, state_file
from scaling_fl.config.compatibility import check_data
from scaling_fl.config.schema import Config
from scaling_fl.data.task_loader import load_task
from scaling_fl.errors import UserError
from scaling_fl.federated.server_state import fill_state
from scaling_fl.models import loading
from scaling_fl.models.flat_parameters import FlatModel, Layout
from scaling_fl.progress import Report


class TrainedModel(NamedTuple):
    config: Config  # of the job, with the keys that were typed; as typed if there is no job
    module: Any
    tokenizer: Any
    label_names: tuple[str, ...]
    title: str


def load(config: Config, report: Report) -> TrainedModel:
    """Load what `checkpoint` names. Raises `UserError` if it isn't a trained classifier."""
    if config.checkpoint is None:
        raise UserError(
            "checkpoint: evaluate needs it; set checkpoint=…/round-000010.safetensors, a folder of a trained model, or a hub id"
        )
    if config.checkpoint.endswith(".safetensors"):
        return _from_checkpoint(config, config.checkpoint, report)
    return _from_folder(config, config.checkpoint)


def _from_folder(config: Config, name: str) -> TrainedModel:
    names = loading.label_names(name)
    limit = loading.load_tokenizer(name, [], 1).model_max_length
    config = dataclasses.replace(config, max_seq_len=min(config.max_seq_len, limit))
    loaded = loading.load_model(name, names, [], config.max_seq_len, config.seed)
    if loaded.new_parameters:
        raise UserError(
            f"checkpoint={name}: its weights lack {', '.join(loaded.new_parameters[:3])}, so it isn't a trained "
            "classifier; name the folder that a job wrote, such as checkpoints/news/model"
        )
    return TrainedModel(config, loaded.module, loaded.tokenizer, names, f"model {name}")


def _from_checkpoint(typed: Config, path: str, report: Report) -> TrainedModel:
    with _local_copy(path) as local:
        try:
            tensors, header = state_file.read_state(local)
        except state_file.Damaged as error:
            raise UserError(
                f"checkpoint={path}: it is damaged, or not a checkpoint ({error}); name a file round-….safetensors"
            ) from error
    try:
        job, names, digest, round_ = (header[key] for key in ("config", "label_names", "data_digest", "round"))
        config = merged(job, typed)
        names = tuple(map(str, names))
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"checkpoint={path}: its header lacks {error}; use a checkpoint that train has written"
        ) from error
    if not config.has_global_model:
        raise UserError(f"checkpoint={path}: baseline=local_only has no global model to evaluate; use another job's")
    texts: list[str] = []
    if config.model == "tiny":  # its vocabulary comes from the training texts
        task = load_task(merged(job, Config()), report)
        check_data(config, digest, task.digest())
        texts = task.train.texts
    loaded = loading.load_model(config.model, names, texts, config.max_seq_len, config.seed)
    flat = torch.zeros(1, Layout(loaded.module).size)
    model = FlatModel(loaded.module, torch.zeros_like(flat[0]))
    try:
        fill_state(model, flat, tensors)
    except (ValueError, KeyError) as error:
        raise UserError(
            f"checkpoint={path}: it belongs to another model than model={config.model} ({error}); set model=… to the one the "
            "job started with"
        ) from error
    model.load(flat[0])
    title = f"checkpoint {path}: round {round_} of job {header.get('job_name')}, model={config.model}"
    return TrainedModel(config, loaded.module, loaded.tokenizer, names, title)


def merged(job: dict[str, Any], typed: Config) -> Config:
    """The job's keys, where the command line leaves the default. Keys of other versions are left out."""
    defaults, now = Config().to_mapping(), typed.to_mapping()
    keys = {key: job.get(key, default) if now[key] == default else now[key] for key, default in defaults.items()}
    if typed.test_path is not None:
        keys["test_fraction"] = 0.0
    return Config.from_mapping(keys)


@contextlib.contextmanager
def _local_copy(path: str) -> Iterator[Path]:
    """The file itself if it is local, else a temporary copy."""
    local = Path(path).expanduser()
    if "://" not in path:
        if not local.is_file():
            raise UserError(f"checkpoint={path}: there is no such file{host.did_you_mean(path)}; check the path")
        yield local
        return
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "state.safetensors"
        try:
            fs, remote = fsspec.url_to_fs(path)
            fs.get_file(remote, str(copy))
        except Exception as error:  # every file system raises its own exceptions
            raise UserError(
                f"checkpoint={path}: cannot read it ({type(error).__name__}: {error}); check the URL and credentials"
            ) from error
        yield copy
