"""An in-process Flower Grid: the same ServerApp and ClientApp, without Ray, processes or sockets.

Clients run on a pool of threads, each with its own model. Messages are handed over as Flower hands them: content only,
by copy. Of the engines this file alone touches private parts of Flower: a task's identity, without which messages
cannot be made, and the type that describes a node.
"""

import copy
import itertools
import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from fedasym.fields import Value

RUN_ID, SERVER_NODE = 1, 1


class InProcessGrid(Grid):
    """A grid of ``num_nodes`` nodes served by ``workers`` threads of this process.

    Args:
        client_app: what each node runs.
        run_config: the run config that clients see.
        nodes: their number, with ``partition-id`` from 0, or each one's node config; ``site`` in it is its name.
        workers: threads; results do not depend on it.
    """

    def __init__(
        self,
        client_app: ClientApp,
        run_config: dict[str, Value],
        nodes: int | Sequence[dict[str, Value]],
        workers: int = 1,
    ) -> None:
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = RUN_ID, SERVER_NODE, 1
        self._app = client_app
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="client")
        self._ids = itertools.count(1)
        self._replies: dict[str, Future[Message]] = {}
        self._arrived: dict[str, None] = {}  # names of replies that are there, in the order in which they came
        self._arrival = threading.Condition()
        if isinstance(nodes, int):
            nodes = [{"partition-id": k, "num-partitions": nodes} for k in range(nodes)]
        self._contexts = {
            100 + k: Context(RUN_ID, 100 + k, dict(config), RecordDict(), dict(run_config))
            for k, config in enumerate(nodes)
        }

    def __enter__(self) -> "InProcessGrid":
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def set_run(self, run: Run) -> None:
        """Accept the one run of this grid.

        Raises:
            ValueError: another run.
        """
        if run.run_id != RUN_ID:
            raise ValueError(f"run {run.run_id} is not this grid's; an in-process grid has the one run {RUN_ID}")

    @property
    def run(self) -> Run:
        """Return Flower's description of the one run."""
        return Run.create_empty(RUN_ID)

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Make a message, as ``Message(...)`` does."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """Return the ids of all nodes; they are all there from the start."""
        return list(self._contexts)

    def get_nodes(self) -> Iterable[NodeInfo]:
        """Return the nodes with their names; they are all there from the start."""
        return [
            NodeInfo(node_id=node, name=str(context.node_config.get("site", "")))
            for node, context in self._contexts.items()
        ]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Hand messages to the nodes' threads and return their ids."""
        ids = []
        for message in messages:
            name = f"{next(self._ids):064x}"  # as long as Flower's, which are SHA-256
            message.metadata.__dict__["_message_id"] = name
            self._replies[name] = reply = self._pool.submit(self._answer, message)
            reply.add_done_callback(partial(self._arrive, name))
            ids.append(name)
        return ids

    def _arrive(self, name: str, _: Future[Message]) -> None:
        with self._arrival:
            self._arrived[name] = None
            self._arrival.notify_all()

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies that are there; wait a moment for the first if none is."""
        wanted = {*message_ids}
        with self._arrival:  # a pull costs what has come, not what is still waited for
            self._arrival.wait_for(lambda: not wanted.isdisjoint(self._arrived), 0.2)
            there = [name for name in self._arrived if name in wanted]
            for name in there:
                del self._arrived[name]
        return [self._replies.pop(name).result() for name in there]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Send messages and return all replies, in the order they were sent.

        Raises:
            TimeoutError: not all came in time.
        """
        names = list(self.push_messages(messages))
        with self._arrival:
            if not self._arrival.wait_for(lambda: self._arrived.keys() >= {*names}, timeout):
                raise TimeoutError(f"{len({*names} - self._arrived.keys())} of {len(names)} replies did not come")
            for name in names:
                del self._arrived[name]
        return [self._replies.pop(name).result() for name in names]

    def _answer(self, message: Message) -> Message:
        received = copy.copy(message)
        received.__dict__["_content"] = copy.copy(message.content)
        try:
            return self._app(received, self._contexts[message.metadata.dst_node_id])
        except Exception as error:  # what Flower's engines do with an exception of a ClientApp
            return Message(Error(code=2, reason=f"{type(error)}:<'{error}'>"), reply_to=message)
