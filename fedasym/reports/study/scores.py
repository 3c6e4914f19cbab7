"""Tables of what each method reached: means over seeds by task and split, at the clients, and paired differences."""

from collections.abc import Callable, Mapping, Sequence

from fedasym.reports.study import result_lines
from fedasym.reports.study.estimates import (
    Paired,
    Spread,
    final,
    final_at_clients,
    mean_over,
    paired,
    spread,
    standing,
    values,
)
from fedasym.reports.study.result_lines import Line, Place
from fedasym.reports.table import DASH, Entry, Sheet

TIED = "≈"
MAIN, PERSONAL, OTHER = (
    "federated, one global model",
    "personalised: judged on the clients' own examples, not ranked",
    "references without a federation, not ranked",
)


def score_sheets(lines: Sequence[Line]) -> list[Sheet]:
    """Return the means over tasks, one column per split, then one table per split with one column per task.

    Args:
        lines: result lines as `fedasym.reports.study.result_lines.in_order` returns them.
    """
    every, found = result_lines.splits(lines), []
    several = len(result_lines.tasks(lines)) > 1
    if len(every) > 1 or not several:
        columns = {result_lines.split_name(split): result_lines.places(lines, split) for split in every}
        uneven = non_iid(lines)
        if len({split for _, split in uneven}) > 1:
            columns["non-iid splits"] = uneven
        title = "Mean over tasks" if several else f"Task {result_lines.tasks(lines)[0]}"
        found.append(_score_sheet(title, lines, columns, final, ranked=True))
    for split in every if several else ():
        here = result_lines.places(lines, split)
        columns = {f"{task}\n{_metric(lines, task)}": [(task, split)] for task, _ in here}
        if len(here) > 1:
            columns["mean"] = here
        kept = [line for line in lines if line["split"] == split or line["method"] == "central"]
        sheet = _score_sheet(f"Split {result_lines.split_name(split)}", kept, columns, final, ranked=True)
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


def difference_sheet(lines: Sequence[Line], ours: str = "asymmetric") -> Sheet | None:
    """Return ``ours`` minus each other method over the cells both have; None without ``ours`` or another method.

    Personalised methods are compared on the clients' own examples, where ``ours`` was judged there too.
    """
    names = result_lines.labels(lines)
    if ours not in names or len(names) < 2:
        return None
    lines = result_lines.with_central_everywhere(lines)
    columns = {result_lines.split_name(split): {split} for split in result_lines.splits(lines)}
    uneven = {split for _, split in non_iid(lines)}
    if 1 < len(uneven) < len(columns):
        columns["non-iid splits"] = uneven
    if len(columns) > 1:
        columns["all splits"] = set(result_lines.splits(lines))
    at_server, at_clients = values(lines), values(lines, final_at_clients)
    personal = {line["method"] for line in lines if line["personal"]}
    found = {}
    for method in names.keys() - {ours}:
        source = at_clients if method in personal else at_server
        for column, within in columns.items():
            kept = {key: value for key, value in source.get(ours, {}).items() if key[1] in within}
            found[method, column] = paired(kept, source[method])
    most = {column: max(each.n if each else 0 for (_, c), each in found.items() if c == column) for column in columns}
    rows = [
        [
            Entry(label, "at the clients" if method in personal else ""),
            *(difference_entry(found[method, column], most[column]) for column in columns),
        ]
        for method, label in names.items()
        if method != ours
    ]
    note = (
        "Paired differences of the final metric over the cells (task, split, seed) that both have: mean and 95 % "
        "interval (Student's t) over n cells, as the column says where no other n stands. Positive: the method of the "
        "title is higher. Bold: the interval excludes 0. Cells of different tasks are pooled and taken as "
        "independent; nothing is corrected for the "
        "number of comparisons."
    )
    return Sheet(
        f"{names[ours]} minus each other method", ["minus", *(f"{c}\nn = {most[c]}" for c in columns)], rows, note
    )


def difference_entry(found: Paired | None, most: int) -> Entry:
    """Write a paired difference: bold where its interval excludes 0, with its n where it is not ``most``."""
    if found is None:
        return DASH
    if found.low is None or found.high is None:
        return Entry(signed(found.mean), "n = 1: no interval")
    interval = f"[{signed(found.low)}, {signed(found.high)}]" + (f", n = {found.n}" if found.n < most else "")
    return Entry(signed(found.mean), interval, strong=found.holds_zero is False)


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
) -> Sheet:
    names = result_lines.labels(lines)
    blocks = {MAIN: {x["method"] for x in lines if result_lines.is_ranked(x)}}
    blocks[PERSONAL] = {x["method"] for x in lines if x["personal"]} - set(result_lines.REFERENCES)
    blocks[OTHER] = names.keys() & set(result_lines.REFERENCES)
    found = values(result_lines.with_central_everywhere(lines), value)
    means = {
        method: {column: mean_over(found.get(method, {}), wanted) for column, wanted in columns.items()}
        for method in names
    }
    most = max((len(by_seed) for row in means.values() for by_seed in row.values()), default=0)
    entries: dict[tuple[str, str], Entry] = {}
    for column in columns:
        place = standing({m: means[m][column] for m in names if ranked and m in blocks[MAIN]})
        for method in names:
            by_seed = means[method][column]
            if by_seed:
                entries[method, column] = Entry(
                    spread_text(spread(by_seed.values())),
                    f"n = {len(by_seed)}" if len(by_seed) < most else "",
                    strong=method == place.best,
                    sign=TIED if method in place.tied else "",
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
        text = f"The metric {where}. n = 1 seed: no standard deviation and no interval."
        return text + (" Bold: best." if ranked else "")
    text = f"The metric {where}: mean ± sample standard deviation over n = {most} seeds where no other n is said."
    if ranked:
        text += (
            f" Bold: best mean of at least two seeds. {TIED}: statistically tied with it, the 95 % interval "
            "(Student's t) of the difference paired by seed contains 0."
        )
    return text


def _metric(lines: Sequence[Line], task: str) -> str:
    return " / ".join(sorted({str(line["metric"]) for line in lines if line["task"] == task}))
