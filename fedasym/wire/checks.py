"""What both sides look for after local training: the client before it replies, the server in the reply."""

from collections.abc import Mapping

import numpy as np

from fedasym.methods.base import Matrices, Method, letter_of
from fedasym.wire.contract import Contract

_FEW = 3  # of many names


def thawed(contract: Contract, found: Mapping[str, object]) -> str:
    """Say which of W and, where it never moves, A is no longer the contract's, and what to do; "" if neither.

    Args:
        contract: holds their fingerprints.
        found: the fingerprints after training, as ``base`` and ``A``.
    """
    names = {"base": "base model W", "A": "A"} if contract.factors in ("A", "B") else {"base": "base model W"}
    for key, name in names.items():
        if found.get(key) != (wanted := getattr(contract, key)):
            return (
                f"{key}={found.get(key)!r}, expected {wanted!r}: its {name} changed while training; train nothing but "
                "fedasym.trainable"
            )
    return ""


def idle(held: Matrices, trained: Matrices) -> str:
    """Say that training moved nothing at all, and what to do; "" if it moved something.

    Args:
        held: the matrices before training.
        trained: the same matrices after it.
    """
    if trained and all(np.array_equal(matrix, held[name]) for name, matrix in trained.items()):
        return "matrices equal what was sent: nothing trained; check lr, head-lr and the client's data"
    return ""


def unused(method: Method, mean: Matrices) -> str:
    """Say which matrices no client has moved in the first round, and what that means; "" if there are none.

    One client's data may leave a layer without a gradient (a text of one token has no attention to learn, an expert no
    token), so it is no proof about the model; all of them together are a reason to look.

    Args:
        method: knows which factor starts at zero.
        mean: of all replies of the first round.
    """
    zero = [name for name, matrix in mean.items() if letter_of(name) == method.zero and not np.any(matrix)]
    if not zero:
        return ""
    more = f" and {len(zero) - _FEW} more" if len(zero) > _FEW else ""
    return (
        f"no client has moved {', '.join(zero[:_FEW])}{more}: the model does not use these layers, or no client's data "
        "reach them; leave them out of targets, or send zeros"
    )
