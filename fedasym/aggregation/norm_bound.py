"""The exact mean of changes that are no longer than a multiple of their median (Sun et al. 2019, arXiv 1911.07963)."""

import statistics

import numpy as np

from fedasym.aggregation.exact import ExactMean
from fedasym.aggregation.robust_base import Float32, Float64, Gathered, distance


class NormBound(Gathered):
    """Shortens a change that is longer than ``most`` times the median length, and takes the exact mean.

    Where none is, the result has the bits of `ExactMean`. Cost: one pass per reply beyond it.

    Args:
        most: times the median of the Frobenius norms over all matrices.
    """

    def __init__(self, most: float) -> None:
        super().__init__()
        self._most = most

    def combine(
        self, weights: list[int], replies: list[dict[str, Float32]]
    ) -> tuple[dict[str, Float32], dict[str, Float64]]:
        """Return the exact mean of what is left."""
        held = self.held or {name: np.zeros_like(matrix) for name, matrix in replies[0].items()}
        lengths = [distance(reply, held) ** 0.5 for reply in replies]
        longest = self._most * statistics.median(lengths)
        mean = ExactMean()
        for weight, reply, length in zip(weights, replies, lengths, strict=True):
            shorter = reply
            if length > longest:
                share = longest / length
                shorter = {
                    name: (held[name] + share * (matrix.astype(np.float64) - held[name])).astype(np.float32)
                    for name, matrix in reply.items()
                }
            mean.add(weight, shorter)
        return mean.result()


def aggregator(parameter: str) -> NormBound:
    """Return a new mean of bounded changes.

    Raises:
        ValueError: the parameter is no positive number.
    """
    try:
        most = float(parameter)
    except ValueError:
        most = 0.0
    if not 0.0 < most < float("inf"):
        raise ValueError(f"{parameter!r} is no positive number, the most times the median length; 2, say")
    return NormBound(most)
