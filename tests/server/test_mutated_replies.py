"""Whatever becomes of a reply on its way: it counts as what it says, or it is rejected under a reason; nothing else.

The real round is judged, from the messages that it sends through Flower's own state and handlers to the mean, for every
method and the two rounds that differ; the clients' honest replies are trained once, and mutated.
"""

import io
import json
import re
import time
import tracemalloc
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from random import Random

import numpy as np
import pytest
from direct_superlink import DirectSuperlink, Part, parts_of
from flwr.app import Message, Metadata, RecordDict
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from reply_mutations import Spoil, copy_of, spoiled_reply
from world import split_values, tiny_settings

from clients.app import app as honest
from fedasym.aggregation.exact import ExactMean
from fedasym.methods import METHODS
from fedasym.methods.base import select
from fedasym.settings import Settings
from fedasym.wire import records
from fedasym.wire.codecs.identity import PACKED
from fedasym.wire.contract import Contract
from server.failure import FederationError
from server.lifecycle import initial_state
from server.round.inbox import LONGEST_TEXT, Inbox
from server.round.outcome import conclude
from server.round.run import Opening, Round, run_round
from server.round.weights import KnownSizes
from server.session import prepare
from simulations.engines.grid import InProcessGrid

CLIENTS = 12
QUICK = ("asymmetric", "flora")
SECONDS = 2.0  # of a core for one reply; the dearest are lists of 100,000 and more texts, which Flower's records check
PEAK = 64e6  # bytes; such a list again: 256 kB on the wire

CHECKS = {
    "it cannot be decoded": "bytes that are no records",
    "it (says .* twice|names .* more than once)": "a field said twice",
    "it says that it is": "another message or node in its own bytes",
    "it has more than": "too many parts",
    r"it has \d+ bytes or more|it declares": "too many bytes",
    "it is no message|it holds neither": "no message, or an empty one",
    "its process failed": "an error in place of a reply",
    "it refused": "a refusal",
    "(contract|round|client|loaded)=": "another contract, round, client or broadcast",
    "(base|A)=": "another W or A after training",
    "the message carries": "arrays missing, or too many",
    "the array": "an array of another form",
    ".* not a finite value": "a value that is not finite",
    "its .* holds a value of magnitude": "a value above max-value",
    "its metric": "a metric that is no finite number",
    "its weight": "a weight that is not the split's",
    "its training loss": "no training loss",
    "it reports": "an evaluation on no examples",
    "its matrices equal": "nothing trained",
    "it cannot be used": "what no check has named",
}


@dataclass(frozen=True)
class Staged:
    """A round that is about to begin, and what each client would honestly answer."""

    settings: Settings
    contract: Contract
    opening: Opening
    sizes: dict[int, int]
    honest: dict[int, RecordDict]


class _Recording(InProcessGrid):
    """Keeps what clients answered."""

    answers: list[Message]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        found = [*super().pull_messages(message_ids)]
        self.answers += found
        return found


def staged_rounds(root: Path, method: str) -> Iterator[Staged]:
    """Train the first two rounds of a method honestly; yield each as it was before it began, with the replies."""
    count = 1 if method == "central" else CLIENTS
    more = {"client_holdout": 0.2} if METHODS[method].personal else {}
    settings = tiny_settings(
        root, method=method, num_clients=count, split="iid", local_steps=1, out=str(root / method), **more
    ).resolved()
    session = prepare(settings)
    state = initial_state(session)
    with _Recording(honest, settings.run_config(), count) as grid:
        for number in (1, 2):
            grid.answers = []
            opening = Opening(number, state.run, state.matrices, state.stack, state.weights)
            known = KnownSizes(session.sizes, uniform=False)
            nodes = {client: 100 + client for client in range(count)}
            result = run_round(grid, Inbox(grid), nodes, session.contract, opening, settings, known)
            assert not result.rejected
            answers = {int(records.about(each.content)["client"]): each.content for each in grid.answers}
            yield Staged(settings, session.contract, opening, session.sizes, answers)
            state = replace(conclude(session.contract, state, result, session.frozen, settings).state, round=number)


@dataclass
class Tally:
    """What became of how many replies, and what the dearest of them cost."""

    outcomes: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    peak: int = 0


def judged(staged: Staged, link: DirectSuperlink, spoil: dict[int, Spoil], tally: Tally) -> Round | None:
    """Let the round take these replies, and hold it to what they say; None if none of them counts."""
    sent: dict[int, Part] = {}
    began = [0.0]

    def answer(message: Message) -> tuple[Metadata, Part]:
        client = int(records.about(message.content)["client"])
        reply = Message(copy_of(staged.honest[client]), reply_to=message)
        spoil_it = spoil[client] if client not in sent else parts_of  # who was behind answers honestly the second time
        whole = spoil_it(reply)
        sent[client] = whole
        began[0] = time.thread_time()
        return reply.metadata, whole

    def tell(done: int, total: int) -> None:
        now = time.thread_time()
        tally.seconds, began[0] = max(tally.seconds, now - began[0]), now

    known = KnownSizes(staged.sizes, uniform=False)
    nodes = dict(enumerate(link.nodes))
    try:
        with link.answered(answer):
            result = run_round(
                link.grid, Inbox(link.grid), nodes, staged.contract, staged.opening, staged.settings, known, tell
            )
    except FederationError as error:
        assert ": 0 of 1 replies are valid" in str(error)
        tally.outcomes["the only reply of its round"] += 1
        return None
    assert not link.state.object_store.store, "the SuperLink keeps objects of replies that were taken"
    assert {*result.metrics} ^ {*result.rejected} == {*result.asked} == {*nodes}
    for reason in result.rejected.values():
        assert reason and reason.isprintable() and len(reason) <= LONGEST_TEXT
        assert "no reply within" not in reason
        tally.outcomes[_class(reason)] += 1
    tally.outcomes["valid"] += len(result.metrics)
    _require_meaning(staged, result, sent)
    return result


