"""The ClientApp: model and share anew for every message."""

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from peft import get_peft_model_state_dict, set_peft_model_state_dict

from . import workload

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Load the adapter, train it, send A and B back."""
    config = dict(context.run_config)
    model = workload.make_model(config)
    set_peft_model_state_dict(model, message.content["arrays"].to_torch_state_dict())
    node = context.node_config
    own, collate = workload.share(config, int(node["partition-id"]), int(node["num-partitions"]))
    loss = workload.train(model, own, collate, config)
    metrics = MetricRecord({"num-examples": len(own), "loss": loss})
    content = RecordDict({"arrays": ArrayRecord(get_peft_model_state_dict(model)), "metrics": metrics})
    return Message(content, reply_to=message)
