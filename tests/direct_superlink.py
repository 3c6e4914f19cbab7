"""A SuperLink's own state and handlers, without the sockets between them and who calls: thousands of replies a minute.

A node can send whatever bytes it likes, as a hostile one could; the server's side is Flower's `HttpGrid`.
"""

import copy
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from flwr.app import ArrayRecord, Message, MessageType, Metadata, RecordDict
from flwr.app.message.message import make_message
from flwr.common.constant import NOOP_FLWR_AID
from flwr.common.serde import message_to_proto
from flwr.proto.fleet_pb2 import PushMessagesRequest
from flwr.proto.message_pb2 import ObjectTree, PushObjectRequest
from flwr.proto.node_pb2 import Node
from flwr.server.superlink.linkstate import LinkStateFactory
from flwr.supercore.constant import FLWR_IN_MEMORY_DB_NAME, NOOP_FEDERATION_ID, TaskType
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.federation import NoOpFederationManager
from flwr.superlink.grid.http_grid import HttpGrid
from flwr.superlink.servicer.fleet import fleet_handlers
from flwr.superlink.servicer.runtime import runtime_handlers


@dataclass
class Part:
    """One object of a message on the wire: what it is, what it says, and of which others it consists."""

    kind: str
    body: bytes
    children: Sequence["Part"] = ()

    @cached_property
    def content(self) -> bytes:
        """The object as it travels."""
        names = ",".join(dict.fromkeys(child.name for child in self.children))
        return f"{self.kind} {names} {len(self.body)}".encode() + b"\0" + self.body

    @cached_property
    def name(self) -> str:
        """Its id."""
        return hashlib.sha256(self.content).hexdigest()

    @cached_property
    def tree(self) -> ObjectTree:
        """Its objects' ids, as it is announced."""
        different = {child.name: child for child in self.children}
        return ObjectTree(object_id=self.name, children=[child.tree for child in different.values()])

    def all(self) -> list["Part"]:
        """It and all below it, each once."""
        found = {self.name: self}
        for child in self.children:
            found |= {part.name: part for part in child.all()}
        return list(found.values())


def parts_of(message: Message) -> Part:
    """Take a message apart, into the objects that Flower's own code serialises; each is made once, the inner first."""
    if message.has_error():
        return Part("Message", _body(message))
    bare = copy.copy(message)  # of the content, a message's own object has the name alone
    bare.__dict__["_content"] = RecordDict()
    records = {name: _record(record) for name, record in message.content.items()}
    return Part("Message", _body(bare), [_named("RecordDict", records)])


def _record(record: Any) -> Part:
    if not isinstance(record, ArrayRecord):
        return Part(type(record).__name__, _body(record))
    arrays = {}
    for key, array in record.items():
        pieces = [Part("ArrayChunk", _body(piece)) for _, piece in array.slice_array()]
        arrays[key] = Part("Array", _body(array), list({piece.name: piece for piece in pieces}.values()))
    return _named("ArrayRecord", arrays)


def _named(kind: str, parts: dict[str, Part]) -> Part:
    different = {part.name: part for part in parts.values()}
    body = json.dumps({name: part.name for name, part in parts.items()}).encode()
    return Part(kind, body, [*different.values()])


def _body(item: Any) -> bytes:
    return bytes(item.deflate().partition(b"\0")[2])


class _Direct:
    """The calls that `HttpGrid` makes over HTTP, made on the handlers themselves."""

    def __init__(self, state: Any, task: Any) -> None:
        self._state, self._task = state, task

    def __getattr__(self, name: str) -> Callable[[Any], Any]:
        words = "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name).lstrip("_")
        return lambda request: getattr(runtime_handlers, words)(request, self._state, self._task)


