"""The warm worker's door: a small gRPC service on a Unix socket that its owner alone can reach.

One method, bytes in and bytes out (`clients.worker.frames`), and gRPC's own health protocol: SERVING while the child
can take a message. The service holds neither torch nor data; `clients.worker.child_supervisor` looks after the child
that does.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import grpc
from flwr.app import RecordDict
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from clients.errors import refused
from clients.node import NodeContext
from clients.worker.call import METHOD, OPTIONS, SERVICE, address_of
from clients.worker.child_supervisor import Abandoned, ChildSupervisor, Failed, Limits
from clients.worker.frames import FrameError, Request, pack_reply, read_request
from clients.worker.private_folder import socket_in

_CALLERS = 32  # at the same time; all but one wait
_GRACE_SECONDS = 1.0


@contextmanager
def worker(folder: Path, place: NodeContext, limits: Limits | None = None) -> Iterator[ChildSupervisor]:
    """Serve a site's messages on the socket in a private folder; end the service and the child at the end.

    Args:
        folder: of mode 0700; holds the socket, and ``worker.log``, what the child prints.
        place: a site with data of its own.
        limits: what it allows.

    Raises:
        PermissionError: the folder is not ours alone.
        ValueError: its path is too long for a socket, or the place has no data of its own.
        OSError: the socket cannot be bound.
    """
    if not place.private:
        raise ValueError("a worker answers for a site with data of its own; give its place site and data")
    limits = limits or Limits()
    address = address_of(socket_in(folder))
    with ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(_CALLERS, "worker"))
        states = health.HealthServicer(experimental_non_blocking=True)
        _tell(states, False)
        supervisor = ChildSupervisor(place, limits, folder / "worker.log", lambda ready: _tell(states, ready))
        server = grpc.server(pool, options=OPTIONS)
        health_pb2_grpc.add_HealthServicer_to_server(states, server)
        server.add_generic_rpc_handlers((_handler(supervisor, limits, place),))
        try:
            server.add_insecure_port(address)
        except RuntimeError as error:
            raise OSError(f"the socket {address} cannot be bound; remove it, or choose another --state") from error
        stack.enter_context(supervisor)
        server.start()
        stack.callback(lambda: server.stop(_GRACE_SECONDS).wait())
        yield supervisor


def _tell(states: Any, ready: bool) -> None:
    state = health_pb2.HealthCheckResponse.SERVING if ready else health_pb2.HealthCheckResponse.NOT_SERVING
    for name in ("", SERVICE):
        states.set(name, state)


def _handler(supervisor: ChildSupervisor, limits: Limits, place: NodeContext) -> Any:
    def answer(frame: bytes, context: Any) -> bytes:
        try:
            request = read_request(frame)
        except FrameError as error:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        if reason := _too_many_threads(request, limits, place):
            return pack_reply(refused(reason))
        try:
            return supervisor.ask(frame, request.seconds, context.is_active)
        except Failed as failure:
            return pack_reply(refused(str(failure)))
        except Abandoned:
            return pack_reply(RecordDict())  # to nobody

    method = grpc.unary_unary_rpc_method_handler(answer)  # without serialisers: bytes as they are
    return grpc.method_handlers_generic_handler(SERVICE, {METHOD: method})


def _too_many_threads(request: Request, limits: Limits, place: NodeContext) -> str:
    threads = request.run_config.get("threads", 1)
    if limits.threads and isinstance(threads, int) and threads > limits.threads:
        return f"the run has threads={threads}, and site {place.site} allows {limits.threads}; lower threads"
    return ""
