"""The comparison's tuning: the same grid of local rates for every method, on a cut of the training data.

The test set is not read, and the seed is none of the comparison's. A grid point's score is the mean over the tasks of
the mean metric of the last two evaluations.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from fedasym.settings import Value
from simulations.cells import Cell
from simulations.compare import run_cells
from simulations.results import read_lines

SEED = 1000
CUT = 500  # training examples that judge a grid point
GRID: tuple[dict[str, Value], ...] = tuple(
    {"optimizer": "sgd", "lr": lr, "head-lr": 0.5} for lr in (0.03, 0.1, 0.3, 1.0, 3.0)
)


def tune_rates(
    methods: Sequence[str],
    tasks: Sequence[str],
    split: str,
    base: Mapping[str, Any],
    results: Path,
    work: Path,
    jobs: int,
    console: Console,
) -> None:
    """Run the grid points that have no line yet and append their lines.

    Args:
        methods: what to tune.
        tasks: on what.
        split: who holds what.
        base: the comparison's run config.
        results: file of lines, one a method, task and grid point.
        work: folder of the runs.
        jobs: processes at the same time.
        console: where to show it.
    """
    done = {_key(line["cell"]) for line in read_lines(results)}
    cells = [
        Cell(task, split, method, SEED, tuple(sorted(point.items())))
        for point in GRID
        for task in tasks
        for method in methods
    ]
    results.parent.mkdir(parents=True, exist_ok=True)
    config = {**base, "validation-cut": CUT, "test-cap": 0}
    for line in run_cells([cell for cell in cells if _key(_plain(cell)) not in done], config, work, jobs, console):
        values = [value for value in line["metric_by_round"] if value is not None][-2:]
        rates = {key: line["settings"][key.replace("-", "_")] for key in GRID[0]}
        kept = {key: line[key] for key in ("metric_by_round", "train_loss_by_round", "settings", "versions", "seconds")}
        cell = {"method": line["method"], "task": line["task"], **rates}
        with results.open("a") as file:
            file.write(json.dumps({"cell": cell, "score": sum(values) / len(values), **kept}) + "\n")


def grid_points(lines: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return one line a method and grid point, ``score`` being the mean over tasks and ``tasks`` each one's."""
    points: dict[str, dict[str, Any]] = {}
    for line in lines:
        cell = {key: value for key, value in line["cell"].items() if key != "task"}
        point = points.setdefault(_key(cell), {"cell": cell, "tasks": {}})
        point["tasks"][line["cell"]["task"]] = line["score"]
    for point in points.values():
        point["score"] = sum(point["tasks"].values()) / len(point["tasks"])
    return list(points.values())


def best_rates(lines: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Value]]:
    """Return each method's winner as a run config; only grid points with all of the method's tasks count."""
    best: dict[str, dict[str, Any]] = {}
    points = grid_points(lines)
    for point in points:
        method = point["cell"]["method"]
        wanted = max(len(other["tasks"]) for other in points if other["cell"]["method"] == method)
        if len(point["tasks"]) == wanted and point["score"] > best.get(method, {"score": float("-inf")})["score"]:
            best[method] = point
    return {method: {key: point["cell"][key] for key in GRID[0]} for method, point in best.items()}


def _plain(cell: Cell) -> dict[str, Any]:
    return {"method": cell.method, "task": cell.task, **dict(cell.rates)}


def _key(cell: Mapping[str, Any]) -> str:
    return json.dumps(cell, sort_keys=True)
