"""The exactness meter for a round of any method (`fedasym.aggregation.exactness_meter`): which factors it compares.

Where the server has an optimizer, the update is the one handed to it.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from fedasym.aggregation.exactness_meter import Float64, Matrices, Pair, mismatch_common, mismatch_pairs, mismatch_plain
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

    A method that folds relays every client's factors, and each party adds up their products itself: nothing is averaged
    on the way, so there is nothing to measure unless a codec changes the relay. What each party's shift loses to
    float32, 1e-8 to 1e-7 of the update and slowly growing, is not seen here. For full fine-tuning the matrices are
    compared as they are, relative to their mean: float32 rounds W, not the change.

    Args:
        method: what trained, and how it was put together.
        number: the round.
        held: what all parties held while training, frozen factors included.
        mean64: the mean of what came up, float64.
        replies: (n_k, matrices) of every client in the order of the stack; needed where A and B both train.
        sent: what is broadcast next.
        layers: the adapted layers.

    Returns:
        The relative mismatch; None where there is none to measure: a personal method has no common model, and a relay
        with the bits of the replies is exact by construction.
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
        relayed = unstack(dict(sent), len(replies))
        pairs = zip(relayed, (reply for _, reply in replies), strict=True)
        if all(np.array_equal(own[name], reply[name]) for own, reply in pairs for name in own):
            return None
        broadcast = _weighted([(weight, own) for (weight, _), own in zip(replies, relayed, strict=True)])
    return mismatch_pairs([(_pairs(layer, clients), _pairs(layer, broadcast)) for layer in layers])


def _weighted(replies: Replies) -> list[tuple[float, Matrices]]:
    return list(zip(share([weight for weight, _ in replies]), (reply for _, reply in replies), strict=True))


def _pairs(layer: str, clients: Sequence[tuple[float, Mapping[str, NDArray[np.floating]]]]) -> list[Pair]:
    return [(w, matrices[f"{layer}.B"], matrices[f"{layer}.A"]) for w, matrices in clients]
