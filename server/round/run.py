"""One round: sample, ask, check each reply, stream the valid ones into the exact mean.

Nothing is repaired in silence: a reply that fails a check is left out, counted and named with its reason; the mean
moves only by valid replies.
"""

import itertools
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, RecordDict
from flwr.serverapp import Grid
from numpy.typing import NDArray

from fedasym.aggregation.base import aggregator_of
from fedasym.methods import METHODS
from fedasym.methods.base import Matrices, letter_of, pick, select, values
from fedasym.ops.progress import Tell, to_nobody
from fedasym.rng import generator
from fedasym.settings import Settings
from fedasym.wire import records
from fedasym.wire.checks import unused
from fedasym.wire.codecs import codec_of
from fedasym.wire.contract import Contract
from server.failure import FederationError
from server.round.inbox import LONGEST_TEXT, Bound, Delivery, Inbox, bound_of
from server.round.reply import Rejection, check_reply
from server.round.weights import Weights

_MESSAGES, _TOGETHER, _MOST_BYTES = 64, 8, 1 << 26  # of a round at least; clients and bytes of values of one at most
_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.2, 2.0  # seconds between two looks for replies
_LEAST_TTL = 600.0  # seconds that a message lives at least: the clocks of server and sites may differ


class TooFewReplies(FederationError):
    """A round had fewer than ``min-valid`` valid replies.

    Attributes:
        result: what the round gathered.
    """

    def __init__(self, text: str, result: "Round") -> None:
        super().__init__(text)
        self.result = result

    def __reduce__(self) -> tuple[type[FederationError], tuple[str]]:
        """Let another process, such as a comparison's, have the text alone."""
        return FederationError, (str(self),)


class Asked(NamedTuple):
    """Whom a message asks: a node, for the work of some clients."""

    node: int
    clients: tuple[int, ...]


@dataclass
class Round:
    """What a round gathered. Bytes are summed over clients."""

    number: int
    asked: list[int]
    rejected: dict[int, str] = field(default_factory=dict)  # reason by client
    unanswered: dict[str, Asked] = field(default_factory=dict)  # by id of a message without a reply in time
    warnings: list[str] = field(default_factory=list)  # what was left out of a client that does count
    replied: set[int] = field(default_factory=set)  # whose reply came in time, whatever it was worth
    metrics: dict[int, dict[str, float]] = field(default_factory=dict)  # of valid replies, by client
    norms: dict[int, float] = field(default_factory=dict)  # of their changes
    payload_down: int = 0
    payload_up: int = 0
    message_down: int = 0
    message_up: int = 0
    mean: Matrices = field(default_factory=dict)
    mean64: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    replies: list[tuple[int, Matrices]] = field(default_factory=list)  # n_k and matrices, if A and B both travel

    def count_bytes(self, other: "Round") -> None:
        """Add the bytes of another attempt at this round."""
        for name in ("payload_down", "payload_up", "message_down", "message_up"):
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def train_loss(self) -> float:
        """Mean of the clients' mean losses, weighted by examples."""
        return self.weighted("loss", "num-examples")

    def weighted(self, name: str, weight: str) -> float:
        """Mean of a client metric, summed exactly in the order of the clients' numbers."""
        rows = [row for _, row in sorted(self.metrics.items()) if name in row]
        total = math.fsum(row[weight] for row in rows)
        return math.fsum(row[name] * row[weight] for row in rows) / total


@dataclass(frozen=True)
class Opening:
    """What opens a round.

    Attributes:
        number: the round, from 1.
        run: the run's name, under which clients keep what is theirs.
        held: what every party holds at its start.
        stack: the clients' factors of the round before, where the method relays them; else empty.
        weights: n_k of the stack's clients.
    """

    number: int
    run: str
    held: Matrices
    stack: Matrices
    weights: tuple[int, ...]


def name_of(client: int, settings: Settings) -> str:
    """Return what a client is called: the site's name, or its number in the split."""
    return f"site {settings.site_names[client]}" if settings.sites else f"client {client}"


def sample_clients(settings: Settings, number: int, here: Sequence[int]) -> list[int]:
    """Choose the clients of a round, of those that are there, from (seed, round), sorted."""
    present, count = sorted(here), settings.asked_of(len(here))
    if count == len(present):
        return present
    chosen = generator(settings.seed, "sample", number).choice(len(present), count, replace=False)
    return sorted(present[place] for place in chosen)


