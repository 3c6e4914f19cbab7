"""The rates of local training over the rounds of a run: a linear warm-up, then constant or along half a cosine.

Cosine: Loshchilov and Hutter 2017, arXiv 1608.03983, without restarts. Within a round the rates are constant.
"""

import math


def rate_factor(number: int, rounds: int, schedule: str, warmup: int) -> float:
    """Return the factor of both rates in a round, above 0 and at most 1; 1 in the first round after the warm-up.

    Args:
        number: the round, from 1.
        rounds: of the whole run; the constant schedule does not go by them.
        schedule: ``constant`` or ``cosine``.
        warmup: rounds before the rates are whole, fewer than ``rounds``.

    >>> [rate_factor(number, 4, "constant", 1) for number in (1, 2, 3, 4)]
    [0.5, 1.0, 1.0, 1.0]
    >>> [round(rate_factor(number, 4, "cosine", 1), 2) for number in (1, 2, 3, 4)]
    [0.5, 1.0, 0.75, 0.25]
    """
    if number <= warmup:
        return number / (warmup + 1)
    if schedule == "constant":
        return 1.0
    return 0.5 + 0.5 * math.cos(math.pi * (number - warmup - 1) / (rounds - warmup))
