"""Tune the local and the server's optimizer of each method: one grid for all, on a cut of the training data.

``python -m simulations tune`` runs what is not yet in results/tuning.jsonl, one line per cell, and prints
the winners. The test set is not read: each cell is judged on 1,000 sentences cut off the training data, by the mean
accuracy of its last three rounds.
"""

import json
import shutil
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from fedasym.reports.study.tuning_table import tuning_sheet
from fedasym.runs.record import read_json, read_rounds, versions
from fedasym.settings import Settings
from server.app import only_user
from simulations.engines.in_process import run_local
from simulations.run import read_settings
from simulations.study.results import RESULTS, read_lines

TUNING = RESULTS / "tuning.jsonl"
METHODS = ("asymmetric", "lora")
GRID = [
    *({"optimizer": "sgd", "lr": lr, "head-lr": 0.5} for lr in (0.1, 0.3, 1.0, 3.0)),
    *({"optimizer": "adamw", "lr": lr, "head-lr": 1e-3} for lr in (1e-3, 3e-3)),
]
# The server's optimizer, with the local one that was best for both; a cell that names none takes the plain mean.
_LOCAL = {"optimizer": "sgd", "lr": 0.3, "head-lr": 0.5}
_MOMENTUM = {"server-optimizer": "momentum", "server-lr": 1.0, "server-momentum": 0.5}
GRID += [
    {**_LOCAL, **_MOMENTUM},
    {**_LOCAL, **_MOMENTUM, "server-momentum": 0.9},
    {**_LOCAL, **_MOMENTUM, "server-lr": 0.3, "server-momentum": 0.9},
    {**_LOCAL, "server-optimizer": "adam", "server-lr": 0.01, "server-momentum": 0.9},
]
# Whether momentum is better than the plain mean beyond one seed's luck.
GRID += [{**cell, "seed": 1} for cell in (_LOCAL, {**_LOCAL, **_MOMENTUM})]
FIXED = {"validation-cut": 1000, "num-rounds": 6, "local-steps": 10, "batch-size": 16}


def tune(work: Path, workers: int, console: Console, shard: int, shards: int) -> None:
    """Run the cells that have no line yet, then print every cell and mark the winners.

    Args:
        work: folder for the runs; a finished cell's is removed.
        workers: clients at the same time.
        console: where to show it.
        shard: run only every ``shards``-th cell, starting at this one.
        shards: how many processes share the grid.

    Raises:
        FederationError: another process runs this part of the grid.
    """
    with only_user(work if shards == 1 else work / f"shard-{shard}-of-{shards}"):
        _tune(work, workers, console, shard, shards)


def _tune(work: Path, workers: int, console: Console, shard: int, shards: int) -> None:
    cells = [{"method": method, **cell} for cell in GRID for method in METHODS]
    own = cells[shard::shards]
    for place, cell in enumerate(own, start=1):
        if _key(cell) in {_key(line["cell"]) for line in read_lines(TUNING)}:
            continue
        name = "-".join(str(value) for value in cell.values())
        folder = (work / name).absolute()
        settings = read_settings(
            None, [f"{key}={json.dumps(value)}" for key, value in {**cell, **FIXED}.items()], folder
        )
        console.print(f"cell {place} of {len(own)}: {name}", markup=False)
        run_local(settings, workers)
        line = result_line(cell, folder, settings)
        with TUNING.open("a") as file:
            file.write(json.dumps(line) + "\n")
        shutil.rmtree(folder)
        console.print(f"{name}: {line['score']:.4f}")
    console.print(_table(read_lines(TUNING)))


def result_line(cell: dict[str, Any], folder: Path, settings: Settings) -> dict[str, Any]:
    """Return the raw line of a finished cell; ``score`` is the mean metric of the last three rounds."""
    rounds, config = read_rounds(folder), read_json(folder / "config.json")
    values = [row["metrics"]["accuracy"] for row in rounds]
    return {
        "cell": cell,
        "score": sum(values[-3:]) / len(values[-3:]),
        "accuracy": values,
        "train_loss": [row["train_loss"] for row in rounds],
        "mismatch": [row["mismatch"] for row in rounds],
        "payload_up_per_client_round": rounds[0]["payload_up"] / rounds[0]["clients_valid"],
        "seconds": round(sum(row["seconds"] for row in rounds), 1),
        "settings": {**settings.resolved().run_config(), "dtype": config["settings"]["dtype"], "out": ""},
        "versions": versions(),
    }


def _key(cell: dict[str, Any]) -> str:
    return json.dumps(cell, sort_keys=True)


def _table(lines: list[dict[str, Any]]) -> Table:
    table = Table(title="accuracy on the cut, mean of the last three rounds")
    sheet = tuning_sheet(lines)
    for name in sheet.columns:
        table.add_column(name)
    for row in sheet.rows:
        table.add_row(*(entry.text for entry in row))
    return table
