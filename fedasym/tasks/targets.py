"""What can be learned of any input: one of some classes, or a score."""

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fedasym.tasks.base import Answer, Evaluation, Examples
from fedasym.tasks.columns import in_order, labels_in, row_at, split_at
from fedasym.tasks.metrics import score

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor, nn

    from fedasym.tasks.base import Batch


@dataclass(frozen=True)
class Classes:
    """One of some classes, by cross-entropy.

    Attributes:
        column: holds a class in each row.
        values: what stands for the classes there, by id, where that is known beforehand: ids, or their names.
        hint: what to do about a label that is none of them.
    """

    column: str
    values: tuple[str, ...] = ()
    hint: str = "set labels, or mend the data"
    classified = True
    has_head = True

    @property
    def columns(self) -> tuple[str, ...]:
        """The label column."""
        return (self.column,)

    def classes(self, frame: Any) -> tuple[str, ...]:
        """Return the classes that a training table holds."""
        names = in_order(labels_in(frame, self.column, ""))
        if "-1" in names:
            first = row_at(frame, labels_in(frame, self.column, "").index("-1"), "")
            raise ValueError(
                f"{first}: the label is -1, by which hubs mark a row without one; set drop-labels=-1 to leave such "
                f"rows out, or labels={','.join(names)!r} if it is a class"
            )
        if len(names) < 2:
            raise ValueError(f"column {self.column!r} of the training data holds {len(names)} classes; need 2")
        return names

    def read(self, frame: Any, classes: tuple[str, ...], split: str) -> NDArray[np.int64]:
        """Return class ids."""
        found = labels_in(frame, self.column, split)
        ids = {value: i for i, value in enumerate(self.values or classes)}
        unknown = ", ".join(sorted({*found} - ids.keys()))
        if unknown:
            where = split_at(frame, split)
            first = row_at(frame, next(place for place, name in enumerate(found) if name not in ids), split)
            if self.values:
                raise ValueError(
                    f"{where} holds the labels {unknown} in column {self.column!r}; those of the task are "
                    f"{', '.join(ids)} ({', '.join(classes)}); the first of them: {first}; {self.hint}"
                )
            raise ValueError(
                f"{where} holds the classes {unknown}, which the training data do not have ({', '.join(classes)}); "
                f"the first of them: {first}; a hub's test split may be unlabelled: set test-split, e.g. to "
                "'validation'"
            )
        return np.asarray([ids[name] for name in found], np.int64)

    def split_by(self, examples: Examples, bins: int) -> tuple[NDArray[np.int64], tuple[str, ...]]:
        """Return the class ids."""
        return examples.labels, ()

    def loss(self, logits: "Tensor", labels: "Tensor") -> "Tensor":
        """Return the mean cross-entropy of logits ``(n, classes)`` and ids ``(n,)``, in float32."""
        from torch.nn import functional as F

        return F.cross_entropy(logits.float(), labels)

    def evaluation(self, metrics: tuple[str, ...], processor: Any) -> Evaluation:
        """Begin an evaluation of the most likely class."""
        return LogitsEvaluation(self, metrics)

    def answers(
        self, model: "nn.Module", processor: Any, batch: "Batch", classes: tuple[str, ...], length: int = 0
    ) -> list[Answer]:
        """Return the probability of each class by name, in the order of the ids, the softmax of the logits."""
        rows = _finite_logits(model, batch[0]).softmax(-1).tolist()
        return [dict(zip(classes, row, strict=True)) for row in rows]

    def predictions(self, logits: NDArray[np.float32]) -> NDArray[Any]:
        """Return the class of the largest logit."""
        return np.asarray(logits.argmax(-1))


