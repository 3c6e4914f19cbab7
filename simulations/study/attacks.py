"""What rules of averaging are worth when some clients lie: ``python -m simulations.study.attacks --out FILE.jsonl``.

The demo's task, with none, one or three of its ten clients sending something else than what they trained. Each line of
the file is one run: rule, attack, how many, accuracy after each round that is evaluated, or why the run ended. Cells
that are in the file are not run again.
"""

import argparse
import logging
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from numpy.typing import NDArray

from clients.app import app as honest
from clients.node import NodeContext
from clients.session import holding_of, session_of
from fedasym.aggregation.base import aggregator_of
from fedasym.files import append_line, read_lines
from fedasym.methods import METHODS
from fedasym.methods.base import pick
from fedasym.rng import generator
from fedasym.runs.record import read_rounds, versions
from fedasym.settings import Settings, from_run_config
from fedasym.wire import records
from fedasym.wire.contract import as_stated
from server.failure import FederationError
from simulations.engines.in_process import run_local
from simulations.run import read_settings

CONFIG = Path(__file__).parents[1] / "configs" / "asymmetric.toml"
RULES = ("exact", "norm_bound:2", "median", "trimmed:0.3", "multi_krum:3", "bulyan:1")
LIARS = (1, 3)  # of three Bulyan bears none: it needs 4 F + 3 replies
Float32 = NDArray[np.float32]
# Replies by what was held at the round's start, the round, the client, and whether its labels were flipped.
TrainedBefore = dict[tuple[str, int, int, bool], RecordDict]
Attack = Callable[[Float32, Float32, np.random.Generator], Float32]


def flipped(held: Float32, trained: Float32, rng: np.random.Generator) -> Float32:
    """Send the change with the opposite sign."""
    return np.asarray(2.0 * held - trained, np.float32)


def times_100(held: Float32, trained: Float32, rng: np.random.Generator) -> Float32:
    """Send a hundred times the change."""
    return np.asarray(held + 100.0 * (trained - held), np.float32)


def noise(held: Float32, trained: Float32, rng: np.random.Generator) -> Float32:
    """Send normal values, ten times as large as the change."""
    size = 10.0 * float(np.sqrt(np.mean(np.square(trained - held))))
    return np.asarray(held + size * rng.standard_normal(held.shape), np.float32)


def as_trained(held: Float32, trained: Float32, rng: np.random.Generator) -> Float32:
    """Send what was trained: on labels that were turned round before."""
    return trained


ATTACKS: dict[str, Attack] = {
    "sign flipped": flipped, "times 100": times_100, "random": noise, "labels flipped": as_trained,
}  # fmt: skip


def lying(attack: str, liars: set[int], trained_before: TrainedBefore) -> ClientApp:
    """Return the real ClientApp, of which some clients send something else than what they trained.

    Args:
        attack: one of `ATTACKS`.
        liars: their numbers.
        trained_before: a client's training goes by nothing but these keys, so runs that begin alike share it.
    """
    app = ClientApp()
    app.query()(lambda message, context: honest(message, context))
    app.query("warm")(lambda message, context: honest(message, context))

    @app.train()
    def train(message: Message, context: Context) -> Message:
        about = records.about(message.content)
        client, lies = int(about["client"]), int(about["client"]) in liars
        session = session_of(as_stated(from_run_config(context.run_config).resolved(), about))
        schema = session.contract.schema
        flips = lies and attack == "labels flipped"
        key = (records.digest(records.unpack(message.content, schema)), int(about["round"]), client, flips)
        if key not in trained_before:
            holding = holding_of(session, NodeContext())
            own = session.encoded(holding, client)
            if flips:
                holding.encoded[client] = replace(own, labels=1 - own.labels)
            trained_before[key] = honest(message, context).content
            holding.encoded[client] = own
        reply = Message(RecordDict({**trained_before[key]}), reply_to=message)
        if not lies:
            return reply
        held = pick(records.unpack(message.content, schema), schema)
        trained = records.unpack(reply.content, schema)
        rng = generator(session.settings.seed, "attack", int(about["round"]), client)
        sent = {name: ATTACKS[attack](held[name], trained[name], rng) for name in trained}
        reply.content["matrices"] = records.pack(sent, schema, {}).array_records["matrices"]
        return reply

    return app


def cells(rules: Sequence[str], liars: Sequence[int]) -> list[dict[str, Any]]:
    """Return the grid: each rule without liars, and with each attack by some of them."""
    grid: list[dict[str, Any]] = [{"rule": rule, "attack": "none", "liars": 0} for rule in rules]
    for count in liars:
        for attack in ATTACKS:
            grid += [{"rule": rule, "attack": attack, "liars": count} for rule in rules]
    return grid


def run_cell(
    cell: dict[str, Any],
    settings: Settings,
    workers: int,
    folder: Path,
    before: TrainedBefore,
) -> tuple[list[dict[str, Any]], str]:
    """Run one cell; return its rounds' lines, and why it ended before its time, or ""."""
    chosen = generator(settings.seed, "liars").permutation(settings.num_clients)[: cell["liars"]]
    settings = replace(settings, aggregation=cell["rule"], out=str(folder), keep_best=False)
    app = lying(cell["attack"], {*map(int, chosen)}, before)
    try:
        return read_rounds(run_local(settings, workers, app=app)), ""
    except FederationError as error:
        return read_rounds(folder), str(error)


def main() -> None:
    """Run what is missing of the grid."""
    parser = argparse.ArgumentParser(prog="python -m simulations.study.attacks", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="appended to")
    parser.add_argument("--rules", nargs="+", default=list(RULES), metavar="RULE", help=f"{' '.join(RULES)}")
    parser.add_argument("--liars", nargs="+", type=int, default=list(LIARS), metavar="N", help="of ten clients (1 3)")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="settings on top of the demo's")
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="clients at the same time (2)")
    told = parser.parse_args()
    logging.getLogger("fedasym").setLevel(logging.WARNING)
    settings = read_settings(CONFIG, told.set, Path("unused"))
    if METHODS[settings.method].remembers or settings.head == "local" or settings.codec != "identity":
        parser.error("runs share what clients have trained, so what a client keeps on its disk cannot be among it")
    lines = read_lines(told.out)
    if any(line["settings"] != told.set for line in lines):
        parser.error(
            f"{told.out} holds runs of other settings: --set {' '.join(lines[0]['settings'])}; use another file"
        )
    done = [{key: line[key] for key in ("rule", "attack", "liars")} for line in lines]
    grid = [cell for cell in cells(told.rules, told.liars) if cell not in done]
    before: TrainedBefore = {}
    for number, cell in enumerate(grid, 1):
        aggregator_of(cell["rule"])
        with tempfile.TemporaryDirectory() as folder:
            rows, ended = run_cell(cell, settings, told.workers, Path(folder) / "run", before)
        accuracies = [row["metrics"]["accuracy"] for row in rows if row["metrics"]["accuracy"] is not None]
        line = {
            **cell, "accuracy": accuracies, "ended": ended,
            "rejected": sum(row["clients_rejected"] for row in rows),
            "digest": rows[-1]["digest"] if rows else "",
            "settings": told.set, "clients": settings.num_clients, "seed": settings.seed,
            "seconds": round(sum(row["seconds"] for row in rows), 1), "versions": versions(),
        }  # fmt: skip
        append_line(told.out, line)
        print(
            f"{number}/{len(grid)}  {cell['rule']}, {cell['attack']}, {cell['liars']}: {accuracies} {ended}", flush=True
        )


if __name__ == "__main__":
    main()
