"""The exact weighted mean of float32 matrices, streamed.

The result is the float32 nearest to the true rational ``Σ n_k B_k / Σ n_k`` (ties to even), whatever
the order in which replies arrive, in memory that does not depend on how many there are.

How: `fedasym.aggregation.exact_sum`.

FedAvg's mean: McMahan et al. 2017 (arXiv 1602.05629). For B-only adapters it is also the exact mean of
the updates, since ``Σ w_k (B_k A) = (Σ w_k B_k) A``.
"""

import math
from collections.abc import Mapping
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from fedasym.aggregation.exact_sum import ExactSum, Float32, Float64
from fedasym.aggregation.input_checks import require_alike, require_weight
from fedasym.plugins import without

_Float = TypeVar("_Float", np.float32, np.float64)


class ExactMean:
    """Accumulates weighted float32 matrices; `mean` is the nearest float32 to the rational mean.

    >>> total = ExactMean()
    >>> total.add(1, {"B": np.array([[1.0]], np.float32)})
    >>> total.add(2, {"B": np.array([[4.0]], np.float32)})
    >>> total.mean()["B"].tolist()
    [[3.0]]
    """

    single_replies = False
    least = 1

    def __init__(self) -> None:
        self.total_weight = 0  # examples
        self.count = 0  # replies
        self._sum: ExactSum | None = None  # of all matrices, one after another
        self._shapes: dict[str, tuple[int, ...]] = {}

    def begin(self, held: Mapping[str, Float32]) -> None:
        """Hear what the clients held at the start; the mean does not go by it."""

    def add(self, weight: int, matrices: Mapping[str, Float32]) -> None:
        """Add one reply. Nothing is added unless every matrix passes.

        Args:
            weight: n_k, a positive integer (examples).
            matrices: float32 arrays by name; the first call fixes names and shapes.

        Raises:
            TypeError: a weight that is not an integer, or a matrix that is not float32.
            ValueError: a weight below 1 or a total of 2^53 or more, no matrices, names or shapes that differ from
                the first reply's, or a value that is not finite.
        """
        weight = require_weight(weight)
        if self.total_weight + weight >= 1 << 53:
            raise ValueError(f"weights add up to {self.total_weight + weight}; keep their sum below 2**53")
        require_alike(matrices, self._shapes)
        values = [np.ascontiguousarray(matrices[name]).reshape(-1) for name in self._shapes or matrices]
        if self._sum is None:
            self._shapes = {name: matrix.shape for name, matrix in matrices.items()}
            self._sum = ExactSum(sum(map(len, values)))
        self._sum.add(weight, values[0] if len(values) == 1 else np.concatenate(values))
        self.total_weight += weight
        self.count += 1

    def merge(self, other: "ExactMean") -> None:
        """Add all that another sum holds, as if its replies had come here: any tree of sums has the same mean.

        Raises:
            ValueError: a total weight of 2^53 or more, or other names or shapes. Nothing is added then.
        """
        if self.total_weight + other.total_weight >= 1 << 53:
            raise ValueError(f"weights add up to {self.total_weight + other.total_weight}; keep their sum below 2**53")
        if other._sum is None:
            return
        if self._sum is None:
            self._shapes, self._sum = dict(other._shapes), ExactSum(other._sum.size)
        elif self._shapes != other._shapes:
            raise ValueError(f"the sums hold other matrices: {self._shapes} here, {other._shapes} there")
        self._sum.merge(other._sum)
        self.total_weight += other.total_weight
        self.count += other.count

    def mean(self) -> dict[str, Float32]:
        """Return the nearest float32 to ``Σ n_k B_k / Σ n_k`` for every matrix.

        Raises:
            ValueError: nothing was added.
        """
        return self._by_name(self._some().divided_by(self.total_weight))

    def mean64(self) -> dict[str, Float64]:
        """Return the mean in float64, off by a few 1e-16 of its value, for meters of the float32 one."""
        return self._by_name(self._some().divided_by_64(self.total_weight))

    def result(self) -> tuple[dict[str, Float32], dict[str, Float64]]:
        """Return `mean` and `mean64`."""
        return self.mean(), self.mean64()

    def _some(self) -> ExactSum:
        if self._sum is None:
            raise ValueError("the mean of no replies does not exist; add at least one")
        return self._sum

    def _by_name(self, values: NDArray[_Float]) -> dict[str, NDArray[_Float]]:
        """Cut one vector into the matrices that were added."""
        cuts = np.cumsum([math.prod(shape) for shape in self._shapes.values()])
        parts = np.split(values, cuts[:-1])
        return {name: part.reshape(shape) for (name, shape), part in zip(self._shapes.items(), parts, strict=True)}


def aggregator(parameter: str) -> ExactMean:
    """Return a new exact mean."""
    without(parameter)
    return ExactMean()
