"""The process that holds model, A and tokens: one message after another, until the worker's service closes the pipe.

``python -m clients.worker.child FD PLACE THREADS``: FD is our end of the pipe, PLACE a `NodeContext` as JSON, THREADS
the most a run may train with (0: as many as it says). Standard input is a pipe that nobody writes to; it closes when
the service's process ends, however it ends, and then so do we.
"""

import importlib
import json
import os
import sys
import threading
from multiprocessing.connection import Connection

from flwr.app import RecordDict

from clients.errors import hidden, refused
from clients.node import NodeContext
from clients.worker.call import MOST_BYTES
from clients.worker.frames import FrameError, pack, unpack

READY = b"ready"
# All that a message needs, so that the first one waits for none of them.
_WARM = ("torch", "pandas", "transformers.models.auto.modeling_auto", "transformers.models.auto.tokenization_auto")


def serve(pipe: Connection, place: NodeContext, threads: int) -> None:
    """Import what the work needs, say so, and answer messages until the service is gone."""
    for name in _WARM:
        importlib.import_module(name)
    try:
        pipe.send_bytes(READY)
        while True:
            frame = pipe.recv_bytes(MOST_BYTES)
            try:
                reply = pack(_answer(frame, place, threads))
            except Exception as error:  # of an answer that is no record; the text may hold data
                reply = pack(refused(hidden(error, place), passing=True))
            pipe.send_bytes(reply)
    except (EOFError, OSError):
        return


def _answer(frame: bytes, place: NodeContext, threads: int) -> RecordDict:
    from clients.message_handler import answer

    try:
        about, content = unpack(frame)
    except FrameError as error:
        return refused(f"the worker of the site cannot read the message: {error}")
    asked = about["run_config"].get("threads", 1)
    if threads and isinstance(asked, int) and asked > threads:
        return refused(f"the run has threads={asked}, and site {place.site} allows {threads}; lower threads")
    return answer(content=content, place=place, **about)


def _end_with_the_service() -> None:
    while os.read(0, 4096):
        pass
    os._exit(0)  # from a thread, and in the midst of a training


if __name__ == "__main__":
    threading.Thread(target=_end_with_the_service, daemon=True).start()
    with Connection(int(sys.argv[1])) as inherited:
        serve(inherited, NodeContext(**json.loads(sys.argv[2])), int(sys.argv[3]))