def run_round(
    grid: Grid,
    inbox: Inbox,
    nodes: Mapping[int, int],
    contract: Contract,
    opening: Opening,
    settings: Settings,
    weights: Weights,
    tell: Tell = to_nobody,
    any_client: bool = False,
) -> Round:
    """Ask the sampled clients to train and average what they return.

    Args:
        grid: Flower's grid.
        inbox: of that grid.
        nodes: node id of each client that is there.
        contract: what every message refers to.
        opening: what opens the round.
        settings: sampling, timeout, quorum, bounds.
        weights: what each client may weigh.
        tell: told after every reply how many clients are done with, of how many.
        any_client: whether every node can do every client's work, so that a message may name several.

    Raises:
        TooFewReplies: fewer valid replies than ``min-valid`` or than the rule of averaging needs; names every rejected
            client with its reason.
        FederationError: the rule of averaging has no result, or, where the clients are shares of a split, one cannot
            write to the run's own disk.
    """
    number, method = opening.number, METHODS[settings.method]
    result = Round(number, sample_clients(settings, number, [*nodes]))
    lifetime = max(2 * settings.round_timeout, _LEAST_TTL)
    groups = _groups(result.asked, nodes, contract, settings, number) if any_client else _each(result.asked, nodes)
    pending = _send(grid, nodes, contract, opening, groups, False, lifetime, result, settings)
    total = aggregator_of(settings.aggregation)
    schema = select(contract.schema, method.up(number))
    total.begin(pick(opening.held, schema))
    bound = bound_of(schema, codec_of(contract.codec)).times(max(len(group.clients) for group in groups))
    loaded = records.digest(opening.held)
    kept: dict[int, tuple[int, Matrices]] = {}
    behind: set[int] = set()
    answered: set[str] = set()
    deliveries = _deliveries(inbox, pending, answered, bound, settings.round_timeout)
    parts = (part for delivery in deliveries for part in _parts(delivery, pending[delivery.name].clients))
    for client, reply, fault in parts:
        if reply is not None and not settings.sites and (refusal := _refusal(reply)).get("ends") is True:
            raise FederationError(
                f"round {number}, client {client}: {records.clean(refusal.get('reason'), LONGEST_TEXT)}"
            )
        result.replied.add(client)
        if client not in behind and reply is not None and _is_behind(reply):
            behind.add(client)
            result.message_up += records.message_bytes(reply)
            pending.update(
                _send(grid, nodes, contract, opening, _each([client], nodes), True, lifetime, result, settings)
            )
            continue
        if client in result.metrics or client in result.rejected:
            result.warnings.append(
                f"client {client} was seen twice in this round; its later reply does not count; look for a second node "
                "that answers for it"
            )
            continue
        try:
            if reply is None:
                raise Rejection(f"{fault}; look at what that site sends")
            result.message_up += records.message_bytes(reply)
            checked = check_reply(reply, client, number, contract, opening.held, loaded, settings.max_value)
            weight = weights.of(client, checked.weight)
            if checked.matrices:
                total.add(weight, checked.matrices)
        except MemoryError:
            raise
        except Exception as error:  # whatever else a reply makes of our code is its client's affair too
            named = isinstance(error, (Rejection, ValueError))
            said = str(error) if named else f"it cannot be used ({type(error).__name__}: {error}); look at its sender"
            result.rejected[client] = records.clean(said, LONGEST_TEXT)
            tell(len(result.metrics) + len(result.rejected), len(result.asked))
            continue
        if records.about(reply.content).get("fresh") and number > 1:
            result.warnings.append(
                f"client {client} started its private matrices anew: it takes part for the first time, or lost its disk"
            )
        result.payload_up += records.payload_bytes(reply.content)
        result.metrics[client], result.norms[client] = checked.metrics, checked.norm
        if len(method.up(number)) == 2:
            kept[client] = (weight, checked.matrices)
        tell(len(result.metrics) + len(result.rejected), len(result.asked))
    result.unanswered = {name: asked for name, asked in pending.items() if name not in answered}
    for client in result.asked:
        if client not in result.metrics and client not in result.rejected:
            result.rejected[client] = (
                f"no reply within round-timeout={settings.round_timeout} s; raise it, or look at the client's log"
            )
    valid, asked = len(result.metrics), len(result.asked)
    if valid < max(settings.min_valid, total.least):
        reasons = "; ".join(
            f"{name_of(client, settings)}: {reason}" for client, reason in sorted(result.rejected.items())
        )
        wanted = f"min-valid={settings.min_valid}"
        if valid >= settings.min_valid:
            wanted = f"aggregation={settings.aggregation!r} needs {total.least}"
        raise TooFewReplies(f"round {number}: {valid} of {asked} replies are valid, {wanted}. {reasons}", result)
    if method.up(number) or any(not letter_of(name) for name, _ in contract.schema):
        try:
            result.mean, result.mean64 = total.result()
        except ValueError as error:
            raise FederationError(f"round {number}: aggregation={settings.aggregation!r} has {error}") from error
    if number == 1 and (warning := unused(method, result.mean)):
        result.warnings.append(warning)
    result.replies = [kept[client] for client in sorted(kept)]
    return result


def _each(clients: Sequence[int], nodes: Mapping[int, int]) -> list[Asked]:
    """Return one message a client, to its own node."""
    return [Asked(nodes[client], (client,)) for client in clients]


