"""Means over seeds, paired differences with an interval, who is told apart from the highest, and bytes to a value.

Everything is made of ``{cell: value}`` by method (`values`). A paired difference is taken over *units*: the tasks where
there are several, the seeds where there is one task (`unit_over`). All else, such as the splits and seeds of a task, is
averaged within its unit first: cells of one task are no independent witnesses. Intervals are Student's t for the mean
of the units' differences at 95 %, each for itself; what a table marks is corrected for all comparisons of that table by
Holm's method (1979).
"""

import math
import statistics
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from itertools import accumulate, combinations
from typing import NamedTuple, TypeVar

from scipy.stats import t as student

from fedasym.reports.study.result_lines import Cell, Line, Place, cell_of

CONFIDENCE = 0.95

K = TypeVar("K", bound=Hashable)
Unit = Callable[[Cell], Hashable]


class Spread(NamedTuple):
    """Mean, sample standard deviation (None for one value) and count of values."""

    mean: float
    sd: float | None
    n: int


class Paired(NamedTuple):
    """Mean of ``n`` paired differences, the ends of its 95 % interval, and p; those are None for fewer than two pairs.

    p is None, too, where all differences are equal and not 0.

    ``p`` is the two-sided one of the paired t-test, for this difference alone.
    """

    mean: float
    n: int
    low: float | None
    high: float | None
    p: float | None


class Standing(NamedTuple):
    """The method of the highest mean, None if there is none, and those that are told apart from it."""

    highest: str | None
    below: frozenset[str]


def final(line: Line) -> float | None:
    """Return the line's final metric."""
    return float(line["final"])


def final_at_clients(line: Line) -> float | None:
    """Return the last metric on the clients' own kept-out examples, None if it was not measured."""
    if line["personal"]:
        return float(line["final"])
    known = [value for value in line["client_metric_by_round"] if value is not None]
    return float(known[-1]) if known else None


def values(lines: Iterable[Line], value: Callable[[Line], float | None] = final) -> dict[str, dict[Cell, float]]:
    """Return a value of every line that has it, by method and cell."""
    found: dict[str, dict[Cell, float]] = {}
    for line in lines:
        number = value(line)
        if number is not None:
            found.setdefault(line["method"], {})[cell_of(line)] = number
    return found


def spread(numbers: Collection[float]) -> Spread:
    """Return mean and sample standard deviation (``n − 1``).

    >>> spread([1.0, 2.0, 3.0])
    Spread(mean=2.0, sd=1.0, n=3)

    Raises:
        ValueError: there is no number.
    """
    if not numbers:
        raise ValueError("no number has no mean; leave the entry out")
    return Spread(statistics.fmean(numbers), statistics.stdev(numbers) if len(numbers) > 1 else None, len(numbers))


def whole_seeds(cells: Mapping[Cell, float], wanted: Sequence[Place]) -> dict[Cell, float]:
    """Return the cells of the wanted places, of the seeds that have them all, so that all means are over the same.

    >>> whole_seeds({("a", "iid", 0): 1.0, ("b", "iid", 0): 3.0, ("a", "iid", 1): 5.0}, [("a", "iid"), ("b", "iid")])
    {('a', 'iid', 0): 1.0, ('b', 'iid', 0): 3.0}
    """
    seeds = sorted({seed for _, _, seed in cells})
    whole = [seed for seed in seeds if all((*place, seed) in cells for place in wanted)]
    return {(*place, seed): cells[(*place, seed)] for seed in whole for place in wanted}


def task_of(cell: Cell) -> str:
    """Return the cell's task, as a `Unit`."""
    return cell[0]


def seed_of(cell: Cell) -> int:
    """Return the cell's seed, as a `Unit`."""
    return cell[2]


def unit_over(wanted: Iterable[Place]) -> Unit:
    """Return what counts as one observation of these places: a task, or where there is only one task, a seed.

    >>> unit_over([("a", "iid"), ("b", "iid")])(("b", "iid", 3)), unit_over([("a", "iid")])(("a", "iid", 3))
    ('b', 3)
    """
    return task_of if len({task for task, _ in wanted}) > 1 else seed_of


def by_unit(cells: Mapping[Cell, float], unit: Unit) -> dict[Hashable, float]:
    """Return the mean of the cells of each unit.

    >>> cells = {("a", "iid", 0): 1.0, ("a", "iid", 1): 3.0, ("b", "iid", 0): 5.0}
    >>> by_unit(cells, unit_over([("a", "iid"), ("b", "iid")]))
    {'a': 2.0, 'b': 5.0}
    """
    found: dict[Hashable, list[float]] = {}
    for cell in sorted(cells):
        found.setdefault(unit(cell), []).append(cells[cell])
    return {key: statistics.fmean(numbers) for key, numbers in found.items()}


