"""Loading pre-trained models with a new classification head, and rebuilding them in workers."""

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

# transformers imports these lazily. Import them here: once in the fork server, not in every child process.
import transformers.models.albert.modeling_albert
import transformers.models.bert.modeling_bert
import transformers.models.distilbert.modeling_distilbert
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification
from transformers.initialization import no_init_weights
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from scaling_fl import hf_hub, host, seeding
from scaling_fl.errors import UserError
from scaling_fl.models import memory
from scaling_fl.models.aliases import ALIASES
from scaling_fl.models.text_tokenizer import check_length, check_padding_token, load_text_tokenizer, with_padding_token
from scaling_fl.models.tiny import tiny_config, tiny_decoder, tiny_tokenizer

_TOKENIZER_PACKAGES = ("tiktoken", "sacremoses", "rjieba", "fugashi", "mistral_common")  # few tokenizers need them

# What the program and the exported model rely on, whatever the base model's config.json says. None of these keys changes
# the logits.
SETTINGS = {
    "return_dict": True,
    "output_attentions": False,
    "output_hidden_states": False,
    "problem_type": "single_label_classification",
}
# Only some architectures have these: the cache of keys and values for generation, and feed-forward layers in pieces,
# which saves memory but takes only lengths that it divides. Neither changes the logits.
UNUSED = {"use_cache": False, "chunk_size_feed_forward": 0}


class LoadedModel(NamedTuple):
    module: Any  # a transformers.PreTrainedModel
    tokenizer: Any
    new_parameters: list[str]  # names that the pre-trained weights lack: usually the head
    notes: tuple[str, ...] = ()
    dtype: str = "float32"  # of the pre-trained weights


def load_model(model: str, label_names: tuple[str, ...], texts: list[str], max_seq_len: int, seed: int) -> LoadedModel:
    """Load the model that every site starts from, and its tokenizer: without `label_names`, one that predicts tokens.

    Parameters that the pre-trained weights lack (the classification head) are initialised with `seed`. `texts` are used
    only by `model="tiny"`, whose vocabulary comes from them. Raises `UserError` if the model can't be found or used.
    """
    labels: dict[str, Any] = SETTINGS | {
        "num_labels": len(label_names),
        "id2label": dict(enumerate(label_names)),
        "label2id": {name: number for number, name in enumerate(label_names)},
    }
    auto_class: Any = AutoModelForSequenceClassification
    if not label_names:
        labels, auto_class = {k: v for k, v in SETTINGS.items() if k != "problem_type"}, AutoModelForCausalLM
    notes, dtype = [], "float32"
    if model == "tiny":
        tokenizer = tiny_tokenizer(texts)
        torch.manual_seed(seeding.torch_seed(seed, "head"))
        size = len(tokenizer)
        module = auto_class.from_config(tiny_config(size, labels) if label_names else tiny_decoder(size))
        new_parameters = ["all"]
    else:

        def load_both(source: str, local_files_only: bool) -> tuple[Any, Any, dict[str, Any]]:
            options = {"local_files_only": local_files_only, "trust_remote_code": False}
            tokenizer = load_text_tokenizer(source, **options)
            config = AutoConfig.from_pretrained(source, **options, **labels)
            nonlocal dtype
            dtype = str(config.dtype or torch.float32).removeprefix("torch.")
            for key in UNUSED.keys() & vars(config).keys():
                setattr(config, key, UNUSED[key])
            if getattr(config, "attention_type", None) == "block_sparse":
                config.attention_type = "original_full"  # the library would switch to it at the first short batch
                notes.append(
                    f"model={model}: attention_type=block_sparse would hold until the first short batch only, so every "
                    "text gets full attention"
                )
            if type(config) not in auto_class._model_mapping:
                raise UserError(
                    f"model={model}: {config.model_type} models "
                    + ("don't classify texts" if label_names else "don't predict the next token, as language models do")
                    + "; use another model"
                )
            if not label_names:
                memory.check_model(model, auto_class, config)
            torch.manual_seed(seeding.torch_seed(seed, "head"))
            module, report = auto_class.from_pretrained(
                source,
                config=config,
                dtype=torch.float32,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # a head from earlier fine-tuning is replaced, and reported as new
                **options,
            )
            return tokenizer, module, report

        tokenizer, module, report = _obtain(model, load_both)
        new_parameters = sorted([*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])])
        if len(new_parameters) > len(list(module.parameters())) // 2:
            raise UserError(
                f"model={model}: its weights match less than half of {type(module).__name__}; "
                "use the config.json that belongs to the weights"
            )
        for key, found, expected in report["mismatched_keys"]:
            if key.startswith(f"{module.base_model_prefix}."):  # not the head: it would be redrawn
                raise UserError(
                    f"model={model}: {key} has the shape {list(found)} in its weights, but {list(expected)} by its "
                    "config.json; use the config.json that belongs to the weights"
                )
    module.config.pad_token_id = with_padding_token(model, tokenizer).pad_token_id
    with contextlib.suppress(NotImplementedError):  # characters have no table
        check_padding_token(model, tokenizer, module.get_input_embeddings())
    for key, value in UNUSED.items():
        if hasattr(module.config, key):
            setattr(module.config, key, value)
    module.config.architectures = [type(module).__name__]  # `rebuild_model` looks there
    check_length(model, module.config, tokenizer, max_seq_len)
    return LoadedModel(module, tokenizer, new_parameters, tuple(dict.fromkeys(notes)), dtype)


