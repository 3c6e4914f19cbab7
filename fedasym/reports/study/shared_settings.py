"""Which settings all cells of a study share, and what the others depend on."""

from collections.abc import Sequence
from typing import Any

from fedasym.reports.run_page import ABOUT
from fedasym.reports.study import result_lines
from fedasym.reports.study.result_lines import Line
from fedasym.reports.table import Entry, Sheet

_NAMED = {"method", "task", "split", "seed", "out"}  # what a cell is; not settings of it
_AXES = (
    ("method",), ("task",), ("split",), ("seed",), ("method", "task"), ("method", "split"), ("task", "split"),
    ("method", "task", "split"), ("method", "task", "split", "seed"),
)  # fmt: skip


def settings_sheets(lines: Sequence[Line]) -> list[Sheet]:
    """Return the settings shared by all cells, those that depend on the method alone, and all others.

    Args:
        lines: result lines as `result_lines.in_order` returns them; keys may be written with ``_`` or ``-``.
    """
    names = result_lines.labels(lines)
    flat = [{key.replace("_", "-"): value for key, value in line["settings"].items()} for line in lines]
    keys = [key for key in dict.fromkeys(key for row in flat for key in row) if key not in _NAMED]
    shared, by_method, others = [], [], []
    for key in keys:
        values = [_text(row.get(key, "–")) for row in flat]
        if len(set(values)) == 1:
            shared.append([Entry(key), Entry(values[0]), Entry(ABOUT.get(key, ""))])
            continue
        axes = next(axes for axes in _AXES if _decides(axes, lines, values))
        if axes == ("method",):
            by_method.append(dict(zip((line["method"] for line in lines), values, strict=True)) | {"": key})
        else:
            others.append([Entry(key, "by " + ", ".join(axes)), Entry(_grouped(axes, lines, values, names))])
    sheets = [Sheet("Shared by all cells", ("setting", "value", ""), shared)]
    if by_method:
        rows = [[Entry(label), *(Entry(column[method]) for column in by_method)] for method, label in names.items()]
        sheets.append(Sheet("By method", ["method", *(column[""] for column in by_method)], rows))
    if others:
        sheets.append(Sheet("Others that differ", ("setting", "values"), others))
    return [sheet for sheet in sheets if sheet.rows]


def versions_sheet(lines: Sequence[Line]) -> Sheet:
    """Return the versions of what ran; several of one package are all listed."""
    found: dict[str, dict[str, None]] = {}
    for line in lines:
        for name, version in line["versions"].items():
            found.setdefault(name, {})[str(version)] = None
    rows = [[Entry(name), Entry(", ".join(versions))] for name, versions in found.items()]
    return Sheet("", ("", "version"), rows)


def _decides(axes: tuple[str, ...], lines: Sequence[Line], values: Sequence[str]) -> bool:
    """Say whether the value is the same wherever the axes are the same."""
    seen: dict[tuple[Any, ...], str] = {}
    keys = [tuple(line[axis] for axis in axes) for line in lines]
    return all(seen.setdefault(key, value) == value for key, value in zip(keys, values, strict=True))


def _grouped(axes: tuple[str, ...], lines: Sequence[Line], values: Sequence[str], names: dict[str, str]) -> str:
    """Write each value with where it holds."""
    where: dict[str, dict[str, None]] = {}
    for line, value in zip(lines, values, strict=True):
        place = " ".join(names[line[axis]] if axis == "method" else str(line[axis]) for axis in axes)
        where.setdefault(value, {})[place] = None
    return "; ".join(f"{value}: {', '.join(found)}" for value, found in where.items())


def _text(value: Any) -> str:
    return "(empty)" if value == "" else str(value)
