"""Attention masks in transformers."""

from typing import Any

from transformers import masking_utils


def disable_inspection() -> None:
    """Keep transformers from checking every mask for padding, and the positions in every batch of a decoder for several texts
    in a row: the checks make the CPU wait for the GPU.

    `Resident.to_device` checks masks on the CPU. A row is one text, or one block of documents.
    """
    masking_utils.find_packed_sequence_indices = lambda position_ids: None
    for name in ("_ignore_bidirectional_mask_sdpa", "_ignore_causal_mask_sdpa"):
        inspect_mask = getattr(masking_utils, name)

        def without_mask(mask: Any, *others: Any, inspect_mask: Any = inspect_mask, **more: Any) -> bool:
            return mask is None and inspect_mask(None, *others, **more)

        setattr(masking_utils, name, without_mask)
