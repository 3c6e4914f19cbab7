"""Run folders in, one page out: numbers, figures, settings and how to run it again.

The page holds its figures; they lie beside it as PNG too. The same folders give the same bytes.
"""

from collections.abc import Callable, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from fedasym.reports.comparison import Run, measured_mismatch, read_runs
from fedasym.reports.html_page import write_page
from fedasym.reports.plots import Line, draw_clients, draw_lines
from fedasym.reports.run_page import render_page


def write_report(folders: Sequence[Path], out: Path) -> None:
    """Write one self-contained HTML page about one run, or several side by side.

    Args:
        folders: run folders, in the page's order.
        out: the HTML file; its figures are written to ``plots/`` beside it too.

    Raises:
        ValueError: no folder, or one without a finished round.
    """
    runs = read_runs(folders)
    figures = _figures(runs)
    write_page(out, render_page(runs, figures), figures)


def _figures(runs: Sequence[Run]) -> dict[str, tuple[str, bytes]]:
    """Return caption and PNG by file name: the runs' lines, then one figure per partition."""

    def draw(
        y_label: str, value: Callable[[Run, Any], float | None], *, by_bytes: bool = False, y_log: bool = False
    ) -> bytes:
        lines = []
        for run in runs:
            sent = accumulate(row["payload_up"] + row["payload_down"] for row in run.rounds)
            xs = sent if by_bytes else (row["round"] for row in run.rounds)
            known = [(x, y) for x, row in zip(xs, run.rounds, strict=True) if (y := value(run, row)) is not None]
            lines.append(Line(run.name, run.label, [x for x, _ in known], [y for _, y in known]))
        title = f"{y_label[0].upper()}{y_label[1:]} by {'bytes sent' if by_bytes else 'round'}"
        x_label = "payload so far, all clients, up + down" if by_bytes else "round"
        return draw_lines(lines, title, x_label, y_label, x_bytes=by_bytes, y_log=y_log)

    def judged(run: Run, row: Any) -> float | None:
        value: float | None = row["metrics"][run.metric]
        return value

    metric = " / ".join(dict.fromkeys(run.metric for run in runs))
    figures = {"metric": ("", draw(metric, judged)), "metric-by-bytes": ("", draw(metric, judged, by_bytes=True))}
    figures["train-loss"] = ("", draw("training loss", lambda run, row: row["train_loss"]))

    def mismatch(run: Run, row: Any) -> float | None:
        return measured_mismatch(run.summary["method"], row["mismatch"])

    if any((mismatch(run, row) or 0.0) > 0 for run in runs for row in run.rounds):
        figures["mismatch"] = ("", draw("mismatch", mismatch, y_log=True))
    if any(f"{run.metric}_after" in row["client_metrics"] for run in runs for row in run.rounds):
        figures["metric-at-clients"] = (
            "After local training, on the examples that the clients keep out.",
            draw(f"{metric} at clients", lambda run, row: row["client_metrics"].get(f"{run.metric}_after")),
        )
    partitions: dict[str, list[Run]] = {}
    for run in runs:
        if "label_counts" in run.config["partition"]:  # else the data are the sites' own
            partitions.setdefault(run.config["partition"]["digest"], []).append(run)
    for place, (digest, sharing) in enumerate(partitions.items()):
        part = sharing[0].config["partition"]
        caption = f"Split {sharing[0].settings['split']}, partition digest {digest[:12]}"
        if len(partitions) > 1:
            caption += f"; of {'; '.join(run.name for run in sharing)}"
        name = "clients" if len(partitions) == 1 else f"clients-{place + 1}"
        figures[name] = (caption, draw_clients(part["sizes"], part["classes"], part["label_counts"]))
    return figures
