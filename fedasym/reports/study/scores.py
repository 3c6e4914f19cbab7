"""Tables of what each method reached: means over seeds by task and split, at the clients, and paired differences."""

from collections.abc import Callable, Mapping, Sequence

from fedasym.reports.study import result_lines
from fedasym.reports.study.estimates import (
    Paired,
    Spread,
    Unit,
    by_unit,
    final,
    final_at_clients,
    paired,
    seed_of,
    spread,
    standings,
    task_of,
    told_apart,
    unit_over,
    values,
    whole_seeds,
)
from fedasym.reports.study.result_lines import Line, Place
from fedasym.reports.table import DASH, Entry, Sheet

BELOW = "↓"
MAIN, PERSONAL, OTHER = (
    "federated, one global model",
    "personalised: judged on the clients' own examples, not ranked",
    "references without a federation, not ranked",
)


def score_sheets(lines: Sequence[Line], never_made: Sequence[Line] = ()) -> list[Sheet]:
    """Return the means over tasks, one column per split, then one table per split with one column per task.

    A column of a split whose mean lacks a task, since no cell of it could be made, names that task.

    Args:
        lines: result lines as `fedasym.reports.study.result_lines.in_order` returns them.
        never_made: cells that could not be made, as `fedasym.reports.study.result_lines.impossible` returns them.
    """
    every, found = result_lines.splits([*lines, *never_made]), []
    made = set(result_lines.places(lines))
    unmade = [place for place in result_lines.places(never_made) if place not in made]
    several = len(result_lines.tasks([*lines, *never_made])) > 1
    if len(every) > 1 or not several:
        wanted = {result_lines.split_name(s): (result_lines.places(lines, s), {s}) for s in every}
        uneven = non_iid(lines)
        if len({split for _, split in uneven}) > 1:
            wanted["non-iid splits"] = (uneven, {split for _, split in uneven})
        columns = {
            "\n".join([name, *(f"without {task}" for task, split in unmade if split in splits and several)]): here
            for name, (here, splits) in wanted.items()
        }
        title = "Mean over tasks" if several else f"Task {result_lines.tasks(lines)[0]}"
        found.append(_score_sheet(title, lines, columns, final, ranked=True, never_made=never_made))
    for split in every if several else ():
        here = result_lines.places(lines, split)
        columns = {
            f"{task}\n{_metric(lines, task)}": [(task, split)]
            for task, _ in sorted([*here, *(place for place in unmade if place[1] == split)])
        }
        if len(here) > 1:
            columns["mean"] = here
        title = f"Split {result_lines.split_name(split)}"
        sheet = _score_sheet(title, lines, columns, final, ranked=True, never_made=never_made)
        found.append(sheet._replace(note="") if found and sheet.note == found[0].note else sheet)
    return found


def clients_sheet(lines: Sequence[Line]) -> Sheet | None:
    """Return the metric on the clients' own kept-out examples after local training; None if no line has it."""
    measured = [line for line in lines if final_at_clients(line) is not None]
    if not measured:
        return None
    columns = {
        result_lines.split_name(split): result_lines.places(measured, split) for split in result_lines.splits(measured)
    }
    return _score_sheet("At the clients, after local training", measured, columns, final_at_clients, ranked=False)


def non_iid(lines: Sequence[Line]) -> list[Place]:
    """Return the places whose split is not iid."""
    return [place for place in result_lines.places(lines) if place[1] != "iid"]


def difference_sheets(lines: Sequence[Line], ours: str = "asymmetric") -> list[Sheet]:
    """Return ``ours`` minus each other method by split, and by task where there are several; none without two methods.

    Personalised methods are compared on the clients' own examples, where ``ours`` was judged there too.
    """
    names = result_lines.labels(lines)
    if ours not in names or len(names) < 2:
        return []
    every = result_lines.places(lines) or [(line["task"], line["split"]) for line in lines]
    by_split = {result_lines.split_name(s): [p for p in every if p[1] == s] for s in result_lines.splits(lines)}
    uneven = non_iid(lines)
    if 1 < len({split for _, split in uneven}) < len(by_split):
        by_split["non-iid splits"] = uneven
    if len(by_split) > 1:
        by_split["all splits"] = every
    several = len(result_lines.tasks(lines)) > 1
    title = f"{names[ours]} minus each other method"
    unit = "tasks: the seeds and splits of a task are averaged first" if several else "seeds of one task"
    found = [_difference_sheet(title, unit, lines, ours, by_split, task_of if several else seed_of)]
    if several:
        by_task = {task: [p for p in every if p[0] == task] for task in result_lines.tasks(lines)}
        unit = "seeds, the splits averaged first: each column speaks of its own task alone"
        found.append(_difference_sheet(f"{title}, task by task", unit, lines, ours, by_task, seed_of))
    return found


