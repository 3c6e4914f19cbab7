"""Tables of what each method cost: bytes, exactness, seconds, and the bytes until it reaches another's result."""

import statistics
from collections.abc import Callable, Iterable, Sequence

from fedasym.reports.comparison import human_bytes, mismatch_entry, percent
from fedasym.reports.study import result_lines
from fedasym.reports.study.estimates import reach, within_half
from fedasym.reports.study.result_lines import Line, cell_of
from fedasym.reports.table import DASH, Entry, Sheet

EXACT = 1e-6  # relative mismatch up to which a broadcast counts as the mean of the clients' updates


def cost_sheet(lines: Sequence[Line], reference: str = "lora") -> Sheet:
    """Return bytes, saving against the reference, mismatch and seconds by method.

    Args:
        lines: result lines as `fedasym.reports.study.result_lines.in_order` returns them.
        reference: the method that the saving is against, cell by cell.
    """
    names = result_lines.labels(lines)
    columns = [
        "method", "payload up", "payload down", "message up", "message down", "saving", "worst mismatch", "seconds",
    ]  # fmt: skip
    rows = []
    for method, label in names.items():
        own = [line for line in lines if line["method"] == method]
        sends = any(line["payload_total"] for line in own)
        row = [Entry(label)]
        for way in ("up", "down"):
            row.append(_with_adapters(own, f"payload_{way}_per_client_round", human_bytes) if sends else DASH)
        for way in ("up", "down"):
            key = f"message_{way}_per_client_round"
            row.append(Entry(_range([x[key] for x in own], human_bytes)) if sends else DASH)
        row.append(_saving_entry(lines, method, reference) if sends else DASH)
        row.append(_mismatch_entry(method, own))
        examples = _range([x["examples_trained"] for x in own], lambda n: f"{n:,.0f}")
        row.append(Entry(f"{statistics.fmean(x['seconds'] for x in own):,.0f}", f"{examples} examples"))
        rows.append(row)
    against = names.get(reference)
    note = (
        "Payload and messages are bytes per client and round, up and down: float32 values, 4 B each, and messages as "
        "serialised; 1 kB = 10³ B. No head: the adapters only, without the output layer. "
        + (f"Saving: 1 − bytes / bytes of {against}, up and down, in the same cell. " if against else "")
        + "Mismatch: how far what is broadcast is from the mean of the clients' updates, relative to that mean, as "
        f"measured in the worst round of any cell; up to {EXACT:.0e} it is no more than float32's rounding of what is "
        "broadcast. By construction: every client's factors are relayed and nothing is averaged on the way, so "
        "there is nothing to measure. Seconds and examples trained on: of one cell, the seconds in the mean. Where two "
        "values stand, they are the least and the most of all cells."
    )
    return Sheet("Cost", columns, rows, note)


def savings(lines: Iterable[Line], method: str, reference: str, adapters: bool = False) -> list[float]:
    """Return ``1 − bytes / reference's bytes`` per client and round, both ways, of each cell that both have.

    Args:
        lines: result lines.
        method: whose saving.
        reference: against which method.
        adapters: leave the output layer's bytes out, of both.
    """
    found = list(lines)
    whole = {cell_of(x): _traffic(x, adapters) for x in found if x["method"] == reference}
    own = {cell_of(x): _traffic(x, adapters) for x in found if x["method"] == method}
    return [1.0 - spent / whole[cell] for cell, spent in own.items() if whole.get(cell)]


def worst_mismatch(lines: Iterable[Line]) -> float | None:
    """Return the largest mismatch of the lines, None where none was measured."""
    return max((float(x["mismatch"]) for x in lines if x["mismatch"] is not None), default=None)


def reach_sheet(lines: Sequence[Line], reference: str = "lora") -> Sheet | None:
    """Return when each global method reaches the reference's final value; None without the reference or another."""
    names = result_lines.labels(line for line in lines if result_lines.is_ranked(line))
    if reference not in names or len(names) < 2:
        return None
    every = result_lines.splits(lines)
    rows = []
    for method, label in names.items():
        found = reach(lines, method, reference)
        row = [Entry(label)]
        for split in every:
            cell = [spent for (_, where, _), (spent, _) in found.items() if where == split]
            known = [spent for spent in cell if spent is not None]
            text = f"{len(known)} of {len(cell)}" if cell else "–"
            row.append(Entry(text, human_bytes(statistics.median(known)) if known else ""))
        share, count = within_half(lines, method, reference)
        row.append(Entry(f"{share} of {count}", percent(share / count)) if count else DASH)
        rows.append(row)
    note = (
        f"In how many cells (task, split, seed) some evaluated round is at least as good as {names[reference]} after "
        "its last round. Small: the payload of all clients, up and down, spent until then; the median of the cells "
        f"that reach it. Last column: cells that reach it with at most half of what {names[reference]} spent in all."
    )
    columns = ["method", *(result_lines.split_name(split) for split in every), "with at most\nhalf the bytes"]
    return Sheet(f"Bytes until {names[reference]}'s final value is reached", columns, rows, note)


def _with_adapters(lines: Sequence[Line], key: str, write: Callable[[float], str]) -> Entry:
    bare = _range([line[key] - line["head_bytes"] for line in lines], write)
    whole = _range([line[key] for line in lines], write)
    return Entry(whole, f"no head {bare}" if any(line["head_bytes"] for line in lines) else "")


def _saving_entry(lines: Sequence[Line], method: str, reference: str) -> Entry:
    whole, bare = (savings(lines, method, reference, adapters) for adapters in (False, True))
    if method == reference or not whole:
        return DASH
    return Entry(_range(whole, percent), f"no head {_range(bare, percent)}")


def _mismatch_entry(method: str, lines: Sequence[Line]) -> Entry:
    worst = worst_mismatch(lines)
    found = mismatch_entry(method, worst, 1)
    if worst is None or found.small:
        return found
    return found._replace(small="float32's\nrounding" if worst <= EXACT else "not exact")


def _traffic(line: Line, adapters: bool) -> float:
    both = line["payload_up_per_client_round"] + line["payload_down_per_client_round"]
    return float(both - 2 * line["head_bytes"] * adapters)


def _range(numbers: Sequence[float], write: Callable[[float], str]) -> str:
    """Write the numbers' common text, or their least and most."""
    low, high = write(min(numbers)), write(max(numbers))
    return low if low == high else f"{low} – {high}"
