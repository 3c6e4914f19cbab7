"""The ServerApp: Flower's FedAvg over A and B, which notes when each round's replies were there."""

import json
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from peft import get_peft_model_state_dict

from . import workload

app = ServerApp()


class _Timed(FedAvg):
    def __init__(self) -> None:
        super().__init__(fraction_evaluate=0.0, min_available_nodes=2)
        self.ends: list[float] = []
        self.replies: list[int] = []

    def aggregate_train(self, server_round: int, replies: Any) -> Any:
        replies = list(replies)
        self.ends.append(time.time())
        self.replies.append(sum(reply.has_content() for reply in replies))
        return super().aggregate_train(server_round, replies)


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the rounds and write down how long each took."""
    config, began = dict(context.run_config), time.time()
    strategy = _Timed()
    arrays = ArrayRecord(get_peft_model_state_dict(workload.make_model(config)))
    strategy.start(grid=grid, initial_arrays=arrays, num_rounds=config["rounds"])
    seconds = [end - start for start, end in pairwise([began, *strategy.ends])]
    Path(config["times"]).write_text(json.dumps({"seconds": seconds, "replies": strategy.replies}))
