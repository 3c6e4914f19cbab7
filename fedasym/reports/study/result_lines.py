"""What a study holds: its result lines checked and in order, its methods, tasks, splits and seeds, and what is missing.

A *line* is one finished cell of one method; a *cell* is (task, split, seed); a *place* is (task, split). A line with
``impossible`` is of a cell whose split its data do not allow, and holds the reason instead of a result. The values that
methods are compared by (accuracy, Pearson, Matthews) are all better when higher.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

Line = Mapping[str, Any]
Place = tuple[str, str]
Cell = tuple[str, str, int]

REFERENCES = ("central", "local")  # without a federation: never ranked beside federated methods
# The order of rows and colours; methods that are not named here follow in alphabetical order.
_METHODS = (
    "asymmetric", "lora", "ffa", "fedex", "flora", "flexlora", "rolora", "fedsvd", "fedsa", "a-only", "full",
    *REFERENCES,
)  # fmt: skip


def in_order(lines: Iterable[Line]) -> list[Line]:
    """Return the lines of results checked and sorted by method, task, split and seed, whatever their order was.

    Raises:
        ValueError: no line, two lines of one method and cell, or a final value that is not finite.
    """
    every = list(lines)
    found = sorted((line for line in every if "impossible" not in line), key=_place_in_order)
    if not found and every:
        raise ValueError(f"no cell could be made, so there is nothing to report on: {every[0]['impossible']}")
    if not found:
        raise ValueError("there is no result line to report on; give at least one")
    for line, after in pairwise(found):
        if name_of(line) == name_of(after):
            raise ValueError(f"{name_of(line)} has two result lines; keep the one that counts")
    for line in found:
        if not math.isfinite(line["final"]):
            raise ValueError(f"{name_of(line)}: final={line['final']!r} is not finite; leave the line out, it failed")
    return found


def impossible(lines: Iterable[Line]) -> list[Line]:
    """Return, in order, the last line of each cell whose split was impossible and which has no result either."""
    every = list(lines)
    made = {name_of(line) for line in every if "impossible" not in line}
    found = {name_of(line): line for line in every if "impossible" in line and name_of(line) not in made}
    return sorted(found.values(), key=_place_in_order)


def _place_in_order(line: Line) -> tuple[object, ...]:
    return (method_key(line["method"]), line["task"], _split_key(line["split"]), line["seed"])


def name_of(line: Line) -> str:
    """Name a line for a message."""
    return f"{line['method']} on {line['task']}, split {line['split']}, seed {line['seed']}"


def method_key(method: str) -> tuple[int, str]:
    """Return what methods are sorted by: known ones in the order of the tables, then the alphabet.

    A method with another kind of A (``lora:orthonormal``) follows that with its own.
    """
    name = method.partition(":")[0]
    return (_METHODS.index(name) if name in _METHODS else len(_METHODS), method)


def _split_key(split: str) -> tuple[int, float, str]:
    """Sort splits from even to uneven: iid, Dirichlet by falling concentration, others by name."""
    kind, _, number = split.partition(":")
    if kind == "dirichlet" and number.replace(".", "", 1).isdigit():
        return (1, -float(number), split)
    return (0 if split == "iid" else 2, 0.0, split)


def labels(lines: Iterable[Line]) -> dict[str, str]:
    """Return the display label by method, in the order of the tables."""
    found = {line["method"]: str(line["label"]) for line in lines}
    return {method: found[method] for method in sorted(found, key=method_key)}


def tasks(lines: Iterable[Line]) -> list[str]:
    """Return the tasks in alphabetical order."""
    return sorted({line["task"] for line in lines})


def splits(lines: Iterable[Line]) -> list[str]:
    """Return the splits from even to uneven; that of all data in one place is none, where there is another.

    >>> splits([{"method": "lora", "split": name} for name in ("severe", "dirichlet:0.1", "iid", "dirichlet:0.5")])
    ['iid', 'dirichlet:0.5', 'dirichlet:0.1', 'severe']
    """
    every = list(lines)
    found = {line["split"] for line in every if line["method"] != "central"} or {line["split"] for line in every}
    return sorted(found, key=_split_key)


def split_name(split: str) -> str:
    """Return the split as tables and figures write it."""
    return split.replace(":", " ")


def places(lines: Iterable[Line], split: str | None = None) -> list[Place]:
    """Return the places that hold a line of a federated method, of one split or of all."""
    found = {(line["task"], line["split"]) for line in lines if line["method"] not in REFERENCES}
    return sorted((p for p in found if split in (None, p[1])), key=lambda p: (_split_key(p[1]), p[0]))


def cell_of(line: Line) -> Cell:
    """Return the line's cell."""
    return (line["task"], line["split"], line["seed"])


