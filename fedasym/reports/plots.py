"""The report's figures, each returned as the bytes of a PNG; the same data gives the same bytes.

Figures are drawn through matplotlib's object-oriented API alone: no pyplot, no global state left behind.
Colours: Okabe & Ito 2008, "Color Universal Design", less its yellow, which is too pale on white.
"""

import io
import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullLocator

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#333333")
STYLES = ("-", "--", ":", "-.")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_HATCHES = ("", "////", "....")
_REST = "#BBBBBB"
INK = "#222222"
_DPI = 200  # pixels an inch; the page shows about half as many
_CLASSES = len(COLOURS) * len(_HATCHES)  # told apart by colour and hatching; rarer ones are put together
_BARS = 30  # clients up to which every bar has its number and its total


class Line(NamedTuple):
    """One run's line in a figure; ``xs`` and ``ys`` are equally long. Lines of a group share the colour."""

    label: str
    group: str
    xs: Sequence[float]
    ys: Sequence[float]


def draw_lines(
    lines: Sequence[Line],
    title: str,
    x_label: str,
    y_label: str,
    *,
    x_bytes: bool = False,
    y_log: bool = False,
) -> bytes:
    """Draw one line per run.

    Args:
        lines: by run, in the page's order.
        title: what is seen.
        x_label: name of the horizontal axis.
        y_label: name of the vertical axis.
        x_bytes: the horizontal axis counts bytes, in powers of 1000; logarithmic where it spans more than
            tenfold. Otherwise it counts rounds.
        y_log: logarithmic vertical axis; values that are not positive have no place on it and are left out.

    Returns:
        The PNG.
    """
    figure = Figure(figsize=(4.6, 3.3), layout="constrained")
    axes = figure.add_subplot()
    groups = list(dict.fromkeys(line.group for line in lines))
    for place, line in enumerate(lines):
        before = sum(other.group == line.group for other in lines[:place])
        colour, style = (groups.index(line.group), before) if len(groups) > 1 else (place, place)
        points = [(x, y) for x, y in zip(line.xs, line.ys, strict=True) if y > 0 or not y_log]
        axes.plot(
            [x for x, _ in points],
            [y for _, y in points],
            color=COLOURS[colour % len(COLOURS)],
            linestyle=STYLES[style % len(STYLES)],
            marker=MARKERS[place % len(MARKERS)],
            linewidth=1.6,
            markersize=4,
            markevery=max(1, len(points) // 12),
        )
    if y_log:
        use_decades(axes, [y for line in lines for y in line.ys if y > 0])
    if x_bytes:
        count_bytes(axes, [x for line in lines for x in line.xs])
    else:
        axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, min_n_ticks=1))
    finish(axes, title, x_label, y_label)
    if len(lines) > 1:
        legend(figure, list(axes.lines), [line.label for line in lines], columns=2 if len(lines) < 9 else 3)
    return png(figure)


