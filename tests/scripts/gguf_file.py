"""A GGUF file as llama.cpp writes it: a small Llama with grouped queries, its tokenizer and its chat template."""

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
import transformers
from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers import models as tokenizer_models

CHAT_TEMPLATE = "{% for m in messages %}<|start|>{{ m['role'] }}\n{{ m['content'] }}<|end|>{% endfor %}"
CONTROL = ("<|end|>", "<|start|>")
TEXTS = ["a river, a stone; the rivers and the stones", " 1234 engines — for 99 €\n\n\tnaïve", "violin violins"]
# Names of the tensors in a GGUF file, by transformers' names.
_LAYER = {
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip
_OTHERS = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def tokenizer() -> Tokenizer:
    """A byte-level BPE, which has a token for every byte, so that no text is lost."""
    built = Tokenizer(tokenizer_models.BPE())
    built.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    built.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    built.train_from_iterator(
        TEXTS, trainers.BpeTrainer(vocab_size=280, special_tokens=list(CONTROL), initial_alphabet=alphabet)
    )
    return built


def llama(vocab_size: int, tied: bool) -> Any:
    """Two layers with weights that 8 bits hold exactly.

    Q8_0 stores 32 weights as integers of one byte and their scale, which is the largest weight ÷ 127. Here it is 1/128.
    """
    config = transformers.LlamaConfig(
        vocab_size=vocab_size, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=64, max_position_embeddings=48, rms_norm_eps=1e-3, rope_parameters={"rope_theta": 500.0, "rope_type": "default"},
        tie_word_embeddings=tied,
    )  # fmt: skip
    model = transformers.AutoModelForCausalLM.from_config(config)
    torch.manual_seed(6)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randint(-126, 127, weight.shape) / 128)
            weight.view(-1)[::32] = 127 / 128
    return model


def write(path: Path, model: Any, words: Tokenizer, quantised: bool = True) -> None:
    """Write both, with matrices of 16 bits; if `quantised`, those of the feed-forward layers have 8."""
    config = model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_vocab_size(config.vocab_size)
    _add_tokenizer(writer, words)
    for name, weight in model.state_dict().items():
        if name != "lm_head.weight" or not config.tie_word_embeddings:
            _add_tensor(writer, name, weight.numpy(), config, quantised)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_tokenizer(writer: gguf.GGUFWriter, words: Tokenizer) -> None:
    tokens = [words.id_to_token(number) for number in range(words.get_vocab_size())]
    types = [gguf.TokenType.CONTROL if token in CONTROL else gguf.TokenType.NORMAL for token in tokens]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges([" ".join(pair) for pair in json.loads(words.to_str())["model"]["merges"]])
    writer.add_eos_token_id(tokens.index("<|end|>"))
    writer.add_bos_token_id(tokens.index("<|start|>"))
    writer.add_pad_token_id(tokens.index("<|end|>"))
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)


def _add_tensor(writer: gguf.GGUFWriter, name: str, weight: np.ndarray, config: Any, quantised: bool) -> None:
    module = name.removesuffix(".weight")
    if module in _OTHERS:
        writer.add_tensor(f"{_OTHERS[module]}.weight", weight.astype(np.float16 if weight.ndim == 2 else np.float32))
        return
    _, _, layer, part = module.split(".", 3)
    if part in ("self_attn.q_proj", "self_attn.k_proj"):
        weight = _pairs_side_by_side(weight, config.head_dim)
    kind, new = gguf.GGMLQuantizationType, f"blk.{layer}.{_LAYER[part]}.weight"
    if quantised and part.startswith("mlp"):
        writer.add_tensor(new, gguf.quantize(weight, kind.Q8_0), raw_dtype=kind.Q8_0)
    else:
        writer.add_tensor(new, weight.astype(np.float16 if weight.ndim == 2 else np.float32))


def _pairs_side_by_side(weight: np.ndarray, head_dim: int) -> np.ndarray:
    """The rows (heads × D, H) in llama.cpp's order.

    A rotation turns two rows of a head. Transformers has them D/2 apart, llama.cpp one after the other.
    """
    half = head_dim // 2
    heads = [weight[start : start + head_dim] for start in range(0, len(weight), head_dim)]
    return np.concatenate([head[[row for pair in range(half) for row in (pair, pair + half)]] for head in heads])
