"""Models: nicknames, loading with a new classification head, the tiny model of the demo, rebuilding, export."""

import contextlib
import inspect
import json
import os
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers

# The nicknames' modules, which transformers would import late: in the fork server once, not in every child.
import transformers.models.albert.modeling_albert
import transformers.models.bert.modeling_bert
import transformers.models.distilbert.modeling_distilbert
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer
from transformers.initialization import no_init_weights

from scaling_fl import hf_hub, seeding
from scaling_fl.errors import UserError
from scaling_fl.models.tiny import tiny_config, tiny_tokenizer

NICKNAMES = {
    "albert": "albert-base-v1",
    "bert": "bert-base-cased",
    "distilbert": "distilbert-base-cased",
}


class Loaded(NamedTuple):
    module: Any  # a transformers.PreTrainedModel
    tokenizer: Any
    new_parameters: list[str]  # names of those that the pre-trained weights don't hold: the head, as a rule


def load_model(model: str, label_names: tuple[str, ...], texts: list[str], max_seq_len: int, seed: int) -> Loaded:
    """The model that every site starts from, and its tokenizer.

    What the pre-trained weights lack (the classification head) is drawn with `seed`. `texts` serve only
    `model="tiny"`, whose vocabulary comes from them. Raises `UserError` where there is no such model.
    """
    labels = {
        "num_labels": len(label_names),
        "id2label": dict(enumerate(label_names)),
        "label2id": {name: number for number, name in enumerate(label_names)},
    }
    if model == "tiny":
        tokenizer = tiny_tokenizer(texts)
        torch.manual_seed(seeding.torch_seed(seed, "head"))
        module = AutoModelForSequenceClassification.from_config(tiny_config(len(tokenizer), labels))
        new_parameters = ["all"]
    else:

        def load_both(source: str, local_files_only: bool) -> tuple[Any, Any, dict[str, Any]]:
            options = {"local_files_only": local_files_only, "trust_remote_code": False}
            tokenizer = AutoTokenizer.from_pretrained(source, **options)
            torch.manual_seed(seeding.torch_seed(seed, "head"))
            module, report = AutoModelForSequenceClassification.from_pretrained(
                source,
                dtype=torch.float32,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # the head of an earlier fine-tuning; it is reported as new
                **options,
                **labels,
            )
            return tokenizer, module, report

        tokenizer, module, report = _obtain(model, load_both)
        new_parameters = sorted([*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])])
        if len(new_parameters) > len(list(module.parameters())) // 2:
            raise UserError(
                f"model={model}: its weights fit less than half of {type(module).__name__}; "
                "the folder's config.json and weights don't belong together"
            )
    module.config.pad_token_id = _usable(model, tokenizer).pad_token_id
    _check_limits(model, module, tokenizer, max_seq_len)
    return Loaded(module, tokenizer, new_parameters)


def load_tokenizer(model: str, texts: list[str], max_seq_len: int) -> Any:
    """The model's tokenizer without its weights; see `load_model`."""
    if model == "tiny":
        found, config = tiny_tokenizer(texts), tiny_config(0, {})
    else:

        def load_both(source: str, local_files_only: bool) -> tuple[Any, Any]:
            options = {"local_files_only": local_files_only, "trust_remote_code": False}
            return AutoTokenizer.from_pretrained(source, **options), AutoConfig.from_pretrained(source, **options)

        found, config = _obtain(model, load_both)
    _check_length(model, config, found, max_seq_len)
    return _usable(model, found)


def architecture(module: Any) -> dict[str, Any]:
    """What the model's configuration says of it, defaults included, without what is the file's or the library's own."""
    config = json.loads(module.config.to_json_string(use_diff=False))
    about = ("architectures", "dtype", "transformers_version")
    return {key: value for key, value in config.items() if not key.startswith("_") and key not in about}