def _groups(
    clients: Sequence[int], nodes: Mapping[int, int], contract: Contract, settings: Settings, number: int
) -> list[Asked]:
    """Return which clients are asked in one message, in their order, the nodes taking turns.

    Who is trained in one pass is asked in one. Else as many as leave enough messages for every worker, of which few are
    left to do when the others are done, and as their values leave of a moderate size.
    """
    size = settings.cohort
    if size == 1:
        bytes_of_one = 4 * values(select(contract.schema, METHODS[contract.method].up(number)))
        size = max(1, min(len(clients) // _MESSAGES, _TOGETHER, _MOST_BYTES // max(bytes_of_one, 1)))
    if size == 1:
        return _each(clients, nodes)
    turns = itertools.cycle(dict.fromkeys(nodes[client] for client in clients))
    return [Asked(next(turns), tuple(clients[start : start + size])) for start in range(0, len(clients), size)]


def _parts(delivery: Delivery, clients: Sequence[int]) -> Iterator[tuple[int, Message | None, str]]:
    """Yield for each client of a message its reply, or why there is none; who refuses the message refuses for all."""
    reply, fault, parts = delivery.reply, delivery.fault, dict.fromkeys(clients, delivery.reply)
    if reply is not None and not reply.has_error() and len(clients) > 1 and "refusal" not in reply.content:
        try:
            parts |= records.parted(reply, clients)
        except ValueError as error:
            parts, fault = dict.fromkeys(clients), str(error)
    for client, part in parts.items():
        yield client, part, fault


def _is_behind(reply: Message) -> bool:
    """Say whether a client asks to be sent everything: it lacks what the message builds on."""
    return bool(_refusal(reply).get("behind"))


def _refusal(reply: Message) -> dict[str, Any]:
    """Return what a reply that says no says; empty of one that does not."""
    record = None if reply.has_error() else reply.content.get("refusal")
    return dict(record) if isinstance(record, ConfigRecord) else {}


def _send(
    grid: Grid,
    nodes: Mapping[int, int],
    contract: Contract,
    opening: Opening,
    groups: Sequence[Asked],
    whole: bool,
    lifetime: float,
    result: Round,
    settings: Settings,
) -> dict[str, Asked]:
    """Push one message per group of clients, with all a party holds if ``whole``; return whom by message id.

    Bytes are counted as one message per client, whatever the groups: a federation has a client at every node.

    A message that nobody answered within ``lifetime`` seconds is void, so that no node begins it later.
    """
    method = METHODS[contract.method]
    if whole:
        schema, weights = method.held_schema(contract.schema), []
    else:
        schema, weights = method.sent_schema(contract.schema, opening.number, len(opening.weights)), [*opening.weights]
    opens = pick({**opening.held, **opening.stack}, schema)
    codec = codec_of("identity" if whole else settings.codec)  # not all that a party holds was heard through the run's
    packed: ArrayRecord = records.pack(opens, schema, {}, codec).array_records["matrices"]
    common: records.About = {"contract": contract.hash, "round": opening.number, "run": opening.run, "whole": whole}
    common["dtype"] = settings.dtype
    payload = records.payload_bytes(RecordDict({"matrices": packed}))
    messages: list[Message] = []
    lengths: dict[tuple[int, int], int] = {}

    def message_to(node: int, **whom: Any) -> Message:
        content = RecordDict({"matrices": packed, "about": ConfigRecord({**common, **whom, "weights": weights})})
        return Message(content, node, MessageType.TRAIN, ttl=lifetime, group_id=str(result.number))

    for asked in groups:
        for client in asked.clients:
            alone = nodes[client].bit_length(), client.bit_length()  # by which lengths of numbers differ on the wire
            if alone not in lengths:
                lengths[alone] = records.message_bytes(message_to(nodes[client], client=client))
            result.message_down += lengths[alone]
            result.payload_down += payload
        first, *others = asked.clients
        whom: dict[str, Any] = {"clients": [*asked.clients]} if others else {"client": first}
        messages.append(message_to(asked.node, **whom))
    return dict(zip(grid.push_messages(messages), groups, strict=True))


def _deliveries(
    inbox: Inbox,
    pending: dict[str, Asked],
    answered: set[str],
    bound: Bound,
    timeout: float,
) -> Iterator[Delivery]:
    """Yield what comes in answer to messages as it arrives, until each is answered or the time is up.

    ``pending`` (who was asked, by message id) may grow meanwhile; ``answered`` grows by the ids of what is yielded.
    """
    since = time.monotonic()
    deadline = since + timeout
    while len(answered) < len(pending) and time.monotonic() < deadline:
        before = len(answered)
        asked = {name: asked.node for name, asked in pending.items() if name not in answered}
        for delivery in inbox.pull(asked, bound):
            answered.add(delivery.name)
            yield delivery
        if len(answered) > before:
            since = time.monotonic()
        else:
            time.sleep(pause(time.monotonic() - since))


def pause(waited: float) -> float:
    """Return how long to wait for the next look: a twentieth of the seconds waited so far; a look costs the server."""
    return min(max(waited / 20, _SHORTEST_PAUSE), _LONGEST_PAUSE)
