"""What many light clients cost in process: one JSON line for each number of clients; see --out.

A BERT of one layer (hidden size 32), one local step of four examples, so that what is left beside the step is what the
system itself costs: messages, checks, digests, the mean, the record; one client after another, and 16 in one pass
(``cohort``). Each number runs in a process of its own, with one worker; the round that is timed is the second of three:
in the first the clients are made, and in the last each of them computes the fingerprint of W anew, and the run is
evaluated. Memory is the largest resident set of the process after each round.
"""

import argparse
import itertools
import json
import logging
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import psutil

from benchmarks.result_line import machine, make_parser, say

ROUNDS = 3


def measure(clients: int, cohort: int) -> dict[str, Any]:
    """Run a federation in this process, with so many clients in one pass, and return what it cost."""
    from fedasym.runs.record import read_rounds
    from simulations.engines.in_process import run_local
    from tests.world import make_data, make_model, tiny_settings

    logging.getLogger("fedasym").setLevel(logging.ERROR)
    spent: list[float] = []
    held: list[int] = []
    client_side, server_side = import_module("clients.train_round"), import_module("server.lifecycle")
    ends = server_side.run_round

    def timed(steps: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            try:
                return steps(*args, **kwargs)
            finally:
                spent.append(time.perf_counter() - began)

        return run

    def watched_round(*args: Any, **kwargs: Any) -> Any:
        began = time.perf_counter()
        try:
            return ends(*args, **kwargs)
        finally:
            spent.append(began - time.perf_counter())  # negative: a round's end
            held.append(psutil.Process().memory_info().rss)

    for name in ("train_steps", "train_together"):
        client_side.__dict__[name] = timed(client_side.__dict__[name])
    server_side.__dict__.update(run_round=watched_round)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        make_model(root / "model")
        make_data(root / "data", train=4 * clients)
        settings = tiny_settings(
            root, num_clients=clients, num_rounds=ROUNDS, local_steps=1, batch_size=4, split="iid", min_examples=1,
            eval_every=ROUNDS, cohort=cohort, out=str(root / "run"),
        )  # fmt: skip
        rows = read_rounds(run_local(settings, 1))
    first, second, last = (i for i, seconds in enumerate(spent) if seconds < 0)
    whole, training = -spent[second], sum(spent[first + 1 : second])
    return {
        "clients": clients,
        "cohort": cohort,
        "valid": [row["clients_valid"] for row in rows],
        "rejected": [row["clients_rejected"] for row in rows],
        "round_seconds": round(whole, 3),
        "last_round_seconds": round(-spent[last], 3),
        "step_ms": round(1e3 * training / clients, 3),
        "beside_the_step_ms": round(1e3 * (whole - training) / clients, 3),
        "resident_mb_after_each_round": [round(size / 1e6, 1) for size in held],
        "digest": rows[-1]["digest"],
    }


def main() -> None:
    """Measure each number of clients in a process of its own."""
    parser = make_parser(__doc__)
    parser.add_argument("--clients", type=int, nargs="+", default=[10, 100, 1000, 3000], metavar="N")
    parser.add_argument("--cohort", type=int, nargs="+", default=[1, 16], help="clients in one pass")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)  # in this process, the one number
    told = parser.parse_args()
    if told.here:
        print(json.dumps(measure(told.clients[0], told.cohort[0])))
        return
    for clients, cohort in itertools.product(told.clients, told.cohort):
        command = [sys.executable, "-m", "benchmarks.scale", "--here", f"--clients={clients}", f"--cohort={cohort}"]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        say({"benchmark": "scale", **machine("torch", "flwr"), **json.loads(done.stdout.splitlines()[-1])}, told.out)


if __name__ == "__main__":
    main()
