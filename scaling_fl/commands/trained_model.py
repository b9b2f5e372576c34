"""The model that `evaluate` measures: a checkpoint of a job, or a trained model as a folder or on the hub."""

import dataclasses
import tempfile
from pathlib import Path
from typing import NamedTuple

import torch

from scaling_fl import host
from scaling_fl.checkpoint.storage import Storage
from scaling_fl.commands.job_checkpoint import JobCheckpoint
from scaling_fl.config.schema import Config
from scaling_fl.data.token_store import TokenStore
from scaling_fl.errors import UserError
from scaling_fl.federated.resident import Resident
from scaling_fl.models import gpus, loading
from scaling_fl.models.devices import find_devices
from scaling_fl.models.flat_parameters import FlatModel, Layout
from scaling_fl.progress import Report, Send, waiting

_TEST_KEYS = ("test_path", "test_split", "test_fraction", "max_test_examples")


class TrainedModel(NamedTuple):
    config: Config  # of the job, with the keys that were typed; as typed if there is no job
    loaded: loading.LoadedModel
    label_names: tuple[str, ...]
    title: str


def load(send: Send, typed: Config, report: Report) -> TrainedModel:
    """Load what `checkpoint` names, or the newest checkpoint of `job_name`. Raises `UserError` if it can't be used."""
    if typed.checkpoint is not None and not typed.checkpoint.endswith(".safetensors"):
        with waiting(send):
            if "://" not in typed.checkpoint:
                return _from_folder(typed, typed.checkpoint, Path(typed.checkpoint).expanduser())
            with tempfile.TemporaryDirectory() as copy:
                Storage(typed.checkpoint, "checkpoint").fetch_all(Path(copy))
                return _from_folder(typed, typed.checkpoint, Path(copy))
    checkpoint = JobCheckpoint(send, typed)
    config = checkpoint.config_with(typed)
    # The job's own test data belong to the digest of its data.
    defaults = {key: value for key, value in Config().to_mapping().items() if key in _TEST_KEYS}
    data = checkpoint.config_with(Config.from_mapping(typed.to_mapping() | defaults))
    loaded = checkpoint.load_model(send, config, data, report)
    title = f"checkpoint {checkpoint.title} of job {checkpoint.header['job_name']}, model={config.model}"
    title += f", own model of site {config.site}" if config.site is not None else ""
    return TrainedModel(config, loaded, checkpoint.label_names, title)


def resident(trained: TrainedModel, store: TokenStore) -> Resident:
    """The model on its device, with the examples of `store`, to be evaluated."""
    config, module = trained.config, trained.loaded.module
    if config.threads_per_site is not None:
        torch.set_num_threads(config.threads_per_site)
    device = torch.device(_device(config))
    gpus.set_up(device, config)
    module.to(device)
    model = FlatModel(module, torch.zeros(Layout(module).size, device=device))
    # Only evaluated: nothing is compiled for it, and there is no backward pass.
    plain = dataclasses.replace(config, compile=False, gradient_checkpointing=False)
    return Resident(plain, model, store, store, device)


def _device(config: Config) -> str:
    """That of the first entry of `site_ids`; of a job that had more GPUs than this machine, the first. Raises `UserError`."""
    first = config.site_ids[0] if config.site_ids[0] < torch.cuda.device_count() else min(config.site_ids[0], 0)
    (device,) = find_devices(dataclasses.replace(config, site_ids=(first,)), [])
    return device


def _from_folder(config: Config, name: str, path: Path) -> TrainedModel:
    """The model `name`: at `path`, or on the hub if there is no such path."""
    if not path.exists() and (name.startswith((".", "/", "~")) or name.count("/") > 1):
        raise UserError(
            f"checkpoint={name}: there is no such file or folder{host.did_you_mean(name)}; name a checkpoint, a trained "
            "model's folder or its hub id"
        )
    if path.exists() and not (path / "config.json").exists():
        raise UserError(
            f"checkpoint={name}: expected a checkpoint (round-NNNNNN.safetensors) or the folder of a trained model, found "
            f"{'a folder without config.json' if path.is_dir() else 'another file'}; name such a file, a job's folder "
            "`model`, or job_name=…"
        )
    source = str(path) if path.exists() else name
    names = loading.label_names(source)
    limit = loading.load_tokenizer(source, [], 1).model_max_length
    config = dataclasses.replace(config, max_seq_len=min(config.max_seq_len, limit))
    loaded = loading.load_model(source, names, [], config.max_seq_len, config.seed)
    if loaded.new_parameters:
        raise UserError(
            f"checkpoint={name}: its weights lack {', '.join(loaded.new_parameters[:3])}, so it isn't a trained "
            "model; name the folder that a job wrote, such as checkpoints/news/model"
        )
    return TrainedModel(config, loaded, names, f"model {name}")
