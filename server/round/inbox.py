"""What comes in answer to our messages: one by one, bounded before it is decoded, each fault its sender's alone.

Flower's own way decodes all the replies of one look together: one that cannot be decoded loses the others, its own
bytes say which message it answers, and what an array declares is built before anybody asks how large it may be. So
replies through a SuperLink are taken here from the SuperLink's own record (who answered what, and which objects belong
to it), object by object. In a simulation the nodes are ours and nothing is decoded; Flower's way is good there.

Of the server this file alone touches private parts of Flower: `HttpGrid`'s client and what it sends.
"""

import json
import logging
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from flwr.app import Message
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, ObjectTree, PullObjectRequest
from flwr.proto.recorddict_pb2 import ConfigRecord, MetricRecord
from flwr.proto.runtime_pb2 import PullAppMessagesRequest
from flwr.serverapp import Grid
from flwr.supercore.constant import HEAD_BODY_DIVIDER
from flwr.supercore.inflatable.inflatable_object import get_object_head_values_from_object_content
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.superlink.grid.http_grid import HttpGrid

from fedasym.wire import records
from fedasym.wire.codecs.base import Codec

LONGEST_TEXT = 600  # characters of a text from another party
_WORDS_BYTES = 256 * 1024  # of a reply's objects that are no values: records, names, metrics, a reason
_HEADER_BYTES = 4096  # of an array: its .npy header and its own record
_ITEMS: dict[str, Any] = {"ConfigRecord": ConfigRecord, "MetricRecord": MetricRecord}
_PIECE_BYTES = 1 << 20  # Flower's pieces of an array are 5 MiB; smaller ones are let through down to this

log = logging.getLogger("fedasym")


class _Fault(ValueError):
    """A reply that is not decoded; the text says why."""


@dataclass(frozen=True)
class Bound:
    """What a reply may hold.

    Attributes:
        values: bytes of its arrays.
        words: bytes of everything else.
        objects: into which Flower has cut it.
    """

    values: int
    words: int
    objects: int

    def times(self, clients: int) -> "Bound":
        """Return what a reply of so many clients may hold."""
        return Bound(clients * self.values, clients * self.words, clients * self.objects)


