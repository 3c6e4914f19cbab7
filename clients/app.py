"""The ClientApp: answer the handshake, train and send only what trains.

At a site with a warm worker (``worker`` in the node config, its socket) the message is handed over to it, and this
process, of which Flower starts one for every message, never imports torch.
"""

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from clients.errors import QUERY, TRAIN, WARM

app = ClientApp()


@app.query()
def query(message: Message, context: Context) -> Message:
    """Compare the server's contract with our own and say which data we hold."""
    return _reply(QUERY, message, context)


@app.query("warm")
def warm(message: Message, context: Context) -> Message:
    """Load the model ahead of the handshake."""
    return _reply(WARM, message, context)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Load the broadcast matrices, train them on the client's data, reply with them."""
    return _reply(TRAIN, message, context)


def _reply(kind: str, message: Message, context: Context) -> Message:
    worker, config, run_id = str(context.node_config.get("worker", "")), context.run_config, context.run_id
    if worker:
        from clients.worker.call import ask_worker

        return Message(ask_worker(worker, kind, message.content, config, run_id), reply_to=message)
    from clients.node import node_context_of
    from fedasym.ops.paused_gc import uncollected

    with uncollected():
        from clients.message_handler import answer  # here, not above: it imports torch

    return Message(
        answer(kind, message.content, config, run_id, node_context_of(context.node_config)), reply_to=message
    )