def is_ranked(line: Line) -> bool:
    """Say whether the line competes for the best: federated, with one global model."""
    return line["method"] not in REFERENCES and not line["personal"]


def with_central_everywhere(lines: Sequence[Line]) -> list[Line]:
    """Repeat each central line in the splits of its task and seed that have none: central data has no split."""
    held = {cell_of(line) for line in lines if line["method"] == "central"}
    repeated = []
    for line in lines:
        for task, split in places(lines) if line["method"] == "central" else ():
            cell = (task, split, line["seed"])
            if task == line["task"] and cell not in held:
                held.add(cell)
                repeated.append({**line, "split": split})
    return [*lines, *repeated]


def missing(lines: Sequence[Line]) -> dict[str, list[Cell]]:
    """Return the cells that some federated method has and another has not, by the method that lacks them."""
    federated = [line for line in lines if line["method"] not in REFERENCES]
    every = {cell_of(line) for line in federated}
    lacking = {}
    for method in labels(federated):
        absent = every - {cell_of(line) for line in federated if line["method"] == method}
        if absent:
            lacking[method] = sorted(absent, key=lambda c: (c[0], _split_key(c[1]), c[2]))
    return lacking


def unequal_partitions(lines: Iterable[Line]) -> list[Cell]:
    """Return the cells whose federated lines do not all hold the same partition: they compare unlike with unlike."""
    digests: dict[Cell, set[str]] = {}
    for line in lines:
        if line["method"] != "central":
            digests.setdefault(cell_of(line), set()).add(line["partition"]["digest"])
    return sorted(cell for cell, found in digests.items() if len(found) > 1)


def gaps(lines: Sequence[Line], never_made: Sequence[Line] = ()) -> list[str]:
    """Say what is missing or cannot be compared: absent cells, a single seed, partitions that differ.

    Args:
        lines: as `in_order` returns them.
        never_made: as `impossible` returns them.
    """
    names, said = labels(lines), []
    reasons: dict[tuple[str, str, str], list[Line]] = {}
    for line in never_made:
        reasons.setdefault((line["task"], line["split"], line["impossible"]), []).append(line)
    for (task, split, reason), found in reasons.items():
        which = ", ".join(str(seed) for seed in sorted({line["seed"] for line in found}))
        who = ", ".join(names.get(method, method) for method in dict.fromkeys(line["method"] for line in found))
        said.append(f"{task}, split {split}, seed {which} cannot be made ({who}): {reason}.")
    seeds = {line["seed"] for line in lines}
    if len(seeds) == 1:
        said.append(
            f"n = 1 seed ({seeds.pop()}): no interval over seeds. Intervals of paired differences, if any, are over "
            "tasks, and say nothing of how the methods vary with the seed."
        )
    unmade = {(line["method"], cell_of(line)) for line in never_made}
    for method, every in missing(lines).items():
        absent = [cell for cell in every if (method, cell) not in unmade]
        if not absent:
            continue
        listed = ", ".join(f"{task} {split} seed {seed}" for task, split, seed in absent[:6])
        more = f" and {len(absent) - 6} more" if len(absent) > 6 else ""
        said.append(f"{names[method]} lacks {_count(len(absent), 'cell')} that others have: {listed}{more}.")
    unequal = unequal_partitions(lines)
    if unequal:
        task, split, seed = unequal[0]
        said.append(
            f"In {_count(len(unequal), 'cell')} the methods do not hold the same partition, so their pairs are not "
            f"over the same data; the first: {task} {split} seed {seed}."
        )
    return said


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "s")
