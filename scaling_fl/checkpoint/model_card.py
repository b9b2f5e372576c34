"""The model card of an exported model: how to use it, its labels, its training and its results."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from huggingface_hub import ModelCardData

from scaling_fl.config.schema import Config
from scaling_fl.models.aliases import hub_id

# Keys that say how the model was trained. No path of the machine is among them.
_TRAINING = (
    "task_name", "max_seq_len", "baseline", "partition", "batch_size", "num_local_epochs", "num_local_steps",
    "local_epochs_range", "optimiser", "learning_rate", "lr_schedule", "warmup", "weight_decay", "weighting", "fednova",
    "proximal_mu", "feddyn_alpha", "scaffold", "server_optimiser", "server_learning_rate", "server_momentum",
    "server_nesterov", "server_beta2", "server_tau", "seed", "data_seed",
)  # fmt: skip
# Likewise, but named only if they are set.
_IF_SET = (
    "final_learning_rate", "trainable", "modules_to_save", "base_precision", "lora_rank", "lora_alpha", "lora_dropout", "lora_targets", "lora_ranks", "lora_aggregation", "lora_delta_rank", "upload", "topk_share",
    "download", "fairness_q", "aggregation", "faulty_sites", "krum_sites", "attack", "attackers", "attack_strength", "personal", "ditto_lambda", "dp_clip", "dp_noise_multiplier", "dp_epsilon", "dp_delta",
    "dp_clip_quantile", "sampling",
)  # fmt: skip
_RESULTS = ("validation.", "held_back.")
_LANGUAGE_MODEL = (
    "A language model, trained by federated learning with scaling_fl.",
    "```python\nfrom transformers import pipeline\n\n"
    'generate = pipeline("text-generation", "FOLDER")\n'
    'generate("The beginning of a text", max_new_tokens=50)\n```',
)
_ADAPTERS = (
    "```python\nfrom peft import PeftModel\nfrom transformers import {auto_class}\n\n"
    'base = {auto_class}.from_pretrained("{base}"{labels})\n'
    'model = PeftModel.from_pretrained(base, "FOLDER/adapter")\n```'
)


def model_card(
    config: Config,
    label_names: Sequence[str],
    num_sites: int | None,
    round_: int,
    results: Mapping[str, Any],
    min_length: int = 1,
) -> str:
    """Return the `README.md` of the model after `round_`, with its `results` by metric. It names no local path.

    `min_length`: tokens that texts are padded to, at least; see `models.probe`.
    """
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag="text-classification" if label_names else "text-generation",
        base_model=hub_id(config.model),
        tags=["federated-learning", "scaling_fl"],
    )
    argument = "a text" if config.text_pair_column is None else {"text": "a text", "text_pair": "another text"}
    padding = f'padding="max_length", max_length={config.max_seq_len}, ' if min_length > 1 else ""
    training: list[tuple[str, Any]] = [("sites", num_sites)] if num_sites is not None else []
    training.append(("rounds", round_))
    training += [(key, value) for key in _TRAINING if (value := getattr(config, key)) is not None]
    if config.num_local_steps is not None or config.local_epochs_range is not None:  # they take its place
        training.remove(("num_local_epochs", config.num_local_epochs))
    training += [(key, value) for key in _IF_SET if (value := getattr(config, key)) != getattr(Config, key)]
    if config.dp_clip is not None:  # who took part follows from it
        training.remove(("seed", config.seed))
    measured = [(name, value) for name, value in sorted(results.items()) if name.startswith(_RESULTS)]
    training_sections = ["## Training", _table(("key", "value"), training)]
    if measured:
        training_sections += [f"## Results after round {round_}", _table(("metric", "value"), measured)]
    head = [f"---\n{data.to_yaml()}\n---", f"# {config.job_name}"]
    if config.trainable == "lora" and not config.merge:
        auto_class = "AutoModelForSequenceClassification" if label_names else "AutoModelForCausalLM"
        labels = f", num_labels={len(label_names)}" if label_names else ""
        usage = _ADAPTERS.format(auto_class=auto_class, base=hub_id(config.model) or "BASE", labels=labels)
        return (
            "\n\n".join(
                [*head, "LoRA adapters, trained by federated learning with scaling_fl.", usage, *training_sections]
            )
            + "\n"
        )
    if not label_names:
        return "\n\n".join([*head, *_LANGUAGE_MODEL, *training_sections]) + "\n"
    sections = [
        *head,
        f"A text classifier with {len(label_names)} labels, trained by federated learning with scaling_fl.",
        "```python\nfrom transformers import pipeline\n\n"
        'classify = pipeline("text-classification", "FOLDER")\n'
        f"classify({json.dumps(argument)}, {padding}truncation=True)\n```",
        f"`truncation=True` cuts an input to its first {config.max_seq_len} tokens, as in training."
        + (" The results of this model depend on padding, so pad as in this example." if padding else ""),
        "## Labels",
        _table(("number", "label"), list(enumerate(label_names))),
        *training_sections,
    ]
    return "\n\n".join(sections) + "\n"


def _table(head: tuple[str, str], rows: Sequence[tuple[Any, Any]]) -> str:
    lines = [head, ("---", "---"), *rows]
    return "\n".join(f"| {_cell(left)} | {_cell(right)} |" for left, right in lines)


def _cell(value: Any) -> str:
    """A value in one cell of a Markdown table, whatever characters it has."""
    text = f"{value:.4f}" if isinstance(value, float) and value == round(value, 4) else str(value)
    return re.sub(r"([\\`*_\[\]<>|])", r"\\\1", " ".join(text.split()))
