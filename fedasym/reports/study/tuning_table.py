"""The table of a tuning grid: one raw line per cell, best first for each method, the winner marked with a star."""

from collections.abc import Mapping, Sequence
from typing import Any

from fedasym.reports.table import Entry, Sheet, to_markdown


def tuning_sheet(lines: Sequence[Mapping[str, Any]]) -> Sheet:
    """Lay the grid out.

    Args:
        lines: each with ``cell`` (``method`` and the settings tried), ``score`` (higher is better; None where training
            failed), and where there are any ``tasks`` (score by task) or ``accuracy`` (by round, of which the last
            three are shown).

    Returns:
        One row a cell: methods in alphabetical order, each from its best score down.
    """
    tried = list(dict.fromkeys(key for line in lines for key in line["cell"] if key != "method"))
    tasks = sorted({task for line in lines for task in line.get("tasks", ())})
    rounds = any("accuracy" in line for line in lines)
    best: dict[tuple[str, str], float] = {}
    for line in lines:
        for task, score in {**line.get("tasks", {}), "": line["score"]}.items():
            place = (line["cell"]["method"], task)
            if score is not None:
                best[place] = max(score, best.get(place, score))
    rows = []
    for line in sorted(lines, key=lambda x: (x["cell"]["method"], -_or_least(x["score"]))):
        cell, by_task = line["cell"], line.get("tasks", {})

        def write(task: str, score: float | None, method: str = cell["method"]) -> str:
            return "–" if score is None else f"{score:.4f}{' *' if score == best[method, task] else ''}"

        texts = [cell["method"], *(_text(cell[key]) if key in cell else "–" for key in tried), write("", line["score"])]
        texts += [write(task, by_task.get(task)) for task in tasks]
        texts += [" ".join(f"{value:.3f}" for value in line.get("accuracy", ())[-3:])] if rounds else []
        rows.append([Entry(text) for text in texts])
    heads = ["method", *(key.replace("-", " ") for key in tried), "score", *tasks, *(["last rounds"] if rounds else [])]
    return Sheet("Tuning grid", heads, rows, "* the method's best in this column; –: not tried, or training failed.")


def _or_least(score: float | None) -> float:
    return float("-inf") if score is None else score


def tuning_markdown(lines: Sequence[Mapping[str, Any]]) -> str:
    """Return the grid as a Markdown table, without title and note."""
    return to_markdown(tuning_sheet(lines)._replace(note=""))


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, int | float) and not isinstance(value, bool) else str(value)
