"""The coordinate-wise median, each client counting once (Yin et al. 2018, arXiv 1803.01498)."""

from fedasym.aggregation.robust_base import Float32, Float64, Gathered, by_value, middle
from fedasym.plugins import without


class Median(Gathered):
    """Takes the median of every value by itself; right while fewer than half of the clients are not.

    Cost: one sort of K replies per value.

    >>> import numpy as np
    >>> rule = Median()
    >>> for value in (1.0, 2.0, 900.0):
    ...     rule.add(1, {"B": np.array([value], np.float32)})
    >>> rule.result()[0]["B"].tolist()
    [2.0]
    """

    def combine(
        self, weights: list[int], replies: list[dict[str, Float32]]
    ) -> tuple[dict[str, Float32], dict[str, Float64]]:
        """Return the median of each value; of an even number of replies the mean of the two in the middle."""
        return by_value(replies, middle)


def aggregator(parameter: str) -> Median:
    """Return a new median."""
    without(parameter)
    return Median()