class DirectSuperlink:
    """A SuperLink with some nodes online and one run."""

    def __init__(self, nodes: int) -> None:
        objects = ObjectStoreFactory(FLWR_IN_MEMORY_DB_NAME)
        manager = NoOpFederationManager()
        self.state = LinkStateFactory(FLWR_IN_MEMORY_DB_NAME, manager, objects).state()
        manager.linkstate = self.state
        self.nodes = [self._node(number.to_bytes(2, "big")) for number in range(nodes)]
        self.run_id = self.state.create_run(
            None, None, None, {}, NOOP_FEDERATION_ID, None, NOOP_FLWR_AID, TaskType.SERVER_APP
        )
        (run,) = self.state.get_run_info(run_ids=[self.run_id])
        assert self.state.claim_task(run.primary_task_id) and self.state.activate_task(run.primary_task_id)
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = self.run_id, 1, run.primary_task_id
        (task,) = self.state.get_tasks(task_ids=[run.primary_task_id])
        self.grid = HttpGrid(token="none")
        self.grid.set_run(Run.create_empty(self.run_id))
        self.grid._client = _Direct(self.state, task)  # type: ignore[assignment]

    def _node(self, key: bytes) -> int:
        node = self.state.create_node(NOOP_FLWR_AID, "nobody", key, 0)
        assert self.state.activate_node(node, 3600.0)
        return int(node)

    def ask(self, content: RecordDict) -> dict[str, int]:
        """Send a message to each node; return the node by message id."""
        assert self.state.acknowledge_task_heartbeat(TaskIdentity.task_id)  # as Flower's process of the server does
        messages = [Message(content, node, MessageType.TRAIN) for node in self.nodes]
        names = list(self.grid.push_messages(messages))
        for node in self.nodes:
            self.state.get_message_ins(node, None)  # as if it had asked for work, and had it
        for name in names:
            self.state.object_store.delete(name)
        self._sent = dict(zip(names, messages, strict=True))
        return dict(zip(names, self.nodes, strict=True))

    @contextmanager
    def answered(self, answer: Callable[[Message], tuple[Metadata, Part]]) -> Iterator[None]:
        """Let every message that the grid pushes meanwhile be answered at once, by what ``answer`` makes of it."""
        push = self.grid.push_messages

        def push_and_answer(messages: Iterable[Message]) -> list[str]:
            assert self.state.acknowledge_task_heartbeat(TaskIdentity.task_id)
            asked = [*messages]
            names = [*push(asked)]
            for message, name in zip(asked, names, strict=True):
                self.state.get_message_ins(message.metadata.dst_node_id, None)
                self.state.object_store.delete(name)
            for message in asked:
                self.send(*answer(message))
            return names

        self.grid.push_messages = push_and_answer  # type: ignore[method-assign]
        try:
            yield
        finally:
            self.grid.push_messages = push  # type: ignore[method-assign]

    def honest(self, name: str, content: RecordDict) -> Message:
        """Return an honest reply to a message, from the node that it was sent to."""
        return Message(content, reply_to=self._sent[name])

    def send(self, outer: Metadata, whole: Part, *, parts: int | None = None) -> None:
        """Announce a reply and send its objects, the innermost first.

        Args:
            outer: what the SuperLink is told of it; from whom, and to which message.
            whole: the reply.
            parts: how many of its objects are sent; None: all.
        """
        told = message_to_proto(make_message(outer, RecordDict()))
        told.metadata.message_id = whole.name
        node = Node(node_id=outer.src_node_id)
        request = PushMessagesRequest(node=node, messages_list=[told], message_object_trees=[whole.tree])
        answer = fleet_handlers.push_messages(request, self.state)
        self.session, missing = answer.session_id, {*answer.objects_to_push}  # others may have sent some of them
        self.pending = [part for part in whole.all()[::-1] if part.name in missing]
        for part in self.pending[:parts]:
            self.send_part(part, self.session)

    def send_part(self, part: Part, session: str) -> None:
        """Send one object."""
        request = PushObjectRequest(
            node=Node(node_id=self.nodes[0]), run_id=self.run_id, object_id=part.name, object_content=part.content,
            session_id=session,
        )  # fmt: skip
        assert fleet_handlers.push_object(request, self.state).stored