def bound_of(schema: records.Schema, codec: Codec) -> Bound:
    """Return what a reply may hold that carries the matrices of a schema."""
    layout = codec.layout(schema)
    values = sum(np.dtype(dtype).itemsize * math.prod(shape) + _HEADER_BYTES for dtype, shape in layout.values())
    return Bound(values, _WORDS_BYTES + _HEADER_BYTES * len(layout), 16 + 3 * len(layout) + values // _PIECE_BYTES)


@dataclass(frozen=True)
class Delivery:
    """What came in answer to a message.

    Attributes:
        name: id of the message that it answers.
        reply: as sent, or Flower's error in its place; None if it cannot be used.
        fault: why it cannot be used; "" if it can.
    """

    name: str
    reply: Message | None
    fault: str = ""


@dataclass
class _Incoming:
    """A reply that the SuperLink has announced, and what of it has been fetched."""

    id: str
    sender: int
    tree: ObjectTree
    contents: dict[str, bytes] = field(default_factory=dict)


class Inbox:
    """Takes what comes in answer to messages; nothing in a reply can raise, or touch another one.

    Args:
        grid: Flower's.
    """

    def __init__(self, grid: Grid) -> None:
        self._grid = grid
        self._incoming: dict[str, _Incoming] = {}  # by the message that they answer; not all of them is there yet

    def pull(self, asked: Mapping[str, int], bound: Bound) -> Iterator[Delivery]:
        """Yield what is there, one by one, so that no more than one decoded reply need be held.

        Args:
            asked: by message id, the node that it was sent to; ids that were answered are not asked for again.
            bound: what each reply may hold.
        """
        if not asked:
            return
        if isinstance(self._grid, HttpGrid):
            yield from self._from_superlink(self._grid, asked, bound)
            return
        for reply in self._grid.pull_messages(list(asked)):
            name = reply.metadata.reply_to_message_id
            if name not in asked:
                log.warning("a reply to a message that nobody sent, or that was answered already, is left out")
                continue
            try:
                if not reply.has_error():
                    _require_sender(reply.metadata.src_node_id, asked[name])
                yield Delivery(name, reply)
            except _Fault as fault:
                yield Delivery(name, None, str(fault))

    def _from_superlink(self, grid: HttpGrid, asked: Mapping[str, int], bound: Bound) -> Iterator[Delivery]:
        client = grid._runtime_client
        found = client.PullMessages(PullAppMessagesRequest(message_ids=asked.keys() - self._incoming.keys()))
        for outer, tree in zip(found.messages_list, found.message_object_trees, strict=True):
            said = outer.metadata
            self._incoming[said.reply_to_message_id] = _Incoming(said.message_id, said.src_node_id, tree)
        for name in asked.keys() & self._incoming.keys():
            one = self._incoming[name]
            try:
                whole = _fetched(grid, one, asked[name], bound)
                delivery = Delivery(name, _decoded(one, name, asked[name], bound)) if whole else None
            except _Fault as fault:
                delivery = Delivery(name, None, str(fault))
            if delivery is None:
                continue
            del self._incoming[name], one
            yield delivery


def _fetched(grid: HttpGrid, one: _Incoming, asked: int, bound: Bound) -> bool:
    """Fetch what is there of a reply's objects, no more of them and no more bytes than it may have; say if it is all.

    The SuperLink is told when it can drop them, whatever they are worth.

    Raises:
        _Fault: it has more, is another node's, or a part of it will not come.
    """
    try:
        if one.sender != grid.node.node_id:  # the SuperLink's own: of a node that is gone, of a late reply
            _require_sender(one.sender, asked)
        size = sum(map(len, one.contents.values()))
        for name in _parts(one.tree, bound.objects):
            if name in one.contents:
                continue
            request = PullObjectRequest(node=grid.node, run_id=grid.run.run_id, object_id=name)
            answer = grid._runtime_client.PullObject(request)
            if answer.object_found and not answer.object_available:
                return False
            if not answer.object_found:
                raise _Fault("a part of it is missing: its sender did not send it to the end")
            one.contents[name] = bytes(answer.object_content)
            size += len(one.contents[name])
            if size > bound.values + bound.words:
                raise _Fault(f"it has {size} bytes or more, expected at most {bound.values + bound.words}")
    except _Fault:
        _confirm(grid, one)
        raise
    _confirm(grid, one)
    return True


def _require_sender(sender: int, asked: int) -> None:
    if sender != asked:
        raise _Fault(f"node {sender} answered in place of node {asked}, which was asked")


def _confirm(grid: HttpGrid, one: _Incoming) -> None:
    grid._runtime_client.ConfirmMessageReceived(
        ConfirmMessageReceivedRequest(node=grid.node, run_id=grid.run.run_id, message_object_id=one.id)
    )


def _parts(tree: ObjectTree, most: int) -> list[str]:
    """Return the names of a tree's objects, each once.

    Raises:
        _Fault: there are more.
    """
    names: dict[str, None] = {}
    pending = [tree]
    while pending:
        node = pending.pop()
        names[node.object_id] = None
        pending.extend(node.children)
        if len(names) + len(pending) > most:
            raise _Fault(f"it has more than {most} parts, and no reply to this message needs as many")
    return list(names)


def _decoded(one: _Incoming, name: str, asked: int, bound: Bound) -> Message:
    """Build a reply from its objects, which are used up.

    Raises:
        _Fault: they are no message, declare more than they may, or say what the SuperLink does not say.
    """
    try:
        _require_bound(one.contents, bound)
        reply = inflate_object_from_contents(one.id, one.contents)
        if not isinstance(reply, Message):
            raise _Fault(f"it is no message but a {type(reply).__name__}")
        if not reply.has_error() and not reply.has_content():
            raise _Fault("it holds neither records nor an error")
        if one.sender == asked:
            _require_own(reply, name, asked)
        elif not reply.has_error():
            raise _Fault("it has no error and comes from the SuperLink itself")
    except (_Fault, MemoryError):
        raise
    except Exception as error:  # bytes from outside: whatever is wrong with them is one refusal
        raise _Fault(f"it cannot be decoded ({type(error).__name__}: {records.clean(error, 200)})") from error
    reply.metadata.__dict__["_message_id"] = one.id
    return reply


def _require_bound(contents: Mapping[str, bytes], bound: Bound) -> None:
    """Require that what objects declare is not more than they may; no array is built before, and no larger record.

    Raises:
        _Fault: it is more, or an object says something twice.
        Exception: an object that is not of Flower's form.
    """
    values = words = 0
    for content in contents.values():
        kind, children, _ = get_object_head_values_from_object_content(content)
        if kind == "ArrayChunk":
            continue
        words += len(content)
        if words <= bound.words:  # of no more than that anything is built
            body = content[content.index(HEAD_BODY_DIVIDER) + 1 :]
            _require_once(kind, body)
            if kind == "Array":
                declared: Any = json.loads(body)["arraychunk_ids"]
                values += sum(len(contents[children[place]]) for place in declared)
    if values > bound.values or words > bound.words:
        raise _Fault(
            f"it declares {values} bytes of values and {words} of other records, expected at most {bound.values} and "
            f"{bound.words}"
        )


def _require_once(kind: str, body: bytes) -> None:
    """Require that an object says nothing twice: of two values Flower would take the last without a word.

    Raises:
        _Fault: it does.
        Exception: its body is not of its kind.
    """

    def names_of(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names.extend(name for name, _ in pairs)
        return dict(pairs)

    names: list[str] = []
    if kind in _ITEMS:
        names = [item.key for item in _ITEMS[kind].FromString(body).items]
    elif kind in ("RecordDict", "ArrayRecord", "Array"):
        json.loads(body, object_pairs_hook=names_of)
    if len({*names}) < len(names):
        (twice, _), *_ = Counter(names).most_common(1)
        raise _Fault(f"it says {records.clean(repr(twice), 100)} twice in one {kind}")


def _require_own(reply: Message, name: str, sender: int) -> None:
    """Require that a message says of itself what the SuperLink says of it.

    Raises:
        _Fault: it does not.
    """
    said = reply.metadata
    if said.reply_to_message_id != name or said.src_node_id != sender:
        answers, itself = records.clean(said.reply_to_message_id, 64), records.clean(said.src_node_id, 64)
        raise _Fault(
            f"it says that it is node {itself}'s answer to message {answers!r}, and the SuperLink that it is node "
            f"{sender}'s to {name!r}"
        )
