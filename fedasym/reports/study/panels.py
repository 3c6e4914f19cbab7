"""Small multiples: one panel per task and split, one curve per method with its band, one legend for all."""

from collections.abc import Sequence
from typing import NamedTuple

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fedasym.reports.plots import COLOURS, INK, MARKERS, STYLES, finish, legend, png, use_decades, use_log_bytes

_LEVEL_STYLES = ((0, (1, 1.5)), (0, (6, 2)))
_GREY = "#777777"


class Curve(NamedTuple):
    """A method's mean over seeds, with the least and the most of them; all equally long.

    ``place`` is the method's in the order of all methods: it picks colour, line and marker, so that a method looks
    the same in every panel and figure. Up to 28 places are told apart.
    """

    label: str
    place: int
    xs: Sequence[float]
    ys: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]


class Panel(NamedTuple):
    """One panel; ``levels`` are horizontal lines by label, such as the central reference."""

    title: str
    y_label: str
    curves: Sequence[Curve]
    levels: Sequence[tuple[str, float]] = ()


def draw_panels(
    rows: Sequence[Sequence[Panel | None]], x_label: str, *, x_bytes: bool = False, y_log: bool = False
) -> bytes:
    """Draw rows of panels; those of a row share their horizontal axis, logarithmic vertical ones too.

    Args:
        rows: equally long; None leaves a panel out.
        x_label: name of the horizontal axes.
        x_bytes: the horizontal axes count bytes on a logarithmic scale; otherwise rounds.
        y_log: logarithmic vertical axes; values that are not positive are left out.

    Returns:
        The PNG.
    """
    across = max(len(row) for row in rows)
    curves = [curve for row in rows for panel in row if panel for curve in panel.curves]
    names = {curve.label for curve in curves}
    names |= {name for row in rows for panel in row if panel for name, _ in panel.levels}
    columns = 4 if across > 1 else 2
    size = (9.2 if across > 1 else 5.6, 0.4 + 2.45 * len(rows) + 0.2 * -(-len(names) // columns))  # inches
    figure = Figure(figsize=size, layout="constrained")
    handles: dict[tuple[int, str], Artist] = {}
    for down, row in enumerate(rows):
        shared: Axes | None = None
        for right, panel in enumerate(row):
            if panel is None:
                continue
            place = (len(rows), across, down * across + right + 1)
            axes = figure.add_subplot(*place, sharex=shared, sharey=shared if y_log else None)
            for curve in reversed(panel.curves):  # the first ends on top
                handles[curve.place, curve.label] = _draw_curve(axes, curve, y_log)
            for nth, (name, value) in enumerate(panel.levels):
                style = _LEVEL_STYLES[nth % len(_LEVEL_STYLES)]
                handles[10**6 + nth, name] = axes.axhline(value, color=_GREY, linestyle=style, linewidth=1.4, zorder=1)
            last = down == len(rows) - 1
            finish(axes, panel.title, x_label if last else "", "" if shared else panel.y_label)
            shared = shared or axes
        here = [curve for panel in row if panel for curve in panel.curves]
        if shared and here:
            _scale(shared, here, x_bytes, y_log)
    order = sorted(handles)
    if order:
        legend(figure, [handles[key] for key in order], [name for _, name in order], columns)
    return png(figure)


def _draw_curve(axes: Axes, curve: Curve, y_log: bool) -> Artist:
    points = [
        point for point in zip(curve.xs, curve.ys, curve.low, curve.high, strict=True) if point[2] > 0 or not y_log
    ]
    xs, ys, low, high = (list(column) for column in zip(*points, strict=True)) if points else ([], [], [], [])
    colour, above = COLOURS[curve.place % len(COLOURS)], 3.0 - 0.01 * curve.place
    if low != high:
        axes.fill_between(xs, low, high, color=colour, alpha=0.12, linewidth=0, zorder=above - 1)
    (line,) = axes.plot(
        xs,
        ys,
        color=colour,
        linestyle=STYLES[curve.place % len(STYLES)],
        marker=MARKERS[curve.place % len(MARKERS)],
        markerfacecolor=colour if curve.place < len(COLOURS) else "white",  # a colour's second method is hollow
        linewidth=2.2 if curve.place == 0 else 1.4,
        markersize=3.5,
        markevery=(curve.place % 3, max(1, len(xs) // 6)) if len(xs) > 6 else 1,
        zorder=above,
    )
    return line


def _scale(axes: Axes, curves: Sequence[Curve], x_bytes: bool, y_log: bool) -> None:
    """Scale the axes that a row of panels shares."""
    if y_log:
        use_decades(axes, [y for curve in curves for y in curve.ys if y > 0])
    if not x_bytes:
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))
        return
    known = [x for curve in curves for x in curve.xs if x > 0]
    wide = not known or max(known) > 100 * min(known)
    use_log_bytes(axes, (1.0,) if wide else (1.0, 3.0))
    axes.tick_params(colors=INK)
