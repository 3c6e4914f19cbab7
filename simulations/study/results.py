"""Raw result lines of finished runs, and tables made from them."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedasym.methods import METHODS
from fedasym.reports.comparison import percent, read_runs, rows_of, scientific

RESULTS = Path(__file__).parents[1] / "results"


def result_lines(folders: Sequence[Path]) -> list[dict[str, Any]]:
    """Return one plain line per run folder: summary, values by round, savings, settings and versions."""
    runs = read_runs(folders)
    lines = []
    for run, row in zip(runs, rows_of(runs), strict=True):
        by_round = {
            "metric_by_round": [each["metrics"][run.metric] for each in run.rounds],
            "train_loss_by_round": [each["train_loss"] for each in run.rounds],
            "mismatch_by_round": [each["mismatch"] for each in run.rounds],
            "seconds_by_round": [each["seconds"] for each in run.rounds],
            "payload_by_round": [each["payload_up"] + each["payload_down"] for each in run.rounds],
            "client_metric_by_round": [
                each["client_metrics"][f"{run.metric}_after"] for each in run.rounds if each["client_metrics"]
            ],
        }
        shares = {key: row[key] for key in ("saving", "saving_adapter")}
        kept = {"label": run.label, "partition": run.config["partition"], "versions": run.config["versions"]}
        trained = sum(each["examples"] for each in run.rounds)
        lines.append(
            {**run.summary, **shares, **by_round, "examples_trained": trained, **kept, "settings": run.settings}
        )
    return lines


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the complete lines of a results file, none if it does not exist; one torn by a crash is left out."""
    if not path.exists():
        return []
    text = path.read_text()
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def require_lines(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a results file as `read_lines` does.

    Raises:
        FileNotFoundError: there is none.
    """
    if not path.exists():
        raise FileNotFoundError(f"there is no file of result lines {path}")
    return read_lines(path)


def append_line(path: Path, line: Mapping[str, Any]) -> None:
    """Append one line to a results file, in place of what a crash left of a torn one; it is on the disk on return."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)
        file.write((json.dumps(line, ensure_ascii=False) + "\n").encode())
        file.flush()
        os.fsync(file.fileno())


def markdown_table(lines: Sequence[dict[str, Any]]) -> str:
    """Return the side-by-side table of result lines in Markdown; bytes are float32 values, 1 kB = 1000 bytes."""
    head = ("", "final", "up / client / round", "down / client / round", "whole run", "saved", "saved, adapter only")
    rows = [(*head, "mismatch"), ("---",) * (len(head) + 1)]
    for line in lines:
        rows.append(
            (
                METHODS[line["method"]].label,
                f"{line['metric']} {line['final']:.3f}",
                f"{line['payload_up_per_client_round']:,.0f} B",
                f"{line['payload_down_per_client_round']:,.0f} B",
                f"{line['payload_total'] / 1e6:.1f} MB",
                percent(line["saving"]),
                percent(line["saving_adapter"]),
                scientific(line["mismatch"], 1),
            )
        )
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
