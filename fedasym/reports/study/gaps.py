"""What is missing of a study, or cannot be compared in it."""

from collections.abc import Sequence

from fedasym.reports.study import result_lines
from fedasym.reports.study.result_lines import Line


def gaps(lines: Sequence[Line]) -> list[str]:
    """Say what is missing or cannot be compared: absent cells, a single seed, partitions that differ."""
    names, said = result_lines.labels(lines), []
    seeds = {line["seed"] for line in lines}
    if len(seeds) == 1:
        said.append(
            f"n = 1 seed ({seeds.pop()}): no interval over seeds. Intervals of paired differences are over tasks and "
            "splits, and say nothing of how the methods vary with the seed."
        )
    for method, absent in result_lines.missing(lines).items():
        listed = ", ".join(f"{task} {split} seed {seed}" for task, split, seed in absent[:6])
        more = f" and {len(absent) - 6} more" if len(absent) > 6 else ""
        said.append(f"{names[method]} lacks {_count(len(absent), 'cell')} that others have: {listed}{more}.")
    unequal = result_lines.unequal_partitions(lines)
    if unequal:
        task, split, seed = unequal[0]
        said.append(
            f"In {_count(len(unequal), 'cell')} the methods do not hold the same partition, so their pairs are not "
            f"over the same data; the first: {task} {split} seed {seed}."
        )
    return said


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "s")
