"""What many light clients cost in process: one JSON line for each number of clients; see --out.

A BERT of one layer (hidden size 32), one local step of four examples, so that what is left beside the step is what the
system itself costs: messages, checks, digests, the mean, the record. Each number runs in a process of its own, with one
worker; the round that is timed is the last of three, and evaluates nothing but at its end. Memory is the largest
resident set of the process after each round.
"""

import argparse
import json
import logging
import subprocess
import sys
import tempfile
import time
from importlib import import_module
from pathlib import Path
from typing import Any

import psutil

from benchmarks.result_line import machine, make_parser, say

ROUNDS = 3


def measure(clients: int) -> dict[str, Any]:
    """Run a federation in this process and return what it cost."""
    from fedasym.runs.record import read_rounds
    from simulations.engines.in_process import run_local
    from tests.world import make_data, make_model, tiny_settings

    logging.getLogger("fedasym").setLevel(logging.ERROR)
    spent: list[float] = []
    held: list[int] = []
    client_side, server_side = import_module("clients.train_round"), import_module("server.lifecycle")
    steps, ends = client_side.train_steps, server_side.run_round

    def timed_steps(*args: Any, **kwargs: Any) -> Any:
        began = time.perf_counter()
        try:
            return steps(*args, **kwargs)
        finally:
            spent.append(time.perf_counter() - began)

    def watched_round(*args: Any, **kwargs: Any) -> Any:
        began = time.perf_counter()
        try:
            return ends(*args, **kwargs)
        finally:
            spent.append(began - time.perf_counter())  # negative: a round's end
            held.append(psutil.Process().memory_info().rss)

    client_side.__dict__.update(train_steps=timed_steps)
    server_side.__dict__.update(run_round=watched_round)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        make_model(root / "model")
        make_data(root / "data", train=4 * clients)
        settings = tiny_settings(
            root, num_clients=clients, num_rounds=ROUNDS, local_steps=1, batch_size=4, split="iid", min_examples=1,
            eval_every=ROUNDS, out=str(root / "run"),
        )  # fmt: skip
        rows = read_rounds(run_local(settings, 1))
    last = len(spent) - 1
    first = max(i for i in range(last) if spent[i] < 0) + 1
    whole, training = -spent[last], sum(spent[first:last])
    return {
        "clients": clients,
        "valid": [row["clients_valid"] for row in rows],
        "rejected": [row["clients_rejected"] for row in rows],
        "round_seconds": round(whole, 3),
        "step_ms": round(1e3 * training / clients, 3),
        "beside_the_step_ms": round(1e3 * (whole - training) / clients, 3),
        "resident_mb_after_each_round": [round(size / 1e6, 1) for size in held],
        "digest": rows[-1]["digest"],
    }


def main() -> None:
    """Measure each number of clients in a process of its own."""
    parser = make_parser(__doc__)
    parser.add_argument("--clients", type=int, nargs="+", default=[10, 100, 1000, 3000], metavar="N")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)  # in this process, the one number
    told = parser.parse_args()
    if told.here:
        print(json.dumps(measure(told.clients[0])))
        return
    for clients in told.clients:
        command = [sys.executable, "-m", "benchmarks.scale", "--here", "--clients", str(clients)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        say({"benchmark": "scale", **machine("torch", "flwr"), **json.loads(done.stdout.splitlines()[-1])}, told.out)


if __name__ == "__main__":
    main()
