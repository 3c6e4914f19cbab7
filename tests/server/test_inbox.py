"""What a node sends through a SuperLink counts against that node alone, and costs no more than it may.

Flower's own state, handlers and grid; a node that sends whatever bytes it likes.
"""

import json
import resource
import tracemalloc
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import spoiled_replies as spoiled
from direct_superlink import DirectSuperlink, Part, parts_of
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedasym.wire import records
from server.round.inbox import Bound, Delivery, Inbox, bound_of

SCHEMA = (("layer.B", (8, 4)),)
BOUND = bound_of(SCHEMA, records.IDENTITY)


@pytest.fixture(scope="module")
def link() -> DirectSuperlink:
    return DirectSuperlink(2)


def content(value: float = 1.0) -> RecordDict:
    """Return a reply's records."""
    made = records.pack({"layer.B": np.full((8, 4), value, np.float32)}, SCHEMA, {"client": 1, "round": 1})
    made["metrics"] = MetricRecord({"num-examples": 3, "loss": 0.5})
    return made


def deliveries(link: DirectSuperlink, spoil: Callable[[Part], Part], bound: Bound = BOUND) -> list[Delivery]:
    """Ask two nodes, let the first send a spoiled reply and the second an honest one; return what arrives, in order."""
    asked = link.ask(RecordDict({"about": ConfigRecord({"round": 1})}))
    bad, good = asked
    reply, other = link.honest(bad, content()), link.honest(good, content(2.0))
    link.send(reply.metadata, spoil(parts_of(reply)))
    link.send(other.metadata, parts_of(other))
    inbox, found = Inbox(link.grid), {}
    for _ in range(2):
        found |= {each.name: each for each in inbox.pull({n: k for n, k in asked.items() if n not in found}, bound)}
    arrived = found[good].reply
    assert arrived is not None and np.all(records.unpack(arrived.content, SCHEMA)["layer.B"] == 2.0)
    assert not link.state.object_store.store, "the SuperLink keeps objects of replies that were taken"
    return [found[bad], found[good]]


def test_an_honest_reply_arrives_as_it_was_sent(link: DirectSuperlink) -> None:
    first, _ = deliveries(link, lambda whole: whole)
    made = Message(content(), reply_to=next(iter(link._sent.values())))
    assert parts_of(made).name == made.object_id  # what the tests take apart is what Flower sends
    assert not first.fault and first.reply is not None
    assert records.unpack(first.reply.content, SCHEMA)["layer.B"].tolist() == [[1.0] * 4] * 8


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (spoiled.other_message, f"answer to message '{'f' * 64}', and the SuperLink that it is node"),
        (spoiled.other_node, "it says that it is node 12345's answer"),
        (spoiled.malformed_record, "it cannot be decoded (DecodeError"),
        (spoiled.many_times_one_piece, "declares 16320000 bytes of values"),
        (spoiled.no_such_piece, "it cannot be decoded (IndexError"),
        (spoiled.endless_text, "bytes or more, expected at most"),
        (spoiled.another_array, "bytes or more, expected at most"),
        (spoiled.a_thousand_records, "parts, and no reply to this message needs as many"),
        (spoiled.no_message, "it is no message but a RecordDict"),
        (spoiled.nothing, "it cannot be decoded (IndexError"),
        (spoiled.of_no_kind, "it cannot be decoded ("),
    ],
)
def test_a_bad_reply_is_one_nodes_fault_and_the_others_arrive(
    link: DirectSuperlink, spoil: Callable[[Part], Part], named: str
) -> None:
    first, _ = deliveries(link, spoil)
    assert first.reply is None and named in first.fault, first.fault
    assert first.fault.isprintable() and len(first.fault) < 600


def test_what_would_grow_is_refused_before_it_does(link: DirectSuperlink) -> None:
    tracemalloc.start()
    first, _ = deliveries(link, spoiled.many_times_one_piece)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert "declares 16320000 bytes" in first.fault
    assert peak < 10e6, f"{peak} bytes: the 15 MB were built"  # what is fetched and read of JSON is below 3 MB


