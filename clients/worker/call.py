"""Asking the warm worker: all that the short-lived process of a message does; it imports neither torch nor NumPy code.

Flower starts a process for each message, which hands it over to the worker of the site and passes the answer on:

    connect    wait for `TURN`    send the message as a frame    wait for the answer's frame

Blocks of bytes by `multiprocessing.connection`; nothing is pickled. Who hangs up no longer wants the answer.
"""

import socket
import struct
import time
from collections.abc import Mapping
from multiprocessing.connection import Connection

from flwr.app import RecordDict

from clients.errors import refused
from clients.worker.frames import FrameError, pack, unpack
from fedasym.fields import Value

TURN = b"fedasym worker 2"  # what the worker says to the next in its queue; the number is that of this exchange
MOST_BYTES = 1 << 36  # of a frame: a model's matrices, whatever their size; more is none of ours but a broken one
_STALL_SECONDS = 30
_THERE_SECONDS = 60.0  # for the worker's socket, not its child, to be there: a site that is starting up
_USUAL_SECONDS = 3600.0
_LOOK_SECONDS = 0.05


def bounded(end: socket.socket) -> socket.socket:
    """Let no read or write of a socket wait for more than 30 s for its peer to move; return the socket."""
    for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
        end.setsockopt(socket.SOL_SOCKET, option, struct.pack("ll", _STALL_SECONDS, 0))
    return end


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
    frame = pack(content, kind=kind, run_config=dict(run_config), run_id=run_id)
    worker = _connect(path, time.monotonic() + there)
    if not worker:
        return _no(f"the worker of the site was not there within {there:g} s; is `python -m clients up` running there?")
    with worker:
        try:
            if not worker.poll(end - time.monotonic()):
                return _no("the worker of the site is still busy with an earlier message, or not up; see its log")
            if worker.recv_bytes(len(TURN)) != TURN:
                raise OSError
            worker.send_bytes(frame)
            if not worker.poll(end - time.monotonic()):
                return _no(
                    f"the worker of the site did not finish within {seconds:.3g} s and was restarted; raise "
                    "round-timeout of the run, or give a round less to do"
                )
            return unpack(worker.recv_bytes(MOST_BYTES))[1]
        except FrameError as error:
            return _no(f"the worker's reply cannot be read: {error}")
        except (EOFError, OSError):
            return _no(
                "the worker of the site is gone, or of another version of fedasym: restart the site after an update"
            )


def _no(reason: str) -> RecordDict:
    """Return a refusal that may pass: a worker comes back."""
    return refused(reason, passing=True)


def _connect(path: str, end: float) -> Connection | None:
    """Connect to a socket when somebody listens there; None if nobody does in time."""
    while True:
        try:
            with bounded(socket.socket(socket.AF_UNIX)) as ours:
                ours.connect(path)
                return Connection(ours.detach())
        except OSError:
            if time.monotonic() > end:
                return None
        time.sleep(_LOOK_SECONDS)


def _seconds(run_config: Mapping[str, Value]) -> float:
    seconds = run_config.get("round-timeout", _USUAL_SECONDS)
    usable = isinstance(seconds, (int, float)) and 0 < seconds < 1e9
    return float(seconds) if usable else _USUAL_SECONDS  # what is wrong with it the worker says, by name
