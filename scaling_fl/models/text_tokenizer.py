"""Tokenizers that read special tokens in a text, such as "[SEP]" or "</s>", as text."""

import json
from typing import Any

from tokenizers import Tokenizer
from transformers import AutoTokenizer


def load_text_tokenizer(source: str, **options: Any) -> Any:
    """Load the tokenizer of a model. What is set here stays set in the folder that its `save_pretrained` writes."""
    tokenizer = AutoTokenizer.from_pretrained(source, split_special_tokens=True, **options)
    if tokenizer.is_fast:
        _demote_special_pieces(tokenizer)
    return tokenizer


def _demote_special_pieces(tokenizer: Any) -> None:
    """Give special tokens the lowest scores of a unigram vocabulary.

    Their score is 0, the best of all, so the vocabulary would match them in texts. SentencePiece never does. With the
    new scores their characters match one by one. Only a vocabulary that lacks one of these characters goes on matching.
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
