"""The process that holds model, A and tokens: one message after another, until its supervisor closes the socket.

``python -m clients.worker.child FD PLACE``: FD is an open socket to the worker supervisor, PLACE a `NodeContext` as
JSON. Standard input is a pipe that nobody writes to; it closes when the supervisor's process ends, however it ends, and
then so do we.
"""

import importlib
import json
import os
import socket
import sys
import threading

from clients.errors import hidden, refused
from clients.node import NodeContext
from clients.worker import pipe
from clients.worker.frames import pack_reply, read_request

READY = b"ready"
# All that a message needs, so that the first one waits for none of them.
_WARM = ("torch", "pandas", "transformers.models.auto.modeling_auto", "transformers.models.auto.tokenization_auto")


def serve(channel: socket.socket, place: NodeContext) -> None:
    """Import what the work needs, say so, and answer messages until the supervisor is gone."""
    for name in _WARM:
        importlib.import_module(name)
    from clients.handle import answer

    try:
        pipe.write(channel, READY)
        while True:
            block = pipe.read(channel)
            try:
                asked = read_request(block)
                content = answer(asked.kind, asked.content, asked.run_config, asked.run_id, place)
                reply = pack_reply(content)
            except Exception as error:  # of an answer that is no record; the text may hold data
                reply = pack_reply(refused(hidden(error, place)))
            pipe.write(channel, reply)
    except pipe.Closed:
        return


def _end_with_the_keeper() -> None:
    while os.read(0, 4096):
        pass
    os._exit(0)  # from a thread, and in the midst of a training


if __name__ == "__main__":
    threading.Thread(target=_end_with_the_keeper, daemon=True).start()
    with socket.socket(fileno=int(sys.argv[1])) as inherited:
        serve(inherited, NodeContext(**json.loads(sys.argv[2])))
