"""Bulyan: Krum chooses, then each value is the mean of those nearest to the median (El Mhamdi et al. 2018, ICML)."""

import numpy as np
from numpy.typing import NDArray

from fedasym.aggregation.krum import bad_of, closest, distances
from fedasym.aggregation.robust_base import Float32, Float64, Gathered, by_value, middle


class Bulyan(Gathered):
    """Chooses K − 2 F replies by Krum, one after the other, and of each value the K − 4 F nearest to their median.

    Each client counts once. Cost: a distance for each pair of replies, and a sort per value.

    Args:
        bad: F, the most replies that may be wrong.
    """

    def __init__(self, bad: int) -> None:
        super().__init__(4 * bad + 3)
        self._bad = bad

    def combine(
        self, weights: list[int], replies: list[dict[str, Float32]]
    ) -> tuple[dict[str, Float32], dict[str, Float64]]:
        """Return the mean of the values that are kept.

        Raises:
            ValueError: fewer than 4 F + 3 replies.
        """
        apart, left, chosen = distances(replies), list(range(len(replies))), []
        for _ in range(len(replies) - 2 * self._bad):
            among = [[apart[i][j] for j in left] for i in left]
            chosen.append(left.pop(closest(among, self._bad)[0]))
        kept = len(chosen) - 2 * self._bad
        return by_value([replies[place] for place in sorted(chosen)], lambda ordered: _nearest(ordered, kept))


def _nearest(ordered: NDArray[np.float64], kept: int) -> NDArray[np.float64]:
    """Return the mean of the ``kept`` of each column of sorted values that lie nearest to its median."""
    nearest = np.argsort(np.abs(ordered - middle(ordered)), axis=0, kind="stable")[:kept]
    return np.asarray(np.take_along_axis(ordered, np.sort(nearest, axis=0), axis=0).mean(axis=0))


def aggregator(parameter: str) -> Bulyan:
    """Return a new Bulyan that bears this many bad replies.

    Raises:
        ValueError: the parameter is no number.
    """
    return Bulyan(bad_of(parameter))
