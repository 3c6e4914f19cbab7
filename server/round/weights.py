"""What each client may weigh in the mean: nobody buys it with a number that it chooses."""

import statistics
from collections.abc import Mapping
from typing import Protocol

from server.round.reply import Rejection

MOST_EXAMPLES = (1 << 31) - 1  # of one client; a million of them stay below what the exact mean can hold


class Weights(Protocol):
    """Says what a reply weighs, by what is known of its client before it came; never by other replies."""

    def of(self, client: int, claimed: int) -> int:
        """Return the weight of a client whose reply claims so many examples.

        Raises:
            Rejection: it cannot have as many.
        """


class KnownSizes:
    """Where the data are split: every client's size is known.

    Args:
        sizes: examples that each client trains on.
        uniform: whether each weighs 1.
    """

    def __init__(self, sizes: Mapping[int, int], uniform: bool) -> None:
        self._sizes, self._uniform = sizes, uniform

    def of(self, client: int, claimed: int) -> int:
        """Return the client's size.

        Raises:
            Rejection: it claims another.
        """
        if claimed != self._sizes[client]:
            raise Rejection(
                f"its weight num-examples={claimed} is not what the split gives it, {self._sizes[client]} examples; "
                "let the ClientApp of this fedasym answer"
            )
        return 1 if self._uniform else claimed


class StatedSizes:
    """Where sites have data of their own: what they stated when they agreed, before anybody trained.

    Args:
        stated: examples by client.
        most: times the (lower) median of them that one may weigh; 0: no bound but `MOST_EXAMPLES`.
        uniform: whether each weighs 1.
    """

    def __init__(self, stated: Mapping[int, int], most: float, uniform: bool) -> None:
        self._median = statistics.median_low(stated.values())
        self._most, self._uniform = most, uniform

    def of(self, client: int, claimed: int) -> int:
        """Return the claimed weight if it is within the bound.

        Raises:
            Rejection: it is not.
        """
        if claimed > MOST_EXAMPLES:
            raise Rejection(f"its weight num-examples={claimed} is above {MOST_EXAMPLES}, the most that counts")
        if self._most and not self._uniform and claimed > self._most * self._median:
            raise Rejection(
                f"its weight num-examples={claimed} is above max-weight={self._most:g} times the median of what the "
                f"sites stated, {self._median}; if it has as many, raise max-weight, or set weights=uniform"
            )
        return 1 if self._uniform else claimed
