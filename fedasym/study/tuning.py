"""The table of a tuning grid: one raw line a cell, best first for each method, the winner marked with a star."""

from collections.abc import Mapping, Sequence
from typing import Any

from fedasym.study.tables import Entry, Sheet, to_markdown


def tuning_sheet(lines: Sequence[Mapping[str, Any]]) -> Sheet:
    """Lay the grid out.

    Args:
        lines: each with ``cell`` (``method`` and the settings tried), ``score`` (higher is better), and where there
            are any ``tasks`` (score by task) or ``accuracy`` (by round, of which the last three are shown).

    Returns:
        One row a cell: methods in alphabetical order, each from its best score down.
    """
    tried = list(dict.fromkeys(key for line in lines for key in line["cell"] if key != "method"))
    tasks = sorted({task for line in lines for task in line.get("tasks", ())})
    rounds = any("accuracy" in line for line in lines)
    best: dict[str, float] = {}
    for line in lines:
        method = line["cell"]["method"]
        best[method] = max(line["score"], best.get(method, line["score"]))
    rows = []
    for line in sorted(lines, key=lambda x: (x["cell"]["method"], -x["score"])):
        cell, score, by_task = line["cell"], line["score"], line.get("tasks", {})
        mark = " *" if score == best[cell["method"]] else ""
        texts = [cell["method"], *(_text(cell[key]) if key in cell else "–" for key in tried), f"{score:.4f}{mark}"]
        texts += [f"{by_task[task]:.4f}" if task in by_task else "–" for task in tasks]
        texts += [" ".join(f"{value:.3f}" for value in line.get("accuracy", ())[-3:])] if rounds else []
        rows.append([Entry(text) for text in texts])
    heads = ["method", *(key.replace("-", " ") for key in tried), "score", *tasks, *(["last rounds"] if rounds else [])]
    return Sheet("Tuning grid", heads, rows, "* best score of the method.")


def tuning_markdown(lines: Sequence[Mapping[str, Any]]) -> str:
    """Return the grid as a Markdown table, without title and note."""
    return to_markdown(tuning_sheet(lines)._replace(note=""))


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, int | float) and not isinstance(value, bool) else str(value)
