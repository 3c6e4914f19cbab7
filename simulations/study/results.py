"""Raw result lines of finished runs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedasym.files import read_lines
from fedasym.reports.comparison import read_runs, rows_of

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
            "stderr": run.rounds[-1]["metrics"].get(f"{run.metric}_stderr"),
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


def require_lines(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a results file as `fedasym.files.read_lines` does.

    Raises:
        FileNotFoundError: there is none.
    """
    if not path.exists():
        raise FileNotFoundError(f"there is no file of result lines {path}")
    return read_lines(path)