def _decoded(whole: Part) -> RecordDict:
    """Decode a reply as Flower does, the whole of it at once."""
    found = inflate_object_from_contents(whole.name, {part.name: part.content for part in whole.all()})
    assert isinstance(found, Message)
    return found.content


def _require_meaning(staged: Staged, result: Round, sent: dict[int, Part]) -> None:
    """Require of each reply that counts that it says what an honest one says, and of the mean that it is theirs."""
    schema = select(staged.contract.schema, METHODS[staged.settings.method].up(staged.opening.number))
    shapes = {name: shape for name, shape in schema}
    size = sum(int(np.prod(shape)) for shape in shapes.values())
    mean, valid = ExactMean(), {}
    for client in result.metrics:
        content = _decoded(sent[client])
        assert "refusal" not in content.config_records
        said, own = content.config_records["about"], staged.honest[client].config_records["about"]
        for key in own.keys() - {"fresh"}:
            assert type(said[key]) is type(own[key]) and said[key] == own[key], key
        ((name, arrays),) = content.array_records.items()
        ((packed, array),) = arrays.items()
        assert (name, packed) == ("matrices", PACKED)
        assert (array.dtype, array.stype) == ("float32", "numpy.ndarray")
        assert json.dumps(array.shape) == json.dumps((size,))
        values = np.lib.format.read_array(io.BytesIO(array.data), allow_pickle=False)
        assert values.dtype == np.float32 and values.shape == (size,) and np.isfinite(values).all()
        assert np.abs(values).max(initial=0.0) <= staged.settings.max_value
        metrics = dict(content.metric_records["metrics"])
        assert result.metrics[client] == metrics and all(np.isfinite([*metrics.values()]))
        assert type(metrics["num-examples"]) is int and metrics["num-examples"] == staged.sizes[client]
        assert type(metrics["loss"]) is float
        valid[client] = (metrics["num-examples"], values)
        if size:
            mean.add(metrics["num-examples"], split_values(values, shapes))
    assert type(result.payload_up) is int and result.payload_up == 4 * size * len(valid)
    if not size:
        assert not result.mean
        return
    assert records.digest(result.mean) == records.digest(mean.mean())
    flat = np.concatenate([result.mean[name].reshape(-1) for name in sorted(shapes)])
    for place in (0, size // 2, size - 1):
        exact = sum(Fraction(weight) * Fraction(float(values[place])) for weight, values in valid.values())
        exact /= sum(weight for weight, _ in valid.values())
        assert abs(Fraction(float(flat[place])) - exact) <= abs(exact) * Fraction(1, 2**24) + Fraction(1, 2**149)


def _class(reason: str) -> str:
    """Name the check that a rejection comes from."""
    (found,) = [name for pattern, name in CHECKS.items() if re.search(f"^({pattern})", reason)][:1] or [reason]
    return found


def run_mutations(root: Path, method: str, replies: int, tally: Tally) -> None:
    """Judge so many mutated replies of a method, half of them in its first round and half in its second."""
    for staged in staged_rounds(root, method):
        clients = len(staged.honest)
        bad = max(clients - 1, 1)
        for turn in range(-(-replies // (2 * bad))):
            if turn % 20 == 0:  # a run without a heartbeat is finished after a while
                link = DirectSuperlink(clients)
            rng = Random(f"{method} {staged.opening.number} {turn}")
            honest_one = rng.randrange(clients) if clients > 1 else -1
            others = [*staged.honest.values()]
            spoil = {client: spoiled_reply(rng, others) for client in staged.honest}
            spoil |= {honest_one: parts_of} if honest_one >= 0 else {}
            watched = turn % 20 == 0
            if watched:
                tracemalloc.start()
            result = judged(staged, link, spoil, tally)
            if watched:
                tally.peak = max(tally.peak, tracemalloc.get_traced_memory()[1])
                tracemalloc.stop()
            assert result is None or honest_one < 0 or honest_one in result.metrics, "an honest reply was lost"


def assert_within(tally: Tally) -> None:
    assert tally.seconds < SECONDS and tally.peak < PEAK, f"{tally.seconds:.2f} s, {tally.peak / 1e6:.1f} MB"


def test_mutated_replies_count_as_what_they_say_or_are_rejected_and_the_mean_is_the_valid_ones(tmp_path: Path) -> None:
    tally = Tally()
    for method in QUICK:
        run_mutations(tmp_path, method, 250, tally)
    assert_within(tally)
    assert tally.outcomes["valid"] > 60 and len(tally.outcomes) > 10, tally.outcomes
    assert tally.outcomes.keys() <= {"valid", *CHECKS.values()}, tally.outcomes


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)  # 104,000 in all
def test_eight_thousand_mutated_replies_of_a_method(tmp_path: Path, method: str) -> None:
    tally = Tally()
    run_mutations(tmp_path, method, 8_000, tally)
    print(
        f"{method}: {tally.outcomes.total()} replies, dearest {tally.seconds:.3f} s, {tally.peak / 1e6:.1f} MB "
        f"a round; {dict(tally.outcomes.most_common())}",
        flush=True,
    )
    assert_within(tally)
    assert tally.outcomes.total() >= 8_000
