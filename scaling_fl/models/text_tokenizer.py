"""Tokenizers that read special tokens in a text, such as "[SEP]" or "</s>", as text; and their padding tokens."""

import json
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from scaling_fl.errors import UserError


def load_text_tokenizer(source: str, **options: Any) -> Any:
    """Load the tokenizer of a model. What is set here stays set in the folder that its `save_pretrained` writes."""
    tokenizer = AutoTokenizer.from_pretrained(source, split_special_tokens=True, **options)
    if tokenizer.is_fast:
        _demote_special_pieces(tokenizer)
    return tokenizer


def with_padding_token(model: str, tokenizer: Any) -> Any:
    """Return the tokenizer, with a padding token. If its files are missing, transformers makes up an empty vocabulary."""
    if len(tokenizer) - len(set(tokenizer.all_special_ids)) < 2:
        raise UserError(
            f"model={model}: its tokenizer has no vocabulary; save the tokenizer's files beside the weights"
        )
    if tokenizer.pad_token is None:  # decoders often lack one, but find a text's last token by its id
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.pad_token is None:
        raise UserError(
            f"model={model}: its tokenizer has neither a padding nor an end-of-sequence token; use another model"
        )
    return tokenizer


def check_padding_token(model: str, tokenizer: Any, embeddings: torch.nn.Module) -> None:
    """Raises `UserError` if the embedding table lacks the padding token."""
    number, rows = tokenizer.pad_token_id, getattr(embeddings, "num_embeddings", None)
    if rows is not None and number >= rows:
        raise UserError(
            f"model={model}: its padding token {tokenizer.pad_token} has the number {number}, but its embedding table has "
            f"{rows} rows; save the model after resize_token_embeddings(len(tokenizer)), or with another padding token"
        )


def _demote_special_pieces(tokenizer: Any) -> None:
    """Give special tokens the lowest scores of a unigram vocabulary.

    Their score is 0, the best of all, so the vocabulary would match them in texts. SentencePiece never does. With the
    new scores their characters match one by one. Only a vocabulary that lacks one of these characters goes on matching;
    token stores refuse texts with such tokens.
    """
    if type(tokenizer.backend_tokenizer.model).__name__ != "Unigram":
        return
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    pieces = state["model"]["vocab"]
    special = {number for number in tokenizer.all_special_ids if number < len(pieces)}
    lowest = min(score for number, (_, score) in enumerate(pieces) if number not in special)
    for number in special:  # worse than one character after another
        pieces[number][1] = len(pieces[number][0]) * (lowest - 1)
    tokenizer._tokenizer = Tokenizer.from_str(json.dumps(state))


def check_length(model: str, config: Any, tokenizer: Any, max_seq_len: int) -> None:
    """Raise `UserError` if the model takes fewer than `max_seq_len` tokens."""
    limits = (tokenizer.model_max_length, getattr(config, "max_position_embeddings", None))
    # Some say -1 or None for no limit.
    limit = min((limit for limit in limits if limit is not None and limit > 0), default=max_seq_len)
    if max_seq_len > limit:
        raise UserError(f"max_seq_len={max_seq_len}: model={model} takes at most {limit} tokens; lower max_seq_len")