def paired(ours: Mapping[Cell, float], theirs: Mapping[Cell, float], unit: Unit) -> Paired | None:
    """Return the mean of ``ours − theirs`` over the units of the cells both have; None without such a cell.

    A cell is paired with the cell of the same task, split and seed, and every unit counts once.
    """
    differences = [*by_unit({cell: ours[cell] - theirs[cell] for cell in ours if cell in theirs}, unit).values()]
    if not differences:
        return None
    mean, sd, n = spread(differences)
    if sd is None:
        return Paired(mean, n, None, None, None)
    error = sd / math.sqrt(n)
    half = float(student.ppf(0.5 + CONFIDENCE / 2, n - 1)) * error
    if mean and error <= 1e-12 * abs(mean):  # equal differences say how much, and not how sure it is
        return Paired(mean, n, mean - half, mean + half, None)
    p = 2.0 * float(student.sf(abs(mean) / error, n - 1)) if error else 1.0
    return Paired(mean, n, mean - half, mean + half, p)


def told_apart(found: Mapping[K, Paired | None]) -> set[K]:
    """Return which of a table's differences are not 0, by Holm's method over all that have an interval (Holm 1979).

    The least p is held against ``0.05 / m``, the next against ``0.05 / (m − 1)``, and so on up to the first that fails:
    the chance that any difference is marked that is 0 is at most 5 %, however the differences depend on one another.
    """
    known = sorted(((each.p, place) for place, each in enumerate(found.values()) if each and each.p is not None))
    keys, marked = list(found), set()
    for rank, (p, place) in enumerate(known):
        if p > (1.0 - CONFIDENCE) / (len(known) - rank):
            break
        marked.add(keys[place])
    return marked


def standings(
    columns: Mapping[str, Mapping[str, Mapping[Cell, float]]], units: Mapping[str, Unit]
) -> dict[str, Standing]:
    """Return for each column of a table the method with the highest mean and those told apart from it.

    Told apart is who differs from the highest by `told_apart` over all pairs of methods of the whole table, since the
    highest is chosen by the same numbers; whoever shares fewer than two units
    with it is not, which does not make it equal. A method with one seed is not the highest where another has several:
    a lucky seed alone does not make one.

    Args:
        columns: each method's cells, by column.
        units: what counts as one observation, by column.
    """
    differences: dict[tuple[str, frozenset[str]], Paired | None] = {}
    highest: dict[str, str] = {}
    for column, by_method in columns.items():
        several = {method: cells for method, cells in by_method.items() if len({seed for _, _, seed in cells}) > 1}
        means = {
            method: statistics.fmean(by_unit(cells, units[column]).values())
            for method, cells in (several or by_method).items()
            if cells
        }
        if means:
            highest[column] = max(means, key=lambda method: means[method])
        for one, other in combinations((method for method, cells in by_method.items() if cells), 2):
            differences[column, frozenset((one, other))] = paired(by_method[one], by_method[other], units[column])
    apart = told_apart(differences)
    below = {
        column: frozenset(
            next(iter(pair - {highest[column]})) for at, pair in apart if at == column and highest.get(column) in pair
        )
        for column in columns
    }
    return {column: Standing(highest.get(column), below[column]) for column in columns}


def bytes_so_far(line: Line) -> list[int]:
    """Return payload bytes, up and down of all clients, spent by the end of each round."""
    return list(accumulate(line["payload_by_round"]))


def bytes_to_reach(line: Line, target: float) -> int | None:
    """Return the payload bytes spent when an evaluated round first has ``metric >= target``; None if none has."""
    for spent, value in zip(bytes_so_far(line), line["metric_by_round"], strict=True):
        if value is not None and value >= target:
            return spent
    return None


def reach(lines: Iterable[Line], method: str, reference: str) -> dict[Cell, tuple[int | None, int]]:
    """Return by cell the bytes until a method reaches the reference's final value, and what the reference spent in all.

    Personalised lines are left out: their metric is over other examples.
    """
    kept = [line for line in lines if not line["personal"]]
    targets = {cell_of(line): line for line in kept if line["method"] == reference}
    found = {}
    for line in kept:
        target = targets.get(cell_of(line))
        if line["method"] == method and target is not None:
            found[cell_of(line)] = (bytes_to_reach(line, target["final"]), sum(target["payload_by_round"]))
    return found


def within_half(lines: Iterable[Line], method: str, reference: str) -> tuple[int, int]:
    """Return in how many cells a method reaches the reference's final value with at most half its bytes, of how many.

    Seeds are cells of their own. Half of what the reference spent in the whole run, up and down.
    """
    found = reach(lines, method, reference).values()
    return sum(spent is not None and 2 * spent <= whole for spent, whole in found), len(found)
