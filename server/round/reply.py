"""The checks of a client's reply: all that it claims, against what was sent and agreed."""

from typing import Any

from flwr.app import Message

from fedasym.methods import METHODS
from fedasym.methods.base import Matrices, pick, select
from fedasym.wire import records
from fedasym.wire.checks import idle, thawed
from fedasym.wire.codecs import codec_of
from fedasym.wire.contract import Contract

_ALONE = "let the ClientApp of this fedasym answer, and nothing between it and the server"
LONGEST_REASON = 10_000  # characters: a contract may differ in the name of every matrix
_LARGEST_METRIC = 1e30  # keeps weighted means of what clients report finite


class Rejection(ValueError):
    """A reply that does not count; the text says why."""


def check_reply(
    reply: Message, client: int, number: int, contract: Contract, held: Matrices
) -> tuple[int, dict[str, records.Float32], dict[str, Any]]:
    """Check everything a reply claims.

    Args:
        reply: as Flower delivered it.
        client: who was asked.
        number: the round.
        contract: what the client agreed to.
        held: what every party holds at the round's start.

    Returns:
        n_k (examples), the matrices, the client's metrics.

    Raises:
        Rejection: the first check that fails, with the value, the expectation and, last, what to do.
    """
    if reply.has_error():
        failed = records.clean(reply.error.reason, LONGEST_REASON)
        raise Rejection(f"its process failed: {failed}; look at the client's log")
    content = reply.content
    if "refusal" in content.config_records:
        said = content.config_records["refusal"].get("reason", "no reason given; look at the client's log")
        raise Rejection(f"it refused: {records.clean(said, LONGEST_REASON)}")
    about, method = records.about(content), METHODS[contract.method]
    schema = select(contract.schema, method.up(number))
    expected: dict[str, tuple[Any, str]] = {
        "contract": (contract.hash, f"it trained under another contract; {_ALONE}"),
        "round": (number, f"its reply is of another round; {_ALONE}"),
        "client": (client, f"it answered as another client; {_ALONE}"),
        "loaded": (
            records.digest(held),
            "it did not load what was broadcast; let the client load the matrices before it trains",
        ),
    }
    for key, (wanted, meaning) in expected.items():
        if about.get(key) != wanted:
            raise Rejection(f"{key}={about.get(key)!r}, expected {wanted!r}: {meaning}")
    if reason := thawed(contract, about):
        raise Rejection(reason)
    try:
        matrices = records.unpack(content, schema, codec_of(contract.codec))
    except ValueError as error:
        raise Rejection(str(error)) from error
    metrics = dict(content.metric_records.get("metrics", {}))
    for name, value in metrics.items():
        if not isinstance(value, (int, float)) or not abs(value) <= _LARGEST_METRIC:
            raise Rejection(
                f"its metric {name} is {value!r}, not a finite number of at most {_LARGEST_METRIC:g}; "
                "lower lr or head-lr"
            )
    weight = metrics.get("num-examples")
    if type(weight) is not int or weight < 1:
        raise Rejection(
            f"its weight num-examples={weight!r} is not a positive integer of examples; give the client examples, or "
            "leave it out"
        )
    loss = metrics.get("loss")
    if not isinstance(loss, float):
        raise Rejection(f"its training loss is {loss!r}, not a number; {_ALONE}")
    kept_out = metrics.get("kept-out")
    if any(name.endswith(("-before", "-after")) for name in metrics) and (type(kept_out) is not int or kept_out < 1):
        raise Rejection(
            f"it reports an evaluation on kept-out={kept_out!r} examples, expected a positive integer; {_ALONE}"
        )
    if reason := idle(method, pick(held, schema), matrices):
        raise Rejection(f"its {reason}")
    return weight, matrices, metrics
