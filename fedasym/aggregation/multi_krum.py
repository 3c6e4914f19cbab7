"""Multi-Krum: the mean of the K − F replies that Krum likes best (Blanchard et al. 2017, NeurIPS)."""

from fedasym.aggregation.krum import Krum, bad_of


def aggregator(parameter: str) -> Krum:
    """Return a new Multi-Krum that bears this many bad replies.

    Raises:
        ValueError: the parameter is no number.
    """
    return Krum(bad_of(parameter), 0)
