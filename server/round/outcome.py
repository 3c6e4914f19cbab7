"""What a round comes to: the mean and the server's optimizer, or what the method makes of the replies; the meter."""

from dataclasses import dataclass, replace

from fedasym.aggregation.server_optimizer import server_step
from fedasym.methods import METHODS
from fedasym.methods.base import Matrices, pick, select
from fedasym.methods.round_exactness import mismatch_of_round
from fedasym.runs.checkpoint import State
from fedasym.settings import Settings
from fedasym.wire import records
from fedasym.wire.codecs import codec_of
from fedasym.wire.contract import Contract, frame_of
from server.round.run import Round


@dataclass(frozen=True)
class Outcome:
    """The state that the next round starts from, and the exactness meter's reading.

    ``mismatch`` is None where there is nothing to measure (`fedasym.methods.round_exactness.mismatch_of_round`), or
    where the rule of averaging is not the mean: its result is then not meant to be the mean of the updates.
    """

    state: State
    mismatch: float | None


def conclude(contract: Contract, state: State, result: Round, frozen: Matrices, settings: Settings) -> Outcome:
    """Turn a round's replies into what every party holds next.

    Args:
        contract: names and shapes.
        state: what the round started from.
        result: mean and replies.
        frozen: the factors that never move, for the meter.
        settings: method and server optimizer.

    Raises:
        ValueError: the server's optimizer left a value that is not finite.
    """
    method, held = METHODS[settings.method], state.matrices
    sent, optimizer = result.mean, state.optimizer
    weights: tuple[int, ...] = ()
    if method.fold:
        sent = method.stack(result.mean, result.replies)
        weights = tuple(weight for weight, _ in result.replies)
    elif method.merge:
        sent = method.merge(held, result.mean, result.replies)
    codec, following = codec_of(settings.codec), result.number + 1
    schema = method.sent_schema(contract.schema, following, len(weights))
    if sent and weights:  # who holds more than what travels goes on with what the others will hear of it
        sent = records.heard(pick(sent, schema), schema, codec)
    after = method.receive(held, sent, weights, following, frame_of(settings))
    mismatch = None
    if settings.aggregation == "exact":
        mismatch = mismatch_of_round(
            method, result.number, {**frozen, **held}, result.mean64, result.replies, sent, contract.layers
        )
    if settings.server_optimizer != "none":
        moving = select(contract.schema, method.up(result.number))
        moved, buffers = server_step(pick(held, moving), pick(after, moving), optimizer, settings)
        optimizer = {**optimizer, **buffers}  # those of a factor that did not move wait for its next round
        after = {**after, **moved}
    if not weights:
        after = {**after, **records.heard(pick(after, schema), schema, codec)}
    records.check(after, method.held_schema(contract.schema))
    stack = {name: matrix for name, matrix in sent.items() if weights and name not in after}
    return Outcome(replace(state, matrices=after, optimizer=optimizer, stack=stack, weights=weights), mismatch)