def load_tokenizer(model: str, texts: list[str], max_seq_len: int) -> Any:
    """Load the model's tokenizer without its weights; see `load_model`."""
    if model == "tiny":
        found, config = tiny_tokenizer(texts), tiny_config(0, {})
    else:

        def load_both(source: str, local_files_only: bool) -> tuple[Any, Any]:
            options = {"local_files_only": local_files_only, "trust_remote_code": False}
            return load_text_tokenizer(source, **options), AutoConfig.from_pretrained(source, **options)

        found, config = _obtain(model, load_both)
    check_length(model, config, found, max_seq_len)
    return with_padding_token(model, found)


def label_names(model: str) -> tuple[str, ...]:
    """The names of a trained model's labels, by number; none if it predicts tokens. See `load_model`."""

    def load(source: str, local_files_only: bool) -> Any:
        return AutoConfig.from_pretrained(source, local_files_only=local_files_only, trust_remote_code=False)

    config = _obtain(model, load)
    if MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type) in (config.architectures or ()):
        return ()
    return tuple(name for _, name in sorted(config.id2label.items()))


def architecture(module: Any) -> dict[str, Any]:
    """Return the model's configuration, defaults included, without the file, the library and what is always set."""
    config = json.loads(module.config.to_json_string(use_diff=False))
    metadata = ("architectures", "dtype", "transformers_version", *SETTINGS, *UNUSED)
    return {key: value for key, value in config.items() if not key.startswith("_") and key not in metadata}


def rebuild_model(folder: Path) -> torch.nn.Module:
    """Build the architecture that `folder/config.json` describes. Its parameters are arbitrary; the caller fills them."""
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    return build(getattr(transformers, config.architectures[0]), config)


def build(kind: Any, config: Any) -> Any:
    """Build a model of the class `kind`, see `rebuild_model`."""
    with no_init_weights():  # initialising them would take most of a worker's start-up time
        module = kind._from_config(config, dtype=torch.float32)
    module.tie_weights()  # skipped along with the initialisation
    return module


def predicts_tokens(module: Any) -> bool:
    """Whether it is a language model, not a classifier."""
    output_embeddings = getattr(module, "get_output_embeddings", None)
    return output_embeddings is not None and output_embeddings() is not None


def takes_token_types(module: torch.nn.Module) -> bool:
    """Whether the model marks a pair's second text by token types: BERT and ALBERT do, DistilBERT and RoBERTa don't."""
    types: int = getattr(module.config, "type_vocab_size", 0)
    return types > 1 and "token_type_ids" in inspect.signature(module.forward).parameters


def input_names(module: torch.nn.Module, pairs: bool) -> list[str]:
    """Return the names of the tensors that the model is trained with, on pairs or on single texts."""
    token_types = ["token_type_ids"] if pairs and takes_token_types(module) else []
    mask = ["attention_mask"] if "attention_mask" in inspect.signature(module.forward).parameters else []
    return ["input_ids", *token_types, *mask]


def silence_library() -> None:
    """Silence transformers' progress bars and its report on new heads, which `LoadedModel` carries."""
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()


def _obtain(model: str, load: Callable[[str, bool], Any]) -> Any:
    """Call `load(source, local_files_only)` for an alias, a hub id or a folder. Local copies are not updated."""
    source = ALIASES.get(model, model)
    folder = os.path.expanduser(source)
    try:
        if os.path.isdir(folder):
            if not os.path.exists(os.path.join(folder, "config.json")):
                raise UserError(
                    f"model={model}: the folder has no config.json; name a folder that a model was saved in, with "
                    "config.json, weights and a tokenizer"
                )
            return load(folder, True)
        if source.startswith((".", "/", "~")) or source.count("/") > 1:
            raise UserError(
                f"model={model}: there is no such folder{host.did_you_mean(source)}; give {', '.join(ALIASES)}, tiny, a hub id or a local folder"
            )
        with contextlib.suppress(OSError):  # not cached, or not completely
            return load(source, True)
        similar = host.did_you_mean(source, [*ALIASES, "tiny"])
        hf_hub.check_exists(
            "model", source, f"model={model}{similar}", "give the path of a local model folder, or model=tiny"
        )
        return load(source, False)
    except UserError:
        raise
    except Exception as error:  # broken files can raise anything
        needed = next((package for package in _TOKENIZER_PACKAGES if package in str(error)), None)
        # The library's ValueErrors list packages that may have nothing to do with it.
        if needed is not None and isinstance(error, ImportError):
            raise UserError(
                f"model={model}: its tokenizer needs the package {needed}: ./run-local.sh -m pip install {needed}"
            ) from error
        reason = textwrap.shorten(str(error), 250, placeholder=" …")  # transformers' messages run to paragraphs
        raise UserError(
            f"model={model}: cannot load it: {type(error).__name__}: {reason}; is it complete? It needs config.json, "
            "weights and a tokenizer that transformers reads without custom code"
        ) from error