def rebuild_model(folder: Path) -> torch.nn.Module:
    """The architecture that `folder/config.json` describes. Its parameters are arbitrary: the caller fills them."""
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    with no_init_weights():  # to draw them would take longer than all else that a worker does before it trains
        module = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)
    module.tie_weights()  # left out with the drawing
    return module


def disable_mask_inspection() -> None:
    """Keep the library from asking in each pass whether a batch has padding: the CPU would wait for the GPU's answer."""
    transformers.masking_utils._ignore_bidirectional_mask_sdpa = lambda mask, *_, **__: mask is None


def takes_token_types(module: torch.nn.Module) -> bool:
    """Whether the model knows a pair's second text by its token types: BERT and ALBERT, but not DistilBERT, RoBERTa."""
    types: int = getattr(module.config, "type_vocab_size", 0)
    return types > 1 and "token_type_ids" in inspect.signature(module.forward).parameters


def silence_library() -> None:
    """Silence the library's progress bars and its report on new heads, which `Loaded` carries."""
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()


def _obtain(model: str, load: Callable[[str, bool], Any]) -> Any:
    """`load(source, local_files_only)` for a nickname, a hub id or a folder. What is on this disk is used as it is."""
    source = NICKNAMES.get(model, model)
    folder = os.path.expanduser(source)
    try:
        if os.path.isdir(folder):
            return load(folder, True)
        if source.startswith((".", "/", "~")) or source.count("/") > 1:
            raise UserError(
                f"model={model}: there is no such folder; give {', '.join(NICKNAMES)}, tiny, a hub id or a folder"
            )
        with contextlib.suppress(OSError):  # not on this disk, or not all of it
            return load(source, True)
        hf_hub.find("model", source, f"model={model}", "give the path of a local model folder, or model=tiny")
        return load(source, False)
    except UserError:
        raise
    except Exception as error:  # whatever configuration, tokenizer and weights can hold
        reason = textwrap.shorten(str(error), 250, placeholder=" …")  # the library explains itself in paragraphs
        raise UserError(
            f"model={model}: it can't be loaded: {type(error).__name__}: {reason}; is all of it there? It takes config.json, "
            "weights and a tokenizer that transformers reads without code of the model's own"
        ) from error


def _usable(model: str, tokenizer: Any) -> Any:
    """The tokenizer with a padding token. Where its files are missing, the library makes one of special tokens alone."""
    if len(tokenizer) - len(set(tokenizer.all_special_ids)) < 2:
        raise UserError(
            f"model={model}: its tokenizer has no vocabulary; save the tokenizer's files beside the weights"
        )
    if tokenizer.pad_token is None:  # decoders: they find a text's last token by the padding's id
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.pad_token is None:
        raise UserError(f"model={model}: its tokenizer has neither a padding nor an end token; use another model")
    return tokenizer


def _check_length(model: str, config: Any, tokenizer: Any, max_seq_len: int) -> None:
    limit = min(tokenizer.model_max_length, getattr(config, "max_position_embeddings", max_seq_len))
    if max_seq_len > limit:
        raise UserError(f"max_seq_len={max_seq_len}: model={model} takes {limit} tokens at most")


def _check_limits(model: str, module: Any, tokenizer: Any, max_seq_len: int) -> None:
    _check_length(model, module.config, tokenizer, max_seq_len)
    # Configurations don't tell it all: some models spend position numbers on padding, some vocabularies outgrow
    # their embeddings. A text of full length with the last token of the vocabulary shows it here, not in a site.
    ids = torch.full((1, max_seq_len), len(tokenizer) - 1)
    try:
        with torch.inference_mode():
            module.eval()(input_ids=ids, attention_mask=torch.ones_like(ids))
    except (IndexError, RuntimeError) as error:
        raise UserError(
            f"model={model}: it can't take {max_seq_len} tokens of its tokenizer's vocabulary ({error}); "
            "lower max_seq_len, or check that model and tokenizer belong together"
        ) from error
