"""The `export` command: a Hugging Face folder of any checkpoint, whether its job is finished or not."""

import tempfile
from pathlib import Path

from scaling_fl.checkpoint import final_model
from scaling_fl.checkpoint.model_card import model_card
from scaling_fl.commands.job_checkpoint import JobCheckpoint
from scaling_fl.config import compatibility
from scaling_fl.config.schema import Config
from scaling_fl.models import loading, probe
from scaling_fl.models.export import save_tokenizer
from scaling_fl.progress import Send, unreported


def export(send: Send, typed: Config) -> None:
    """Write the folder `model-round-NNNNNN` beside the checkpoint, with `-site-N` for a site's own model.

    Raises `UserError` on bad input.

    The checkpoint says how its job was configured; keys that are typed, such as the path of a model that has moved, take
    precedence. The base model provides architecture and tokenizer; it must be the one that the job started with.
    """
    loading.silence_library()
    checkpoint = JobCheckpoint(send, typed)
    config, header = checkpoint.config_with(typed), checkpoint.header
    before = dict(header["config"])
    if header.get("origin"):  # it identifies the model, whose path may change
        before["model"] = config.model
    compatibility.check_config(config, before)
    loaded = checkpoint.load_model(send, config, config, unreported)
    paired = config.text_pair_column is not None
    padding, _ = probe.prepare_padding(config.model, loaded, [], paired, config.max_seq_len, [])
    with tempfile.TemporaryDirectory() as prepared:
        names = loading.input_names(loaded.module, paired)
        save_tokenizer(loaded, Path(prepared), config.max_seq_len, names)
        num_sites = None if config.partition == "column" else config.all_sites
        names_of_labels = header["label_names"]
        results = header["metrics"] if config.site is None else {}  # they are another model's
        card = model_card(config, names_of_labels, num_sites, checkpoint.round, results, padding.min_length)
        name = f"model-round-{checkpoint.round:06d}"
        if config.site is not None:
            name += f"-site-{config.site}"
        path = final_model.publish(
            checkpoint.store, name, checkpoint.round, loaded.module, Path(prepared), card, config.merge, loaded.dtype,
            send.progress,
        )  # fmt: skip
    send({"event": "said", "text": f"{'model':<12} {path}"})
