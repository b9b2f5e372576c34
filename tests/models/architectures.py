"""Small models of random weights of the library's sequence classifiers."""

from typing import Any

import pytest
import torch
import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES

from tests import builders

ALL = tuple(MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES)

# A configuration takes those of the sizes that it has.
_SIZES = (
    dict.fromkeys(("hidden_size", "d_model", "n_embd", "dim", "emb_dim", "embedding_size"), 16)
    | dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_decoder_layers"), 2)
    | dict.fromkeys(("encoder_layers", "decoder_layers"), 2)
    | dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "num_key_value_heads"), 2)
    | dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 2)
    | dict.fromkeys(("intermediate_size", "n_inner", "hidden_dim", "d_ff", "d_inner", "ffn_dim"), 32)
    | dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim"), 32)
    | dict.fromkeys(("d_kv", "head_dim"), 8)
    | dict.fromkeys(("max_position_embeddings", "n_positions"), 64)
)
_OWN_SIZES: dict[str, dict[str, Any]] = {
    "gpt_neo": {"attention_types": [[["global"], 2]]},
    "gptj": {"rotary_dim": 4},
    "lilt": {"hidden_size": 24},
    "luke": {"entity_vocab_size": 20},
    "longformer": {"attention_window": 8},
    "reformer": {"axial_pos_shape": [8, 8], "axial_pos_embds_dim": [8, 8], "attention_head_size": 8},
    "xmod": {"default_language": "en_XX"},
    **{kind: {"decoder_start_token_id": 0} for kind in ("t5", "mt5", "umt5")},
}

# What no small configuration with the sizes above can do, and why.
EXCLUDED = {
    **dict.fromkeys(("axk1", "deepseek_v2", "deepseek_v3", "mistral4"), "its latent attention has sizes of its own"),
    **dict.fromkeys(("layoutlmv2", "layoutlmv3", "tapas"), "it takes images or tables beside texts"),
    **dict.fromkeys(
        ("gemma3", "modernvbert", "qwen3_5", "t5gemma", "t5gemma2", "ultravbert"), "its configuration holds others"
    ),
    **dict.fromkeys(("jamba", "zamba", "zamba2", "qwen3_next", "qwen3_5_text"), "its layers are of several kinds"),
    "cohere_compass_text": "its layers are of several kinds",
    "perceiver": "its 262,144 byte positions need a gigabyte",
    "reformer": "it trains on texts of one length only, and is refused",
}


def cases(*usual: str) -> list[Any]:
    """All that can be used, as parameters of a test; those that are not `usual` are for thorough runs."""
    return [
        pytest.param(kind, marks=() if kind in usual else pytest.mark.thorough) for kind in ALL if kind not in EXCLUDED
    ]


def build(kind: str, **changes: Any) -> Any:
    """A sequence classifier with three labels, for the tokenizer of `builders`."""
    tokenizer = builders.tokenizer()
    configuration = transformers.CONFIG_MAPPING[kind]
    known = configuration().to_dict()
    sizes = {name: size for name, size in _SIZES.items() if name in known and not isinstance(known[name], list | dict)}
    sizes |= {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
    sizes |= dict.fromkeys(("bos_token_id", "cls_token_id"), tokenizer.cls_token_id)
    sizes |= dict.fromkeys(("eos_token_id", "sep_token_id"), tokenizer.sep_token_id)
    config = configuration(**sizes | _OWN_SIZES.get(kind, {}) | changes)
    config.num_labels = 3
    torch.manual_seed(1)
    return transformers.AutoModelForSequenceClassification.from_config(config)
