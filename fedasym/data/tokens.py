"""Examples as token ids, and padded batches of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fedasym.data.examples import Examples


@dataclass(frozen=True)
class Tokens:
    """Tokenised examples: ids per example, its length in tokens, the labels; of pairs apart, the second text too."""

    encoded: list[dict[str, list[int]]]
    lengths: NDArray[np.int64]
    labels: NDArray[Any]
    second: list[dict[str, list[int]]] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: NDArray[np.int64]) -> "Tokens":
        """Return the examples at the given places, in that order."""
        second = None if self.second is None else [self.second[i] for i in indices]
        return Tokens([self.encoded[i] for i in indices], self.lengths[indices], self.labels[indices], second)


def tokenize(tokenizer: Any, examples: Examples, max_length: int, pooling: str = "model") -> Tokens:
    """Tokenise texts without padding, cut at ``max_length`` tokens; pairs together, or apart for ``pooling="pair"``.

    Raises:
        ValueError: ``pooling="pair"`` for examples that are no pairs.
    """
    if pooling == "pair":
        if len(examples.texts) != 2:
            raise ValueError(f"pooling='pair' needs two text columns; there are {len(examples.texts)}")
        first, second = (_encode(tokenizer, [column], max_length) for column in examples.texts)
        lengths = [len(one["input_ids"]) + len(two["input_ids"]) for one, two in zip(first, second, strict=True)]
        return Tokens(first, np.asarray(lengths, np.int64), examples.labels, second)
    encoded = _encode(tokenizer, examples.texts, max_length)
    return Tokens(encoded, np.asarray([len(row["input_ids"]) for row in encoded], np.int64), examples.labels)


def _encode(tokenizer: Any, texts: Sequence[list[str]], max_length: int) -> list[dict[str, list[int]]]:
    columns = tokenizer(*texts, truncation=True, max_length=max_length)
    keys = list(columns.keys())
    return [dict(zip(keys, row, strict=True)) for row in zip(*(columns[key] for key in keys), strict=True)]


def collate(tokenizer: Any, tokens: Tokens, indices: Sequence[int]) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Pad the chosen examples to the longest of them; return the model's inputs and the labels.

    Second texts that stand apart are padded by themselves, their inputs named ``second_…``.
    """
    inputs = dict(tokenizer.pad([tokens.encoded[i] for i in indices], return_tensors="pt"))
    if tokens.second is not None:
        padded = tokenizer.pad([tokens.second[i] for i in indices], return_tensors="pt")
        inputs |= {f"second_{key}": value for key, value in padded.items()}
    return inputs, torch.from_numpy(tokens.labels[np.asarray(indices)])
