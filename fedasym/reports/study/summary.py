"""What a study says, in one paragraph made of its numbers alone."""

from collections.abc import Sequence

from fedasym.reports.comparison import human_bytes, percent
from fedasym.reports.study import result_lines
from fedasym.reports.study.costs import EXACT, savings, worst_mismatch
from fedasym.reports.study.estimates import Paired, mean_over, paired, spread, standing, values, within_half
from fedasym.reports.study.result_lines import Line
from fedasym.reports.study.scores import non_iid, signed, spread_text


def conclusion(lines: Sequence[Line], ours: str = "asymmetric", reference: str = "lora") -> str:
    """Return the paragraph: what was compared, who is best, ours against the reference, bytes, exactness.

    Args:
        lines: result lines as `fedasym.reports.study.result_lines.in_order` returns them.
        ours: the method that the study is about; its sentences are left out where it has no line.
        reference: the method it is measured against; likewise.
    """
    names = result_lines.labels(lines)
    said = [_size(lines), _best(lines)]
    if {ours, reference} <= names.keys() and ours != reference:
        said += [
            _difference(lines, ours, reference),
            _saving(lines, ours, reference),
            _reach(lines, ours, reference),
        ]
    said.append(_exactness(lines))
    return " ".join(sentence for sentence in said if sentence)


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


def _size(lines: Sequence[Line]) -> str:
    federated = [line for line in lines if line["method"] not in result_lines.REFERENCES]
    parts = (
        _count(len(result_lines.labels(federated)), "federated method"),
        f"on {_count(len(result_lines.tasks(lines)), 'task')}",
        _count(len({split for _, split in result_lines.places(lines)} or result_lines.splits(lines)), "split"),
        _count(len({line["seed"] for line in lines}), "seed"),
    )
    models = " and ".join(sorted({str(line["model"]) for line in lines}))
    return f"{parts[0]} {parts[1]}, {parts[2]} and {parts[3]}, model {models}: {_count(len(lines), 'finished cell')}."


def _best(lines: Sequence[Line]) -> str:
    ranked = [line for line in lines if result_lines.is_ranked(line)]
    names, uneven, seeds = result_lines.labels(ranked), non_iid(ranked), {line["seed"] for line in ranked}
    wanted = uneven or result_lines.places(ranked)
    found = {method: mean_over(by_cell, wanted) for method, by_cell in values(ranked).items()}
    place = standing(found)
    where = "over tasks and the non-iid splits" if uneven else "over tasks and splits"
    if place.best is None:
        return f"No global method has every task and split for any seed: no mean {where}." if names else ""
    best = spread(found[place.best].values())
    text = f"The best mean {where} is that of {names[place.best]}, {spread_text(best)}"
    fewer = [label for method, label in names.items() if len(found.get(method, {})) < len(seeds)]
    torn = f" {_listed(fewer)} {'has' if len(fewer) == 1 else 'have'} not every cell of it." if fewer else ""
    if best.n < 2:
        return f"{text} (n = 1 seed: no interval).{torn}"
    tied = [names[method] for method in names if method in place.tied]
    if not tied:
        return f"{text} (n = {best.n} seeds); no other is statistically tied with it.{torn}"
    return f"{text} (n = {best.n} seeds); statistically tied with it: {_listed(tied)}.{torn}"


def _difference(lines: Sequence[Line], ours: str, reference: str) -> str:
    names, found = result_lines.labels(lines), values(line for line in lines if result_lines.is_ranked(line))
    difference = paired(found.get(ours, {}), found.get(reference, {}))
    if difference is None:
        return ""
    text = f"{names[ours]} minus {names[reference]} is {signed(difference.mean)} in the mean"
    return f"{text} over {_count(difference.n, 'shared cell')}: {verdict(difference)}."


def verdict(found: Paired) -> str:
    """Say what the interval of a paired difference says."""
    if found.low is None or found.high is None:
        return "one pair has no interval"
    interval = f"95 % interval [{signed(found.low)}, {signed(found.high)}], "
    if found.holds_zero:
        return interval + "which contains 0: no difference can be told"
    return interval + ("above 0: higher" if found.low > 0 else "below 0: lower")


def _saving(lines: Sequence[Line], ours: str, reference: str) -> str:
    names = result_lines.labels(lines)
    whole, bare = (savings(lines, ours, reference, adapters) for adapters in (False, True))
    if not whole:
        return ""
    spent = sorted(
        line["payload_up_per_client_round"] + line["payload_down_per_client_round"]
        for line in lines
        if line["method"] == ours
    )
    bytes_said = " to ".join(dict.fromkeys(human_bytes(count) for count in (spent[0], spent[-1])))
    return (
        f"It moves {bytes_said} per client and round, up and down, {_between(whole)} less than {names[reference]} "
        f"({_between(bare)} for the adapters alone)."
    )


def _reach(lines: Sequence[Line], ours: str, reference: str) -> str:
    share, count = within_half(lines, ours, reference)
    if not count:
        return ""
    label = result_lines.labels(lines)[reference]
    return f"It reaches {label}'s final value with at most half of its bytes in {share} of {count} cells."


def _exactness(lines: Sequence[Line]) -> str:
    exact: list[str] = []
    other: list[str] = []
    for method, label in result_lines.labels(lines).items():
        worst = worst_mismatch(line for line in lines if line["method"] == method)
        if worst is not None:
            exact += [label] if worst <= EXACT else []
            other += [f"{label} ({worst:.1e})"] if worst > EXACT else []
    if not exact and not other:
        return ""
    text = (
        f"What is broadcast is the mean of the clients' updates up to {EXACT:.0e} for {_listed(exact) or 'no method'}"
    )
    return text + (f"; not for {_listed(other)}." if other else ".")


def _between(shares: Sequence[float]) -> str:
    return " to ".join(dict.fromkeys((percent(min(shares)), percent(max(shares)))))


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:-1]) + (" and " if len(names) > 1 else "") + names[-1] if names else ""


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "s")
