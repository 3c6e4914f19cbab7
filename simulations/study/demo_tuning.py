"""The demo's tuning, ``python -m simulations tune``: one grid of local and server optimizers for both methods.

The test set is not read: each cell is judged on 1,000 sentences cut off the training data, by the mean accuracy of its
last three rounds.
"""

from collections.abc import Mapping
from typing import Any

from fedasym.fields import Value
from fedasym.settings import Settings
from simulations.study.cells import Cell
from simulations.study.results import RESULTS
from simulations.study.runner import Study
from simulations.study.tuning import failed, mean_of_last

TUNING = RESULTS / "tuning.jsonl"
METHODS = ("asymmetric", "lora")
# What all cells have been run with, those of another machine and another day too.
FIXED = {
    "validation-cut": 1000, "num-rounds": 6, "local-steps": 10, "batch-size": 16, "dtype": "bfloat16",
    "attention": "eager",
}  # fmt: skip


def _local(optimizer: str, lr: float, head_lr: float) -> dict[str, Value]:
    return {"optimizer": optimizer, "lr": lr, "head-lr": head_lr}


GRID = [
    *(_local("sgd", lr, 0.5) for lr in (0.1, 0.3, 1.0, 3.0)),
    *(_local("adamw", lr, 1e-3) for lr in (1e-3, 3e-3)),
]
# The server's optimizer, with the local one that was best for both; a cell that names none takes the plain mean.
_BEST = _local("sgd", 0.3, 0.5)
_MOMENTUM = {**_BEST, "server-optimizer": "momentum", "server-lr": 1.0, "server-momentum": 0.5}
GRID += [
    _MOMENTUM,
    {**_MOMENTUM, "server-momentum": 0.9},
    {**_MOMENTUM, "server-lr": 0.3, "server-momentum": 0.9},
    {**_BEST, "server-optimizer": "adam", "server-lr": 0.01, "server-momentum": 0.9},
]
# One seed more: whether momentum is better than the plain mean beyond one seed's luck.
POINTS = [*((0, point) for point in GRID), *((1, point) for point in (_BEST, _MOMENTUM))]


def demo_study() -> Study:
    """Return the grid: one cell a method, grid point and seed, on the demo's task and split."""
    demo = Settings()
    cells = [
        Cell(demo.task, demo.split, method, seed, tuple(sorted(point.items())))
        for seed, point in POINTS
        for method in METHODS
    ]
    return Study(cells, FIXED, _key, _values, failed)


def _key(cell: Cell) -> dict[str, Any]:
    seed = {"seed": cell.seed} if cell.seed else {}
    return {"cell": {"method": cell.method, **dict(cell.overrides), **seed}}


def _values(line: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "score": mean_of_last(line["metric_by_round"], 3),
        "accuracy": line["metric_by_round"],
        "train_loss": line["train_loss_by_round"],
        "mismatch": line["mismatch_by_round"],
        "payload_up_per_client_round": line["payload_up_per_client_round"],
        "seconds": round(sum(line["seconds_by_round"]), 1),
        "settings": {key.replace("_", "-"): value for key, value in line["settings"].items()},
        "versions": line["versions"],
    }