def _difference_sheet(
    title: str, unit: str, lines: Sequence[Line], ours: str, columns: Mapping[str, Sequence[Place]], observed: Unit
) -> Sheet:
    names = result_lines.labels(lines)
    lines = result_lines.with_central_everywhere(lines)
    at_server, at_clients = values(lines), values(lines, final_at_clients)
    personal = {line["method"] for line in lines if line["personal"]}
    found = {}
    for method in names:
        source = at_clients if method in personal else at_server
        for column, within in columns.items() if method != ours else ():
            kept = {cell: value for cell, value in source.get(ours, {}).items() if cell[:2] in set(within)}
            found[method, column] = paired(kept, source[method], observed)
    most = {column: max(each.n if each else 0 for (_, c), each in found.items() if c == column) for column in columns}
    apart = told_apart(found)
    rows = [
        [
            Entry(label, "at the clients" if method in personal else ""),
            *(difference_entry(found[method, c], most[c], (method, c) in apart) for c in columns),
        ]
        for method, label in names.items()
        if method != ours
    ]
    note = (
        f"Differences of the final metric, paired by task, split and seed: mean and 95 % interval (Student's t). One "
        f"observation is one of the n {unit}. Positive: the method of the title is higher. An interval stands for "
        "itself alone; bold: not 0 after Holm's correction for all differences of this table that have an interval "
        f"({sum(1 for each in found.values() if each and each.p is not None)}), at 5 %"
        + ("." if apart else ", which none is.")
    )
    return Sheet(title, ["minus", *(f"{c}\nn = {most[c]}" for c in columns)], rows, note)


def difference_entry(found: Paired | None, most: int, strong: bool) -> Entry:
    """Write a paired difference with its interval, and with its n where it is not ``most``."""
    if found is None:
        return DASH
    if found.low is None or found.high is None:
        return Entry(signed(found.mean), "n = 1: no interval")
    interval = f"[{signed(found.low)}, {signed(found.high)}]" + (f", n = {found.n}" if found.n < most else "")
    return Entry(signed(found.mean), interval, strong=strong)


def signed(number: float) -> str:
    """Write a difference with its sign and four decimals.

    >>> signed(0.0123), signed(-0.5), signed(-0.00001)
    ('+0.0123', '−0.5000', '0.0000')
    """
    text = f"{number:+.4f}".replace("-", "−")
    return text[1:] if float(f"{number:.4f}") == 0 else text


def spread_text(found: Spread) -> str:
    """Write mean ± standard deviation, the mean alone for one seed."""
    return f"{found.mean:.3f}" + ("" if found.sd is None else f" ± {found.sd:.3f}")


def _score_sheet(
    title: str,
    lines: Sequence[Line],
    columns: Mapping[str, Sequence[Place]],
    value: Callable[[Line], float | None],
    ranked: bool,
    never_made: Sequence[Line] = (),
) -> Sheet:
    names = result_lines.labels(lines)
    blocks = {MAIN: {x["method"] for x in lines if result_lines.is_ranked(x)}}
    blocks[PERSONAL] = {x["method"] for x in lines if x["personal"]} - set(result_lines.REFERENCES)
    blocks[OTHER] = names.keys() & set(result_lines.REFERENCES)
    found = values(result_lines.with_central_everywhere(lines), value)
    cells = {c: {m: whole_seeds(found.get(m, {}), wanted) for m in names} for c, wanted in columns.items()}
    by_seed = {(m, c): by_unit(own, seed_of) for c, by_method in cells.items() for m, own in by_method.items()}
    most = max(map(len, by_seed.values()), default=0)
    ranked = ranked and most > 1
    standing = standings(
        {c: {m: own for m, own in by_method.items() if ranked and m in blocks[MAIN]} for c, by_method in cells.items()},
        {c: unit_over(wanted) for c, wanted in columns.items()},
    )
    entries: dict[tuple[str, str], Entry] = {}
    for line in never_made:
        for column, wanted in columns.items():
            if (line["task"], line["split"]) in wanted:
                entries[line["method"], column] = DASH._replace(small="cannot be made")
    for (method, column), means in by_seed.items():
        highest, below = standing[column]
        if means:
            entries[method, column] = Entry(
                spread_text(spread(means.values())),
                f"n = {len(means)}" if len(means) < most else "",
                strong=method == highest and len(below) > 0 and blocks[MAIN] - {highest} == below,
                sign=BELOW if method in below else "",
            )
    rows: list[list[Entry]] = []
    for block, members in blocks.items():
        if members and block != MAIN:
            rows.append([Entry(block)])
        rows += [
            [Entry(names[m]), *(entries.get((m, column), DASH) for column in columns)] for m in names if m in members
        ]
    return Sheet(title, ["method", *columns], rows, _note(most, ranked, value is final_at_clients))


def _note(most: int, ranked: bool, at_clients: bool) -> str:
    where = "on the clients' own kept-out examples" if at_clients else "after the last round"
    if most < 2:
        return f"The metric {where}. n = 1 seed: no standard deviation, and nothing is told apart."
    text = f"The metric {where}: mean ± sample standard deviation over n = {most} seeds where no other n is said."
    if ranked:
        text += (
            f" {BELOW}: told apart from the highest mean of its column, by paired t-tests at 5 % for the whole table "
            "(Holm's correction); one observation is a task, the seeds and splits of it averaged first, where the "
            f"column has several, else a seed. Who has no {BELOW} is not told apart from the highest at this n, which "
            "does not make it equal. Bold: all others are told apart from it."
        )
    return text


def _metric(lines: Sequence[Line], task: str) -> str:
    return " / ".join(sorted({str(line["metric"]) for line in lines if line["task"] == task}))
