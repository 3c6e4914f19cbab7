"""Asking the warm worker: all that the short-lived process of a message does; it imports neither torch nor NumPy code.

Flower starts a process for each message, which hands it over to the worker of the site and passes the answer on.
"""

import socket
import time
from collections.abc import Mapping
from pathlib import Path

import grpc
from flwr.app import RecordDict

from clients.errors import refused
from clients.worker.frames import FrameError, Request, Value, pack_request, read_reply

SERVICE, METHOD = "fedasym.Worker", "Answer"
OPTIONS = [
    ("grpc.max_send_message_length", -1),  # a model's matrices, whatever their size
    ("grpc.max_receive_message_length", -1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.keepalive_time_ms", 60_000),  # a training is silent for hours; both ends are on one machine
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", 30_000),
]
_THERE_SECONDS = 60.0  # for the worker's service, not its child, to be there: a site that is starting up
_GRACE_SECONDS = 30.0  # for the worker to say that the time is up
_USUAL_SECONDS = 3600.0
_LOOK_SECONDS = 0.05


def address_of(path: str | Path) -> str:
    """Return a Unix socket's address as gRPC wants it."""
    return f"unix:{path}"


def ask_worker(path: str, kind: str, content: RecordDict, run_config: Mapping[str, Value], run_id: int) -> RecordDict:
    """Let the site's worker answer a message.

    Args:
        path: of the worker's socket.
        kind: of the message.
        content: its records.
        run_config: Flower's flat run config; ``round-timeout`` is how long the server waits, and so do we.
        run_id: Flower's id of the run.

    Returns:
        The reply's records; a refusal if the worker cannot be reached or does not answer.
    """
    seconds = _seconds(run_config)
    end = time.monotonic() + seconds
    there = min(_THERE_SECONDS, seconds)
    if not _is_there(path, time.monotonic() + there):
        return refused(
            f"the worker of the site was not there within {there:g} s; is `python -m clients up` running there?"
        )
    with grpc.insecure_channel(address_of(path), options=OPTIONS) as channel:
        left = max(end - time.monotonic(), 0.001)
        frame = pack_request(Request(kind, content, run_config, run_id, left))
        try:
            reply: bytes = channel.unary_unary(f"/{SERVICE}/{METHOD}")(frame, timeout=left + _GRACE_SECONDS)
        except grpc.RpcError as error:
            return refused(_told(error))
    try:
        return read_reply(reply)
    except FrameError as error:
        return refused(f"the worker's reply cannot be read: {error}")


def _is_there(path: str, end: float) -> bool:
    """Wait until somebody listens at a socket."""
    while True:
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(path)
                return True
            except OSError:
                if time.monotonic() > end:
                    return False
        time.sleep(_LOOK_SECONDS)


def _seconds(run_config: Mapping[str, Value]) -> float:
    seconds = run_config.get("round-timeout", _USUAL_SECONDS)
    usable = isinstance(seconds, (int, float)) and 0 < seconds < 1e9
    return float(seconds) if usable else _USUAL_SECONDS  # what is wrong with it the worker says, by name


def _told(error: grpc.RpcError) -> str:
    """Say how a call failed; only of a frame that was refused the text is ours to pass on."""
    code = error.code().name if isinstance(error, grpc.Call) else type(error).__name__
    if code == "INVALID_ARGUMENT":
        return f"the worker of the site refused the message: {error.details()}"
    return f"the worker of the site did not answer ({code}); the log of the site says more"
