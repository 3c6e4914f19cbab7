"""The ClientApp: answer the handshake, train and send only what trains.

A refusal that we can name travels back as a reply of its own, so that the server can say which client refused and why.
"""

from contextlib import suppress
from pathlib import Path

from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from clients.site import site_of
from clients.work import Behind, Refusal, handshake, train_round
from fedasym.record import run_folder
from fedasym.settings import Settings, from_run_config

app = ClientApp()


@app.query()
def query(message: Message, context: Context) -> Message:
    """Compare the server's contract with our own and say which data we hold."""
    try:
        settings = from_run_config(context.run_config).resolved()
        about = handshake(site_of(settings), message.content)
    except (Refusal, ValueError) as error:
        return Message(_refused(error), reply_to=message)
    node = {key: int(value) for key, value in context.node_config.items() if key in ("partition-id", "num-partitions")}
    return Message(RecordDict({"about": ConfigRecord({**about, **node})}), reply_to=message)


@app.query("warm")
def warm(message: Message, context: Context) -> Message:
    """Load model and data ahead of the handshake, while the server loads its own; what fails is said there."""
    with suppress(ValueError, OSError):
        site_of(from_run_config(context.run_config).resolved())
    return Message(RecordDict(), reply_to=message)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Load the broadcast matrices, train them on the client's data, reply with them."""
    try:
        settings = from_run_config(context.run_config).resolved()
        content, metrics = train_round(site_of(settings), message.content, _folder(settings, context))
    except (Refusal, ValueError, FloatingPointError) as error:
        return Message(_refused(error), reply_to=message)
    content["metrics"] = MetricRecord({**metrics})
    return Message(content, reply_to=message)


def _folder(settings: Settings, context: Context) -> Path:
    """Return where this site keeps what never leaves it: its node config's ``state-dir``, or the run folder."""
    own = context.node_config.get("state-dir")
    return Path(str(own)) if own else run_folder(settings, context.run_id) / "clients"


def _refused(error: Exception) -> RecordDict:
    reason = f"{type(error).__name__}: {error}"
    return RecordDict({"refusal": ConfigRecord({"reason": reason, "behind": isinstance(error, Behind)})})
