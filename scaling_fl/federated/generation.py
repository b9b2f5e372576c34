"""What a language model writes: its responses to the first test conversations, or how it goes on with test documents."""

import sys
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import GenerationConfig

from scaling_fl.federated.resident import Resident

_MAX_TOKENS = 128  # that are generated


def generate(resident: Resident, params: torch.Tensor, rows: npt.NDArray[np.int64]) -> list[dict[str, Any]]:
    """For each test row: row (from 1), prompt, expected and generated text. Each token is the most probable one.

    The prompt is what stands before the last response, or the first half of a block of documents.
    """
    with resident.model.reading(params), torch.inference_mode():
        return [_of_row(resident, int(row)) for row in rows]


def _of_row(resident: Resident, row: int) -> dict[str, Any]:
    module, tokenizer = resident.model.module.eval(), resident.tokenizer
    limit = getattr(module.config, "max_position_embeddings", None) or sys.maxsize
    prompt, expected = _parts(resident, row)
    settings = GenerationConfig(
        do_sample=False, max_new_tokens=min(_MAX_TOKENS, limit - len(prompt)), eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id, use_cache=True,
    )  # fmt: skip
    ids = torch.from_numpy(prompt.astype(np.int64))[None].to(resident.device)
    with resident.autocast():
        whole = module.generate(ids, attention_mask=torch.ones_like(ids), generation_config=settings)
    resident.on_alive()
    texts = (prompt, expected, whole[0, len(prompt) :].cpu().numpy())
    names = ("prompt", "expected", "generated")
    decoded = (
        tokenizer.decode(part, skip_special_tokens=name != "prompt") for name, part in zip(names, texts, strict=True)
    )
    return {"row": row + 1, **dict(zip(names, decoded, strict=True))}


def _parts(resident: Resident, row: int) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """The tokens of the prompt, and those that follow."""
    store = resident.test
    span = slice(store.offsets[row], store.offsets[row + 1])
    tokens, predicted = np.array(store.tokens[span]), store.predicted
    assert predicted is not None, "it is a language model"
    flags = np.array(predicted[span])
    end = int(np.flatnonzero(flags)[-1]) + 1  # of the last response; a template may write more after it
    start = int(np.flatnonzero(flags[:end] == 0)[-1]) + 1
    if store.num_bytes.any():  # a block of documents: all but its first token are predicted
        start = max(1, len(tokens) // 2)
    return tokens[:start], tokens[start:end]
