"""What both sides look for after local training: the client before it replies, the server in the reply."""

from collections.abc import Mapping

import numpy as np

from fedasym.methods.base import Matrices, Method, letter_of
from fedasym.wire.contract import Contract


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


def idle(method: Method, held: Matrices, trained: Matrices) -> str:
    """Say what training did not move, and what to do; "" if there is nothing to say.

    Args:
        method: knows which factor starts at zero.
        held: the matrices before training.
        trained: the same matrices after it.
    """
    if trained and all(np.array_equal(matrix, held[name]) for name, matrix in trained.items()):
        return "matrices equal what was sent: nothing trained; check lr, head-lr and the client's data"
    zero = [name for name, matrix in trained.items() if letter_of(name) == method.zero and not np.any(matrix)]
    if zero:
        return (
            f"{method.zero} is still zero after training in {', '.join(zero)}: the model does not use these layers; "
            "leave them out of targets"
        )
    return ""
