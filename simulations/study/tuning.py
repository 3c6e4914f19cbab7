"""The comparison's tuning: the same grid of local rates for every method, on a cut of the training data.

The test set is not read, and the seed is none of the comparison's. A grid point's score is the mean metric of the last
two evaluations. A method takes, on a task that was tuned on, that task's winner; on another, the point with the best
mean over the tuned ones. A point whose training fails is out.
"""

import json
import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from fedasym.fields import Value
from simulations.study.cells import Cell
from simulations.study.compare import Comparison, Rates
from simulations.study.runner import Study

SEED = 1000
CUT = 500  # training examples that judge a grid point
TUNED = frozenset({"optimizer", "lr", "head-lr"})  # the settings of a grid point
HEAD_LR = {"sgd": 0.5, "adamw": 1e-3}  # the output layer's, which is not tuned
GRID: tuple[dict[str, Value], ...] = tuple(
    {"optimizer": "sgd", "lr": lr, "head-lr": HEAD_LR["sgd"]} for lr in (0.03, 0.1, 0.3, 1.0)
)


def grid_of(points: Sequence[str]) -> tuple[dict[str, Value], ...]:
    """Read a grid: each point an optimizer and its rate.

    Raises:
        ValueError: a point that is none.

    >>> grid_of(["adamw:0.003"])
    ({'optimizer': 'adamw', 'lr': 0.003, 'head-lr': 0.001},)
    """
    found: list[dict[str, Value]] = []
    for point in points:
        optimizer, _, rate = point.partition(":")
        try:
            lr = float(rate)
        except ValueError:
            lr = math.nan
        if optimizer not in HEAD_LR or not 0.0 < lr < math.inf:
            raise ValueError(f"the grid point {point!r} is no OPTIMIZER:RATE, such as sgd:0.1 or adamw:0.003")
        found.append({"optimizer": optimizer, "lr": lr, "head-lr": HEAD_LR[optimizer]})
    return tuple(found)


def rates_study(
    comparison: Comparison,
    tasks: Sequence[str],
    split: str,
    grid: Sequence[Mapping[str, Value]] = (),
    own: Mapping[str, Value] = MappingProxyType({}),
) -> Study:
    """Return the grid of rates: one cell a method, task and grid point.

    Args:
        comparison: whose methods to tune, under its settings; ``local`` takes the rates of ``asymmetric``.
        tasks: what to tune on.
        split: who holds what.
        grid: its points; none: `GRID`.
        own: what the tuning alone sets, for example fewer rounds, or other data to judge by than a cut.
    """
    cells = [
        Cell(task, split, method, SEED, tuple(sorted(point.items())))
        for point in grid or GRID
        for task in tasks
        for method in comparison.methods
        if method != "local"
    ]
    base = {**comparison.shared(), "validation-cut": CUT, "test-cap": 0, "eval-untouched": False, **own}
    return Study(cells, base, _key, _values, failed)


def failed(reason: str) -> dict[str, Any]:
    """Return what is kept of a grid point whose training failed."""
    return {"score": None, "error": reason}


def mean_of_last(values: Sequence[float | None], count: int) -> float:
    """Return the mean of the last values; rounds without an evaluation have none."""
    last = [value for value in values if value is not None][-count:]
    return sum(last) / len(last)


def grid_points(lines: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return one line per method and grid point: ``score``, the mean over tasks, and ``tasks``, each one's score.

    A task whose split was impossible is left out: none was tuned on it.
    """
    points: dict[str, dict[str, Any]] = {}
    for line in lines:
        if "impossible" in line:
            continue
        cell = {key: value for key, value in line["cell"].items() if key != "task"}
        point = points.setdefault(json.dumps(cell, sort_keys=True), {"cell": cell, "tasks": {}})
        point["tasks"][line["cell"]["task"]] = line["score"]
    for point in points.values():
        scores = point["tasks"].values()
        point["score"] = None if None in scores else sum(scores) / len(scores)
    return list(points.values())


def best_rates(lines: Sequence[Mapping[str, Any]]) -> Rates:
    """Return the winners as run configs, by (method, task), and by (method, "") those of the mean over tasks.

    For the mean only grid points with all of the method's tasks count. ``local`` takes the rates of ``asymmetric``.
    """
    best: dict[tuple[str, str], tuple[float, dict[str, Value]]] = {}
    points = grid_points(lines)
    for point in points:
        method, scores = point["cell"]["method"], dict(point["tasks"])
        if len(scores) == max(len(other["tasks"]) for other in points if other["cell"]["method"] == method):
            scores[""] = point["score"]
        for task, score in scores.items():
            if score is not None and score > best.get((method, task), (float("-inf"), {}))[0]:
                best[method, task] = (score, {key: point["cell"][key] for key in sorted(TUNED)})
    rates = {place: config for place, (_, config) in best.items()}
    return rates | {("local", task): config for (method, task), config in rates.items() if method == "asymmetric"}


def _key(cell: Cell) -> dict[str, Any]:
    return {"cell": {"method": cell.method, "task": cell.task, **dict(cell.overrides)}}


def _values(line: Mapping[str, Any]) -> dict[str, Any]:
    kept = {key: line[key] for key in ("metric_by_round", "train_loss_by_round", "settings", "versions")}
    return {"score": mean_of_last(line["metric_by_round"], 2), **kept}