@dataclass(frozen=True)
class Scores:
    """A number, by squared error.

    Attributes:
        column: holds a number in each row.
    """

    column: str
    classified = False
    has_head = True

    @property
    def columns(self) -> tuple[str, ...]:
        """The label column."""
        return (self.column,)

    def classes(self, frame: Any) -> tuple[str, ...]:
        """Return none."""
        return ()

    def read(self, frame: Any, classes: tuple[str, ...], split: str) -> NDArray[np.float32]:
        """Return scores."""
        found = []
        for place, value in enumerate(frame[self.column].tolist()):
            try:
                found.append(float(value))
            except (TypeError, ValueError) as error:
                row = row_at(frame, place, split)
                raise ValueError(f"{row}: column {self.column!r} must hold numbers ({error}); mend it") from None
        scores = np.asarray(found, np.float32)
        if not (finite := np.isfinite(scores)).all():
            row = row_at(frame, int(finite.argmin()), split)
            raise ValueError(f"{row}: column {self.column!r} holds values that are not finite; mend or drop it")
        return scores

    def split_by(self, examples: Examples, bins: int) -> tuple[NDArray[np.int64], tuple[str, ...]]:
        """Return the quantile bins of the scores, or zeros."""
        return score_bins(examples.labels, bins) if bins else (np.zeros(len(examples), np.int64), ())

    def loss(self, logits: "Tensor", labels: "Tensor") -> "Tensor":
        """Return the mean squared error of outputs ``(n, 1)`` and scores ``(n,)``, in float32."""
        from torch.nn import functional as F

        return F.mse_loss(logits.float().squeeze(-1), labels)

    def evaluation(self, metrics: tuple[str, ...], processor: Any) -> Evaluation:
        """Begin an evaluation of the one output."""
        return LogitsEvaluation(self, metrics)

    def answers(
        self, model: "nn.Module", processor: Any, batch: "Batch", classes: tuple[str, ...], length: int = 0
    ) -> list[Answer]:
        """Return the one output."""
        return [*_finite_logits(model, batch[0])[:, 0].tolist()]

    def predictions(self, logits: NDArray[np.float32]) -> NDArray[Any]:
        """Return the one output."""
        return logits[:, 0]


class LogitsEvaluation:
    """Metrics of what is predicted from an output layer's logits; keeps predictions and labels, not logits."""

    def __init__(self, target: Classes | Scores, metrics: tuple[str, ...]) -> None:
        self._target, self._metrics = target, metrics
        self._predictions: list[NDArray[Any]] = []
        self._labels: list[NDArray[Any]] = []
        self._loss, self._bad = 0.0, 0

    def add(self, model: "nn.Module", inputs: "Mapping[str, Tensor]", labels: "Tensor", items: "Sequence[Any]") -> None:
        """Judge the model on one batch."""
        logits = model(**inputs).logits
        self._loss += self._target.loss(logits, labels).item() * len(labels)
        found = logits.float().cpu().numpy()
        self._bad += int(np.count_nonzero(~np.isfinite(found).all(axis=-1)))
        self._predictions.append(self._target.predictions(found))
        self._labels.append(labels.cpu().numpy())

    def scores(self) -> dict[str, float]:
        """Return metrics and loss.

        Raises:
            FloatingPointError: logits or loss are not finite, of which a metric would still make a number.
        """
        predictions, labels = np.concatenate(self._predictions), np.concatenate(self._labels)
        mean = self._loss / len(labels)
        if self._bad or not math.isfinite(mean):
            raise FloatingPointError(
                f"the model's logits are not finite on {self._bad} of {len(labels)} examples, its mean loss is {mean}: "
                "training has diverged; lower lr, head-lr or server-lr"
            )
        return {**{name: score(name, predictions, labels) for name in self._metrics}, "loss": mean}


def _finite_logits(model: "nn.Module", inputs: "Mapping[str, Tensor]") -> "Tensor":
    """Return a batch's logits, float64 ``(n, outputs)``, on the CPU."""
    logits: Tensor = model(**inputs).logits.cpu().double()
    if bad := int((~logits.isfinite().all(dim=-1)).sum()):
        raise FloatingPointError(
            f"the model's logits are not finite on {bad} of {len(logits)} examples: training has diverged; lower lr, "
            "head-lr or server-lr"
        )
    return logits


def score_bins(scores: NDArray[np.float32], bins: int) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Cut scores into quantile bins.

    The inner edges are the scores at the quantiles 1/bins, 2/bins, ... (a score that occurs, no interpolation); a bin
    holds its lower edge. Where many scores are equal, edges fall together and there are fewer bins.

    Returns:
        The bin of each score ``(n,)``, and the bins' names.

    Raises:
        ValueError: all scores are equal.

    >>> score_bins(np.array([0, 1, 2, 3], np.float32), 2)
    (array([0, 0, 1, 1]), ('score < 2', 'score >= 2'))
    """
    edges = np.quantile(scores, np.arange(1, bins) / bins, method="higher")
    edges = np.unique(edges[edges > scores.min()])
    if not len(edges):
        raise ValueError(f"the scores make no two bins: most of them are {scores.min():g}")
    at = [f"{edge:g}" for edge in edges]
    inner = [f"{low} <= score < {high}" for low, high in pairwise(at)]
    return np.searchsorted(edges, scores, side="right"), (f"score < {at[0]}", *inner, f"score >= {at[-1]}")
