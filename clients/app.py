"""The ClientApp: answer the handshake, train and send only what trains."""

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from clients.answer import QUERY, TRAIN, WARM, answer
from clients.place import place_of

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
    place = place_of(context.node_config)
    return Message(answer(kind, message.content, context.run_config, context.run_id, place), reply_to=message)
