"""The figures of a study: curves by round and by bytes, in panels of task and split, and who holds what."""

import statistics
from collections.abc import Callable, Sequence
from itertools import zip_longest
from typing import Any

from fedasym.reports.comparison import measured_mismatch
from fedasym.reports.plots import draw_clients
from fedasym.reports.study import result_lines
from fedasym.reports.study.estimates import bytes_so_far, final, final_at_clients
from fedasym.reports.study.panels import Curve, Panel, draw_panels
from fedasym.reports.study.result_lines import Line

TASKS_A_FIGURE = 4  # rows of panels that fit a page of paper
SPLITS_A_FIGURE = 3

_ByRound = Callable[[Line], Sequence[float | None]]
_BAND = "Mean over the seeds; the band is from the least to the most of them."


def figures(lines: Sequence[Line]) -> dict[str, tuple[str, bytes]]:
    """Return caption and PNG by file name.

    Args:
        lines: result lines as `fedasym.reports.study.result_lines.in_order` returns them.
    """
    ranked = [line for line in lines if result_lines.is_ranked(line)]
    central = [line for line in result_lines.with_central_everywhere(lines) if line["method"] == "central"]

    def metric(line: Line) -> Sequence[float | None]:
        values: Sequence[float | None] = line["metric_by_round"]
        return values

    found: dict[str, tuple[str, bytes]] = {}
    if ranked:
        spent = f"Metric by bytes. {_BAND} Bytes are payload, up and down of all clients."
        found |= _grids("metric-by-round", f"Metric by round. {_BAND}", ranked, central, metric, None)
        found |= _grids("metric-by-bytes", spent, ranked, central, metric, None, x_bytes=True)
        caption = f"Training loss by round. {_BAND}"
        found |= _grids("train-loss", caption, ranked, [], lambda line: line["train_loss_by_round"], "training loss")
    if any((measured_mismatch(line["method"], line["mismatch"]) or 0) > 0 for line in ranked):
        caption = (
            "Mismatch by round, where it was measured: a method that relays all factors is exact by construction. "
            f"{_BAND} A mismatch of 0 has no place on the scale and is not drawn."
        )
        found |= _grids("mismatch", caption, ranked, [], _mismatch, "mismatch", y_log=True)
    if any(any(value is not None for value in line["client_metric_by_round"]) for line in lines):
        local = [line for line in lines if line["method"] == "local"]
        federated = [line for line in lines if line["method"] not in result_lines.REFERENCES]
        caption = f"Metric on the examples that the clients keep out, after local training. {_BAND}"
        found |= _grids("clients-metric", caption, federated, local, lambda line: line["client_metric_by_round"], None)
    return found | _partitions(lines)


def _mismatch(line: Line) -> Sequence[float | None]:
    found = line["mismatch_by_round"] or [None] * len(line["metric_by_round"])
    return [measured_mismatch(line["method"], value) for value in found]


def _grids(
    name: str,
    caption: str,
    lines: Sequence[Line],
    references: Sequence[Line],
    by_round: _ByRound,
    y_label: str | None,
    **scales: bool,
) -> dict[str, tuple[str, bytes]]:
    """Draw all tasks and splits, a few tasks a figure; references are levels, at their final value."""
    every, across = result_lines.tasks(lines), result_lines.splits(lines)
    order = list(result_lines.labels(lines))
    x_label = "payload so far" if scales.get("x_bytes") else "round"
    found = {}
    if len(every) == 1:  # one task: its splits fill the rows
        flat = [(every[0], split) for split in across]
        rows = [flat[i : i + SPLITS_A_FIGURE] for i in range(0, len(flat), SPLITS_A_FIGURE)]
    else:
        pieces = [across[i : i + SPLITS_A_FIGURE] for i in range(0, len(across), SPLITS_A_FIGURE)]
        rows = [[(task, split) for split in piece] for piece in pieces for task in every]
    sheets = [rows[i : i + TASKS_A_FIGURE] for i in range(0, len(rows), TASKS_A_FIGURE)]
    for number, sheet in enumerate(sheets):
        panels: list[list[Panel | None]] = []
        for row in sheet:
            panels.append([])
            for task, split in row:
                here = [x for x in lines if (x["task"], x["split"]) == (task, split)]
                levels = [x for x in references if (x["task"], x["split"]) == (task, split)]
                curves = [
                    curve
                    for place, method in enumerate(order)
                    if (curve := _curve([x for x in here if x["method"] == method], place, by_round, **scales))
                ]
                y = y_label or " / ".join(sorted({x["metric"] for x in here}))
                title = f"{task}, {result_lines.split_name(split)}"
                panels[-1].append(Panel(title, y, curves, _levels(levels)) if curves else None)
        if any(panel for row in panels for panel in row):
            png = draw_panels(panels, x_label, **scales)
            found[name if len(sheets) == 1 else f"{name}-{number + 1}"] = (caption, png)
    return found


def _curve(lines: Sequence[Line], place: int, by_round: _ByRound, **scales: bool) -> Curve | None:
    """Return a method's curve over the rounds in which all its seeds have a value; None without one."""
    # A round that a seed does not have is None, as one that was not evaluated.
    columns = list(zip_longest(*(by_round(line) for line in lines)))
    spent = list(zip_longest(*(bytes_so_far(line) for line in lines)))
    whole = [
        (i, values)
        for i, column in enumerate(columns)
        if len(values := [v for v in column if v is not None]) == len(column)
    ]
    if not whole:
        return None
    xs = [statistics.fmean(spent[i]) if scales.get("x_bytes") else i + 1.0 for i, _ in whole]
    ys = [[statistics.fmean(column), min(column), max(column)] for _, column in whole]
    mean, low, high = zip(*ys, strict=True)
    return Curve(str(lines[0]["label"]), place, xs, mean, low, high)


def _levels(lines: Sequence[Line]) -> list[tuple[str, float]]:
    found: dict[str, list[float]] = {}
    for line in lines:
        value = final_at_clients(line) if line["personal"] else final(line)
        if value is not None:
            found.setdefault(str(line["label"]), []).append(value)
    return [(label, statistics.fmean(numbers)) for label, numbers in found.items()]


def _partitions(lines: Sequence[Line]) -> dict[str, tuple[str, bytes]]:
    """Draw who holds what in each task and split, of the first seed."""
    found = {}
    for task, split in result_lines.places(lines):
        here = [x for x in lines if (x["task"], x["split"]) == (task, split) and x["method"] != "central"]
        first = min(here, key=lambda x: x["seed"])
        part: dict[str, Any] = first["partition"]
        title = f"{task}, {result_lines.split_name(split)}: examples by client"
        png = draw_clients(part["sizes"], part["classes"], part["label_counts"], title=title, width=4.6)
        name = "".join(c if c.isalnum() or c in ".-" else "-" for c in f"split-{task}-{split}")
        found[name] = (f"Seed {first['seed']}, partition digest {part['digest'][:12]}", png)
    return found
