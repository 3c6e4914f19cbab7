"""What a rule of averaging is: replies go in one at a time, one set of matrices comes out."""

from collections.abc import Mapping
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fedasym.plugins import plugin

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]


class Aggregator(Protocol):
    """A rule of averaging. Its file has a function ``aggregator(parameter)`` that makes a new one for each round.

    Attributes:
        single_replies: whether it must hold every reply until the end, so that its memory grows with the clients.
        least: replies without which it has no result.
    """

    single_replies: bool
    least: int

    def begin(self, held: Mapping[str, Float32]) -> None:
        """Hear what every client held at the start of the round, of the matrices that replies bring."""

    def add(self, weight: int, matrices: Mapping[str, Float32]) -> None:
        """Add one reply, with its number of examples n_k.

        Raises:
            ValueError: a reply that does not fit the others; nothing of it is added.
        """

    def result(self) -> tuple[dict[str, Float32], dict[str, Float64]]:
        """Return what is broadcast, float32, and the same before its last rounding, by which exactness is measured.

        Raises:
            ValueError: nothing was added.
        """


def aggregator_of(named: str) -> Aggregator:
    """Return a new aggregator of the rule that the setting ``aggregation`` names.

    Raises:
        ValueError: there is no such rule, or it does not take this parameter.
    """
    found: Aggregator = plugin("fedasym.aggregation", "aggregator", named, "aggregation")
    return found
