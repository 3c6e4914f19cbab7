"""What the inputs of models that write have in common: how a text begins, padding."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


def opening(tokenizer: Any) -> list[int]:
    """Return the token that a tokenizer itself puts before every text, if it does: that of the beginning."""
    first = tokenizer("").input_ids[:1]
    return first if first and first[0] == tokenizer.bos_token_id else []


def padded(rows: Sequence[Sequence[int]], value: int) -> "dict[str, Tensor]":
    """Pad rows of ids on the right to the longest.

    Returns:
        ``input_ids`` and ``attention_mask``, int64 ``(n, length)``.
    """
    import torch
    from torch.nn.utils.rnn import pad_sequence

    ids = [torch.tensor(row, dtype=torch.int64) for row in rows]
    return {
        "input_ids": pad_sequence(ids, batch_first=True, padding_value=value),
        "attention_mask": pad_sequence([torch.ones_like(row) for row in ids], batch_first=True, padding_value=0),
    }