def test_who_knows_a_message_cannot_answer_it_for_another(link: DirectSuperlink) -> None:
    asked = link.ask(RecordDict({"about": ConfigRecord({"round": 1})}))
    reply = link.honest(next(iter(asked)), content())
    link.send(reply.metadata, parts_of(reply))
    strangers = {name: node + 1 for name, node in asked.items()}  # whom the server believes to have asked
    (delivery,) = Inbox(link.grid).pull(strangers, BOUND)
    assert delivery.reply is None and f"in place of node {strangers[delivery.name]}" in delivery.fault


def test_a_reply_that_is_still_being_sent_holds_up_nobody_and_is_taken_when_it_is_whole(link: DirectSuperlink) -> None:
    asked = link.ask(RecordDict({"about": ConfigRecord({"round": 1})}))
    slow, quick = asked
    half, whole = link.honest(slow, content(3.0)), link.honest(quick, content())
    link.send(half.metadata, parts_of(half), parts=2)
    rest, session = link.pending[2:], link.session
    link.send(whole.metadata, parts_of(whole))
    inbox = Inbox(link.grid)
    assert [each.name for each in inbox.pull(asked, BOUND)] == [quick]
    left = {slow: asked[slow]}
    assert list(inbox.pull(left, BOUND)) == []
    for part in rest:
        link.send_part(part, session)
    (delivery,) = inbox.pull(left, BOUND)
    assert delivery.reply is not None and records.unpack(delivery.reply.content, SCHEMA)["layer.B"][0, 0] == 3.0


@st.composite
def _spoiled(draw: st.DrawFn) -> Callable[[Part], Part]:
    """Draw a way to spoil one object of a reply: bytes of its body, its kind, or its parts."""
    which, how = (
        draw(st.integers(0, 99)),
        draw(st.sampled_from(("bytes", "cut", "kind", "swap", "drop", "twice", "json"))),
    )
    noise, place = draw(st.binary(min_size=1, max_size=12)), draw(st.integers(0, 10_000))
    words = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9) | st.lists(st.integers(-3, 3))
    key, value = draw(st.sampled_from(("dtype", "shape", "stype", "arraychunk_ids", "new"))), draw(words)

    def spoil(whole: Part) -> Part:
        parts = whole.all()
        old = parts[which % len(parts)]
        start = place % (len(old.body) + 1)
        if how == "bytes":
            new = replace(old, body=old.body[:start] + noise + old.body[start + len(noise) :])
        elif how == "cut":
            new = replace(old, body=old.body[:start])
        elif how == "kind":
            new = replace(old, kind=parts[place % len(parts)].kind)
        elif how == "swap":
            new = replace(parts[place % len(parts)], body=old.body)
            if new.name == old.name or old in new.all():
                return whole
        elif how == "drop":
            new = replace(old, children=old.children[1:])
        elif how == "twice":
            new = replace(old, children=[*old.children, *parts[-1 - place % len(parts) :][:1]])
            if old in new.all()[1:] or whole in new.all():
                return whole
        else:
            old = spoiled.part_of(whole, "Array")
            new = replace(old, body=json.dumps(json.loads(old.body) | {key: value}).encode())
        return spoiled.changed(whole, old, new)

    return spoil


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(_spoiled())
def test_no_bytes_of_one_node_raise_or_touch_anothers(link: DirectSuperlink, spoil: Callable[[Part], Part]) -> None:
    first, _ = deliveries(link, spoil)
    assert (first.reply is None) == bool(first.fault)
    assert first.reply is None or first.reply.has_error() or isinstance(first.reply.content, RecordDict)


@pytest.mark.slow
@settings(max_examples=10_000, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(_spoiled())
def test_ten_thousand_spoiled_replies(link: DirectSuperlink, spoil: Callable[[Part], Part]) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    deliveries(link, spoil)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000, "kB more for one reply"
