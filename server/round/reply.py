"""The checks of a client's reply: all that it claims, against what was sent and agreed."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from flwr.app import ConfigRecord, Message, MetricRecord

from fedasym.methods import METHODS
from fedasym.methods.base import Matrices, pick, select
from fedasym.wire import records
from fedasym.wire.checks import idle, thawed
from fedasym.wire.codecs import codec_of
from fedasym.wire.contract import Contract
from server.round.inbox import LONGEST_TEXT

_ALONE = "let the ClientApp of this fedasym answer, and nothing between it and the server"
_LARGEST_METRIC = 1e30  # keeps weighted means of what clients report finite


class Rejection(ValueError):
    """A reply that does not count; the text says why."""


@dataclass(frozen=True)
class Checked:
    """What a reply that counts brings.

    Attributes:
        weight: n_k (examples), as it claims.
        matrices: float32, those of the contract that travel.
        metrics: of the client, by name.
        norm: Frobenius norm of its change over all matrices.
    """

    weight: int
    matrices: dict[str, records.Float32]
    metrics: dict[str, Any]
    norm: float


def check_reply(
    reply: Message, client: int, number: int, contract: Contract, held: Matrices, loaded: str, max_value: float
) -> Checked:
    """Check everything a reply claims.

    Args:
        reply: as Flower delivered it.
        client: who was asked.
        number: the round.
        contract: what the client agreed to.
        held: what every party holds at the round's start.
        loaded: its digest.
        max_value: the largest magnitude of a value.

    Raises:
        Rejection: the first check that fails, with the value, the expectation and, last, what to do.
    """
    if reply.has_error():
        failed = records.clean(reply.error.reason, LONGEST_TEXT)
        raise Rejection(f"its process failed: {failed}; look at the client's log")
    content = reply.content
    refusal = content.get("refusal")
    if isinstance(refusal, ConfigRecord):
        said = refusal.get("reason", "no reason given; look at the client's log")
        raise Rejection(f"it refused: {records.clean(said, LONGEST_TEXT)}")
    about, method = records.about(content), METHODS[contract.method]
    schema = select(contract.schema, method.up(number))
    expected: dict[str, tuple[Any, str]] = {
        "contract": (contract.hash, f"it trained under another contract; {_ALONE}"),
        "round": (number, f"its reply is of another round; {_ALONE}"),
        "client": (client, f"it answered as another client; {_ALONE}"),
        "loaded": (
            loaded,
            "it did not load what was broadcast; let the client load the matrices before it trains",
        ),
    }
    for key, (wanted, meaning) in expected.items():
        found = about.get(key)
        if type(found) is not type(wanted) or found != wanted:  # True and 1.0 are no round 1
            said = records.clean(repr(found), 100)
            raise Rejection(f"{key}={said}, expected {wanted!r}: {meaning}")
    if reason := thawed(contract, about):
        raise Rejection(reason)
    try:
        matrices = records.unpack(content, schema, codec_of(contract.codec))
    except ValueError as error:
        raise Rejection(str(error)) from error
    for name, matrix in matrices.items():
        if (largest := float(max(matrix.max(initial=0.0), -matrix.min(initial=0.0)))) > max_value:
            raise Rejection(
                f"its {name} holds a value of magnitude {largest:.3g}, max-value={max_value:g}; lower lr or head-lr, "
                "or raise max-value if the model needs it"
            )
    reported = content.get("metrics")
    metrics = dict(reported) if isinstance(reported, MetricRecord) else {}
    for name, value in metrics.items():
        if not isinstance(value, (int, float)) or not abs(value) <= _LARGEST_METRIC:
            raise Rejection(
                f"its metric {records.clean(name, 100)} is {records.clean(repr(value), 100)}, not a finite number of "
                f"at most {_LARGEST_METRIC:g}; "
                "lower lr or head-lr"
            )
    weight = metrics.get("num-examples")
    if type(weight) is not int or weight < 1:
        raise Rejection(
            f"its weight num-examples={records.clean(repr(weight), 100)} is not a positive integer of examples; give "
            "the client examples, or leave it out"
        )
    loss = metrics.get("loss")
    if not isinstance(loss, float):
        raise Rejection(f"its training loss is {records.clean(repr(loss), 100)}, not a number; {_ALONE}")
    kept_out = metrics.get("kept-out")
    if any(name.endswith(("-before", "-after")) for name in metrics) and (type(kept_out) is not int or kept_out < 1):
        raise Rejection(
            f"it reports an evaluation on kept-out={records.clean(repr(kept_out), 100)} examples, expected a "
            f"positive integer; {_ALONE}"
        )
    before = pick(held, schema)
    if reason := idle(before, matrices):
        raise Rejection(f"its {reason}")
    changes = (np.subtract(matrix, before[name], dtype=np.float64).ravel() for name, matrix in matrices.items())
    return Checked(weight, matrices, metrics, math.sqrt(math.fsum(float(change @ change) for change in changes)))
