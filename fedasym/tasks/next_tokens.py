"""The target of models that write: the next token of an answer, with the model's own head."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fedasym.tasks.base import Evaluation, Examples

if TYPE_CHECKING:
    from torch import Tensor, nn

IGNORED = -100  # the label of a token that no loss is about, as PyTorch and transformers have it


@dataclass(frozen=True)
class NextTokens:
    """The tokens of an answer, each after all before it, by cross-entropy; the mean is over tokens.

    The answer is a part of the inputs, so a table has no column of labels, and a split cannot go by them. The labels
    that `Inputs.collate` makes stand beside the logits that predict them, ``(n, length)``, `IGNORED` elsewhere.
    """

    columns: tuple[str, ...] = ()
    classified = False
    has_head = False

    def classes(self, frame: Any) -> tuple[str, ...]:
        """Return none."""
        return ()

    def read(self, frame: Any, classes: tuple[str, ...], split: str) -> NDArray[np.int64]:
        """Return zeros: there are no labels."""
        return np.zeros(len(frame), np.int64)

    def split_by(self, examples: Examples, bins: int) -> tuple[NDArray[np.int64], tuple[str, ...]]:
        """Return zeros.

        Raises:
            ValueError: the split goes by labels.
        """
        if bins:
            raise ValueError("the task has no labels")
        return examples.labels, ()

    def loss(self, logits: "Tensor", labels: "Tensor") -> "Tensor":
        """Return the mean cross-entropy of logits ``(n, length, words)`` over the tokens that count, in float32."""
        from torch.nn import functional as F

        kept = labels != IGNORED
        return F.cross_entropy(logits[kept].float(), labels[kept])

    def evaluation(self, metrics: tuple[str, ...], processor: Any) -> Evaluation:
        """Begin an evaluation by the share of tokens that are the most likely ones, by perplexity and loss."""
        return TokenEvaluation(self)


class TokenEvaluation:
    """Token accuracy, the mean loss over all tokens, and its exponential, the perplexity; keeps three sums."""

    def __init__(self, target: NextTokens) -> None:
        self._target = target
        self._loss, self._tokens, self._right = 0.0, 0, 0

    def add(self, model: "nn.Module", inputs: Mapping[str, "Tensor"], labels: "Tensor", items: Sequence[Any]) -> None:
        """Judge the model on one batch."""
        logits, tokens = model(**inputs).logits, int((labels != IGNORED).sum())
        self._loss += self._target.loss(logits, labels).item() * tokens
        self._right += int((logits.argmax(-1) == labels).sum())
        self._tokens += tokens

    def scores(self) -> dict[str, float]:
        """Return ``token_accuracy``, ``perplexity`` and ``loss``.

        Raises:
            FloatingPointError: the loss is not finite.
        """
        mean = self._loss / self._tokens
        if not math.isfinite(mean):
            raise FloatingPointError(f"the model's mean loss is {mean}: training has diverged; lower lr or server-lr")
        return {
            "token_accuracy": self._right / self._tokens,
            "perplexity": math.exp(min(mean, 700.0)),  # above, float64 ends
            "loss": mean,
        }
