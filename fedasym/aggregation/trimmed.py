"""The coordinate-wise trimmed mean, each client counting once (Yin et al. 2018, arXiv 1803.01498)."""

from fractions import Fraction

from fedasym.aggregation.robust_base import Float32, Float64, Gathered, by_value


class Trimmed(Gathered):
    """Leaves out the largest and the smallest of every value and takes the mean of the others.

    Cost: one sort of K replies per value.

    Args:
        share: of the replies that is left out at each end, rounded down; below a half.
    """

    def __init__(self, share: Fraction) -> None:
        super().__init__()
        self._share = share

    def combine(
        self, weights: list[int], replies: list[dict[str, Float32]]
    ) -> tuple[dict[str, Float32], dict[str, Float64]]:
        """Return the trimmed mean of each value."""
        cut = int(self._share * len(replies))
        return by_value(replies, lambda ordered: ordered[cut : len(ordered) - cut].mean(axis=0))


def aggregator(parameter: str) -> Trimmed:
    """Return a new trimmed mean that leaves out this share at each end.

    Raises:
        ValueError: it is no share below a half.
    """
    try:
        share = Fraction(parameter)
    except (ValueError, ZeroDivisionError):
        share = Fraction(-1)
    if not 0 < share < Fraction(1, 2):
        raise ValueError(f"{parameter!r} is no share between 0 and 0.5, of the replies left out at each end; 0.2, say")
    return Trimmed(share)
