"""The `export` command: a Hugging Face folder of any checkpoint, whether its job is finished or not."""

import dataclasses
import tempfile
from pathlib import Path
from typing import Any

import torch

from scaling_fl.checkpoint import final_model, resume
from scaling_fl.checkpoint.header import check_header
from scaling_fl.checkpoint.model_card import model_card
from scaling_fl.checkpoint.store import CheckpointStore, round_of
from scaling_fl.config import compatibility
from scaling_fl.config.schema import Config
from scaling_fl.data.task_loader import load_task, reads_over_network
from scaling_fl.errors import UserError
from scaling_fl.federated.server_state import parameters
from scaling_fl.models import fingerprints, loading, probe
from scaling_fl.models.export import save_tokenizer
from scaling_fl.models.flat_parameters import FlatModel, Layout
from scaling_fl.progress import Send, unreported, waiting


def export(send: Send, config: Config) -> None:
    """Write the folder `model-round-NNNNNN` beside the checkpoint. Raises `UserError` on bad input.

    The checkpoint says how its job was configured; keys that are typed, such as the path of a model that has moved, take
    precedence. The base model provides architecture and tokenizer; it must be the one that the job started with.
    """
    loading.silence_library()
    folder, round_ = _checkpoint(config)
    checkpoints = CheckpointStore(folder)
    with tempfile.TemporaryDirectory() as work:
        with waiting(send, not checkpoints.local):
            tensors, header = checkpoints.fetch(round_, Path(work) / "state.safetensors")
        check_header(f"{checkpoints.url}: round {round_}", header)
        config = _config_of_job(config, header)
        if not config.has_global_model:
            raise UserError(
                f"{checkpoints.url}: baseline=local_only has no global model; choose a checkpoint of another job"
            )
        texts: list[str] = []
        if config.model == "tiny":  # its vocabulary comes from the data
            with waiting(send, reads_over_network(config)):
                task = load_task(config, unreported)
            compatibility.check_data(config, header["data_digest"], task.digest())
            texts = task.train.texts
        with waiting(send):
            loaded = loading.load_model(
                config.model, tuple(header["label_names"]), texts, config.max_seq_len, config.seed
            )
        model = FlatModel(loaded.module, torch.zeros(Layout(loaded.module).size))
        weights = fingerprints.pretrained(loaded, model.arrays(model.flat))
        architecture = loading.architecture(loaded.module)
        resume.check_origin(config, header, {"weights": weights, "architecture": architecture})
        model.fill(model.flat, parameters(tensors))
        name, prepared = f"model-round-{round_:06d}", Path(work) / "model"
        _save_tokenizer(loaded, config, prepared)
        num_sites = None if config.partition == "column" else config.num_sites or len(config.site_ids)
        card = model_card(config, header["label_names"], num_sites, round_, header["metrics"])
        path = final_model.publish(checkpoints, name, round_, loaded.module, prepared, card, send.progress)
    send({"event": "said", "text": f"{'model':<12} {path}"})


def _save_tokenizer(loaded: loading.LoadedModel, config: Config, folder: Path) -> None:
    """Save the tokenizer as a run does: for the tensors, the length and the padding of training."""
    paired = config.text_pair_column is not None
    names = loading.input_names(loaded.module, paired)
    texts = probe.tokenised_extremes(loaded.tokenizer, [], paired, "token_type_ids" in names, config.max_seq_len)
    padding = probe.find_padding(config.model, loaded.module, texts, [])
    loaded.tokenizer.padding_side = "left" if padding.left else "right"
    save_tokenizer(loaded.tokenizer, folder, config.max_seq_len, names)


def _checkpoint(config: Config) -> tuple[str, int]:
    """The folder and the round of the checkpoint that is meant: the key `checkpoint`, or the newest of the job."""
    if config.checkpoint is not None:
        folder, _, name = config.checkpoint.rpartition("/")
        round_ = round_of(name)
        if round_ is None:
            raise UserError(
                f"checkpoint={config.checkpoint}: expected a file round-NNNNNN.safetensors, as a job writes them to its "
                "checkpoints_dir"
            )
        return folder or ("/" if config.checkpoint.startswith("/") else "."), round_
    if config.checkpoints_dir is None or "{job_name}" in config.checkpoints_dir:
        raise UserError(
            "export: no checkpoint is named; add checkpoint=…/round-NNNNNN.safetensors, or job_name=… for its newest"
        )
    rounds = CheckpointStore(config.checkpoints_dir).rounds()
    if not rounds:
        raise UserError(
            f"checkpoints_dir={config.checkpoints_dir}: found no checkpoint; correct job_name or the folder"
        )
    return config.checkpoints_dir, rounds[0]


def _config_of_job(config: Config, header: dict[str, Any]) -> Config:
    """The job's configuration, and the keys that are typed. Raises `UserError` if a key may not be changed."""
    defaults = {field.name: field.default for field in dataclasses.fields(Config)}
    before = {key: value for key, value in header["config"].items() if key in defaults}
    changed = {key: value for key, value in dataclasses.asdict(config).items() if value != defaults[key]}
    merged = Config.from_mapping(before | changed)
    # The path of the model may differ, if the header identifies the model.
    compatibility.check_config(merged, before | ({"model": merged.model} if header.get("origin") else {}))
    return merged
