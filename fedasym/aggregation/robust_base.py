"""What the robust rules share: they hold a round's replies until all are there, in an order that is not of arrival."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from fedasym.aggregation.input_checks import require_alike, require_weight

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Matrices = Mapping[str, Float32]
Rule = Callable[[Float64], Float64]


class Gathered(ABC):
    """Holds replies; a rule says in `combine` what becomes of them.

    Memory: all replies of a round, 4 bytes a value, and 8 more a value and reply while they are combined.

    Args:
        least: replies that the rule needs.
    """

    single_replies = True

    def __init__(self, least: int = 1) -> None:
        self.least = least
        self.held: dict[str, Float32] = {}
        self._replies: list[tuple[int, dict[str, Float32]]] = []

    def begin(self, held: Matrices) -> None:
        """Take what every client held at the start of the round."""
        self.held = dict(held)

    def add(self, weight: int, matrices: Matrices) -> None:
        """Keep one reply.

        Raises:
            TypeError, ValueError: as `ExactMean.add`.
        """
        require_weight(weight)
        first = self._replies[0][1] if self._replies else {}
        require_alike(matrices, {name: matrix.shape for name, matrix in first.items()})
        self._replies.append((int(weight), {name: np.array(matrix, np.float32) for name, matrix in matrices.items()}))

    def result(self) -> tuple[dict[str, Float32], dict[str, Float64]]:
        """Return what the rule makes of the replies, in float32 and before that rounding.

        Raises:
            ValueError: fewer replies than the rule needs.
        """
        if len(self._replies) < self.least:
            raise ValueError(f"{len(self._replies)} replies, and needs {self.least} or more")
        replies = sorted(self._replies, key=lambda reply: (reply[0], _digest(reply[1])))
        return self.combine([weight for weight, _ in replies], [matrices for _, matrices in replies])

    @abstractmethod
    def combine(
        self, weights: list[int], replies: list[dict[str, Float32]]
    ) -> tuple[dict[str, Float32], dict[str, Float64]]:
        """Return what becomes of the replies, float32, and the same before its last rounding; theirs is a fixed order.

        Args:
            weights: n_k of each.
            replies: matrices by name, of the same names and shapes; as many as the rule needs, or more.
        """


def by_value(replies: list[dict[str, Float32]], rule: Rule) -> tuple[dict[str, Float32], dict[str, Float64]]:
    """Apply a rule to each value by itself.

    Args:
        replies: matrices by name.
        rule: takes ``(replies, values)`` float64, sorted along the first axis, and returns ``(values,)``.
    """
    exact = {}
    for name, matrix in replies[0].items():
        stacked = np.sort(np.stack([reply[name].reshape(-1) for reply in replies]).astype(np.float64), axis=0)
        exact[name] = rule(stacked).reshape(matrix.shape)
    return {name: matrix.astype(np.float32) for name, matrix in exact.items()}, exact


def middle(ordered: Float64) -> Float64:
    """Return the median of each column of sorted values; of an even number of them the mean of the middle two."""
    count = len(ordered)
    return np.asarray((ordered[(count - 1) // 2] + ordered[count // 2]) / 2.0)


def distance(one: Matrices, other: Matrices) -> float:
    """Return the squared Frobenius distance of two replies over all matrices."""
    return float(sum(np.square(one[name].astype(np.float64) - other[name]).sum() for name in sorted(one)))


def _digest(matrices: Matrices) -> bytes:
    state = hashlib.blake2b(digest_size=16)
    for name in sorted(matrices):
        state.update(np.ascontiguousarray(matrices[name]).data)
    return state.digest()
