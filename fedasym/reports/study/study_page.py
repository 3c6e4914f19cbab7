"""Result lines in, one page out: what is missing, tables, figures, settings, and how to run it again.

The page holds its figures; they lie beside it as PNG too. The same lines in any order give the same bytes.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedasym.reports.html_page import render, write_page
from fedasym.reports.run_page import command_with
from fedasym.reports.study import result_lines
from fedasym.reports.study.costs import cost_sheet, reach_sheet
from fedasym.reports.study.figures import figures
from fedasym.reports.study.result_lines import Line
from fedasym.reports.study.scores import clients_sheet, difference_sheets, score_sheets
from fedasym.reports.study.shared_settings import settings_sheets, versions_sheet
from fedasym.reports.study.study_page_template import STUDY_PAGE
from fedasym.reports.study.tuning_table import tuning_sheet
from fedasym.reports.table import Sheet, to_markdown
from fedasym.settings import Settings

_CURVES = ("metric-by", "train-loss", "mismatch", "clients-metric")  # beginnings of the names of such figures


def write_comparison(
    lines: Sequence[Line],
    out: Path,
    *,
    ours: str = "asymmetric",
    reference: str = "lora",
    tuning: Sequence[Mapping[str, Any]] = (),
    command: str = "",
) -> None:
    """Write one self-contained HTML page about all result lines.

    Args:
        lines: one a cell, in any order; cells may be missing, and the page says which.
        out: the HTML file; its figures are written to ``plots/`` beside it too.
        ours: the method that the differences are about.
        reference: the method that savings and bytes to reach are measured against.
        tuning: raw lines of the tuning grid, for a table of it.
        command: what runs the whole comparison again.

    Raises:
        ValueError: no line, two lines of one method and cell, or a final value that is not finite.
    """
    found, never_made = result_lines.in_order(lines), result_lines.impossible(lines)
    drawn = figures(found)
    page = render(
        STUDY_PAGE,
        title=_title(found),
        gaps=result_lines.gaps(found, never_made),
        sheets=comparison_sheets(lines, ours, reference),
        curves={name: each for name, each in drawn.items() if name.startswith(_CURVES)},
        partitions={name: each for name, each in drawn.items() if not name.startswith(_CURVES)},
        tuning=tuning_sheet(tuning)._replace(title="") if tuning else None,
        command=command,
        commands=_commands(found),
        seeds=sorted({line["seed"] for line in found}),
        settings=settings_sheets(found),
        versions=versions_sheet(found),
    )
    write_page(out, page, drawn)


def comparison_markdown(lines: Sequence[Line], *, ours: str = "asymmetric", reference: str = "lora") -> str:
    """Return all tables of `write_comparison` as Markdown, each under a heading of the third level.

    Raises:
        ValueError: as `write_comparison` does.
    """
    sheets = comparison_sheets(lines, ours, reference)
    said = [f"* {text}" for text in result_lines.gaps(result_lines.in_order(lines), result_lines.impossible(lines))]
    return "\n\n".join((["\n".join(said)] if said else []) + [f"### {s.title}\n\n{to_markdown(s)}" for s in sheets])


def comparison_sheets(lines: Sequence[Line], ours: str = "asymmetric", reference: str = "lora") -> list[Sheet]:
    """Return the tables of a comparison as plain data."""
    lines, never_made = result_lines.in_order(lines), result_lines.impossible(lines)
    optional = (
        clients_sheet(lines),
        *difference_sheets(lines, ours),
        cost_sheet(lines, reference),
        reach_sheet(lines, reference),
    )
    return [*score_sheets(lines, never_made), *(sheet for sheet in optional if sheet is not None)]


def _title(lines: Sequence[Line]) -> str:
    every = result_lines.tasks(lines)
    return f"Federated LoRA methods compared on {', '.join(every) if len(every) < 6 else f'{len(every)} tasks'}"


def _commands(lines: Sequence[Line]) -> str:
    """Return one command per federated method; settings are resolved, so they are named where no default says them."""
    defaults = {field.name.replace("_", "-"): field.default for field in dataclasses.fields(Settings)}
    found = []
    for method, label in result_lines.labels(lines).items():
        line = next(x for x in lines if x["method"] == method)
        flat = {key.replace("_", "-"): value for key, value in line["settings"].items()}
        changed = {key: value for key, value in flat.items() if key != "out" and value != defaults.get(key)}
        if method not in result_lines.REFERENCES:
            found.append(f"# {label}: {line['task']}, {line['split']}, seed {line['seed']}\n{command_with(changed)}")
    return "\n".join(found)
