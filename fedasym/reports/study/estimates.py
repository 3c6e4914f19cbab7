"""Means over seeds, paired differences with an interval, who is tied with the best, and bytes to reach a value.

Everything is made of ``{cell: value}`` by method (`values`): a mean over tasks or splits turns it into
``{seed: mean}``, a paired difference takes two of them. Intervals are Student's t for the mean of paired differences
at 95 %; they take the pairs as independent and are not corrected for the number of comparisons.
"""

import math
import statistics
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from itertools import accumulate
from typing import NamedTuple, TypeVar

from scipy.stats import t as student

from fedasym.reports.study.result_lines import Cell, Line, Place, cell_of

CONFIDENCE = 0.95

K = TypeVar("K", bound=Hashable)


class Spread(NamedTuple):
    """Mean, sample standard deviation (None for one value) and count of values."""

    mean: float
    sd: float | None
    n: int


class Paired(NamedTuple):
    """Mean of ``n`` paired differences and the ends of its 95 % interval, None for fewer than two pairs."""

    mean: float
    n: int
    low: float | None
    high: float | None

    @property
    def holds_zero(self) -> bool | None:
        """Whether the interval contains 0; None without an interval."""
        return None if self.low is None or self.high is None else self.low <= 0.0 <= self.high


class Standing(NamedTuple):
    """The key of the highest mean, None if there is none, and the others statistically tied with it."""

    best: str | None
    tied: frozenset[str]


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


def mean_over(cells: Mapping[Cell, float], wanted: Sequence[Place]) -> dict[int, float]:
    """Return by seed the mean over places; a seed that lacks a place is left out, so that all means are over the same.

    >>> mean_over({("a", "iid", 0): 1.0, ("b", "iid", 0): 3.0, ("a", "iid", 1): 5.0}, [("a", "iid"), ("b", "iid")])
    {0: 2.0}
    """
    seeds = sorted({seed for _, _, seed in cells})
    whole = [seed for seed in seeds if wanted and all((*place, seed) in cells for place in wanted)]
    return {seed: statistics.fmean(cells[(*place, seed)] for place in wanted) for seed in whole}


def paired(ours: Mapping[K, float], theirs: Mapping[K, float]) -> Paired | None:
    """Return the mean of ``ours − theirs`` over the keys both have, with its 95 % interval; None without a pair."""
    differences = [ours[key] - theirs[key] for key in ours if key in theirs]
    if not differences:
        return None
    mean, sd, n = spread(differences)
    if sd is None:
        return Paired(mean, n, None, None)
    half = float(student.ppf(0.5 + CONFIDENCE / 2, n - 1)) * sd / math.sqrt(n)
    return Paired(mean, n, mean - half, mean + half)


def standing(by_method: Mapping[str, Mapping[K, float]]) -> Standing:
    """Return the method with the highest mean and those tied with it: paired interval to the best contains 0.

    A method with one value cannot be best where another has several: a lucky seed alone does not make one. One that
    shares fewer than two keys with the best has no interval and is not called tied.
    """
    several = {method: found for method, found in by_method.items() if len(found) > 1}
    means = {method: statistics.fmean(found.values()) for method, found in (several or by_method).items() if found}
    if not means:
        return Standing(None, frozenset())
    best = max(means, key=lambda method: means[method])
    tied = set()
    for method, found in by_method.items():
        difference = paired(found, by_method[best])
        level = means.get(method) == means[best]  # to the last bit: neither is the better one
        if method != best and (level or (difference is not None and difference.holds_zero)):
            tied.add(method)
    return Standing(best, frozenset(tied))


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