def draw_clients(
    sizes: Sequence[int],
    classes: Sequence[str],
    counts: Sequence[Sequence[int]],
    *,
    title: str = "Training examples by client",
    width: float = 9.2,
) -> bytes:
    """Draw who holds what: one bar per client, from client 0 down, stacked by class.

    Args:
        sizes: examples by client.
        classes: class names; empty for a regression, whose bars have one part.
        counts: examples by client and class.
        title: what is seen; `` and class`` follows where there are classes.
        width: of the figure, in inches; 9.2 is the page's width, 4.6 half of it.

    Returns:
        The PNG.
    """
    names, columns = _most_frequent(classes or ("examples",), counts)
    clients = len(sizes)
    columns_of_names = 5 if width > 6 else 2
    height = min(1.4 + 0.22 * clients, 8.0) + 0.2 * (len(names) // columns_of_names)  # inches
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    left = [0] * clients
    handles = []
    for place, column in enumerate(columns):
        rest = place >= _CLASSES
        bars = axes.barh(
            range(clients),
            column,
            left=left,
            height=0.8 if clients <= 2 * _BARS else 1.0,
            color=_REST if rest else COLOURS[place % len(COLOURS)],
            hatch="" if rest else _HATCHES[place // len(COLOURS)],
            edgecolor="white",
            linewidth=0.5 if clients <= 2 * _BARS else 0.0,
        )
        handles.append(bars)
        left = [start + width for start, width in zip(left, column, strict=True)]
    if clients <= _BARS:
        axes.set_yticks(range(clients))
        for client, total in enumerate(left):
            axes.annotate(
                f"{total:,}", (total, client), (3, 0), textcoords="offset points",
                va="center", fontsize=8, color=INK,
            )  # fmt: skip
    else:
        axes.yaxis.set_major_locator(MaxNLocator(nbins=12, integer=True))
    axes.set_ylim(clients - 0.4, -0.6)
    axes.margins(x=0.06 if width > 6 else 0.12)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    finish(axes, title + (" and class" if classes else ""), "examples", "client", grid="x")
    if classes:
        legend(figure, handles, names, columns=columns_of_names)
    return png(figure)


def _most_frequent(classes: Sequence[str], counts: Sequence[Sequence[int]]) -> tuple[list[str], list[list[int]]]:
    """Return names and columns of all classes; of too many, the most frequent and the rest together."""
    columns = [[row[label] for row in counts] for label in range(len(classes))]
    if len(classes) <= _CLASSES:
        return list(classes), columns
    by_size = sorted(range(len(classes)), key=lambda label: (-sum(columns[label]), label))
    kept, rest = sorted(by_size[:_CLASSES]), by_size[_CLASSES:]
    together = [sum(row[label] for label in rest) for row in counts]
    return [*(classes[k] for k in kept), f"{len(rest)} others"], [*(columns[k] for k in kept), together]


def count_bytes(axes: Axes, values: Sequence[float]) -> None:
    """Count bytes along the horizontal axis; logarithmic where the values span more than tenfold."""
    if min(values) > 0 and max(values) > 10 * min(values):
        use_log_bytes(axes, (1.0, 2.0, 5.0))
    else:
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5))
        axes.xaxis.set_major_formatter(EngFormatter(unit="B"))


def use_log_bytes(axes: Axes, ticks: Sequence[float]) -> None:
    """Make the horizontal axis logarithmic, in bytes, with these ticks in each decade."""
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(EngFormatter(unit="B"))


def use_decades(axes: Axes, values: Sequence[float]) -> None:
    """Make the vertical axis logarithmic, from decade to decade around the values."""
    axes.set_yscale("log")
    axes.yaxis.set_minor_locator(NullLocator())
    if values:
        lowest, highest = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
        axes.set_ylim(10.0**lowest, 10.0 ** max(highest, lowest + 1))


def finish(axes: Axes, title: str, x_label: str, y_label: str, grid: Literal["both", "x"] = "both") -> None:
    """Name axes and figure, in the look that all share; the title is data and never mathematics."""
    axes.set_title(title, fontsize=10, fontweight="bold", loc="left", color=INK, parse_math=False)
    axes.set_xlabel(x_label, fontsize=9, color=INK)
    axes.set_ylabel(y_label, fontsize=9, color=INK)
    axes.tick_params(labelsize=8, colors=INK, length=3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)
    axes.grid(True, axis=grid, color="#E2E2E2", linewidth=0.6)


def legend(figure: Figure, handles: Sequence[Any], names: Sequence[str], columns: int) -> None:
    """Put one legend below everything."""
    # A leading "_" would hide an entry and "$" would start mathematics; the names are data.
    labels = [" " + (name if len(name) <= 40 else name[:39] + "…") for name in names]
    below: Legend = figure.legend(
        handles, labels, loc="outside lower center",
        ncols=min(columns, len(labels)), frameon=False, fontsize=8,
    )  # fmt: skip
    for text in below.get_texts():
        text.set_parse_math(False)
        text.set_color(INK)


def png(figure: Figure) -> bytes:
    """Return the figure as the bytes of a PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI, facecolor="white", metadata={"Software": None})
    return buffer.getvalue()
