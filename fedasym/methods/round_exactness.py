"""The exactness meter for a round of any method (`fedasym.aggregation.exactness`): which factors it compares.

Where the server has an optimizer, the update is the one handed to it.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from fedasym.aggregation.exactness import Float64, Matrices, Pair, mismatch_common, mismatch_pairs, mismatch_plain
from fedasym.methods.base import Method, share, unstack

Replies = Sequence[tuple[int, Matrices]]


def mismatch_of_round(
    method: Method,
    number: int,
    held: Matrices,
    mean64: Mapping[str, Float64],
    replies: Replies,
    sent: Matrices,
    layers: Sequence[str],
) -> float | None:
    """Measure a round of any method.

    For a method that folds, U is the sum over the stack that travels down, so this is of the relay alone; float32's
    rounding of each party's shift, 1e-8 to 1e-7 of the update and slowly growing, comes on top. For full fine-tuning
    the matrices are compared as they are, relative to their mean: float32 rounds W, not the change.

    Args:
        method: what trained, and how it was put together.
        number: the round.
        held: what all parties held while training, frozen factors included.
        mean64: the mean of what came up, float64.
        replies: (n_k, matrices) of every client in the order of the stack; needed where A and B both train.
        sent: what is broadcast next.
        layers: the adapted layers.

    Returns:
        The relative mismatch; None for a personal method, which has no common model.
    """
    if method.personal:
        return None
    letters = method.up(number)
    if letters == "W":
        return mismatch_plain(mean64, sent)
    if method.merge is None and letters in ("A", "B"):
        fixed = {layer: held[f"{layer}.{'A' if letters == 'B' else 'B'}"] for layer in layers}
        return mismatch_common(letters, sent, mean64, fixed)
    if letters == "B":
        clients: list[tuple[float, Mapping[str, NDArray[np.floating]]]] = [(1.0, {**held, **mean64})]
    else:
        clients = _weighted(replies)
    broadcast = [(1.0, sent)]
    if method.fold:
        weights = [weight for weight, _ in replies]
        broadcast = _weighted(list(zip(weights, unstack(dict(sent), len(weights)), strict=True)))
    return mismatch_pairs([(_pairs(layer, clients), _pairs(layer, broadcast)) for layer in layers])


def _weighted(replies: Replies) -> list[tuple[float, Matrices]]:
    return list(zip(share([weight for weight, _ in replies]), (reply for _, reply in replies), strict=True))


def _pairs(layer: str, clients: Sequence[tuple[float, Mapping[str, NDArray[np.floating]]]]) -> list[Pair]:
    return [(w, matrices[f"{layer}.B"], matrices[f"{layer}.A"]) for w, matrices in clients]
