"""The tables and the figure of docs/speed.md, made of the benchmarks' raw lines: of one case the last counts."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fedasym.reports.plots import Line, draw_lines
from fedasym.reports.table import Entry, Sheet, to_markdown

Lines = Sequence[Mapping[str, Any]]


def latest(lines: Lines, *keys: str) -> list[Mapping[str, Any]]:
    """Return the last line of each case, in the order in which the cases came first."""
    return [*{tuple(line[key] for key in keys): line for line in lines}.values()]


def whole_job_markdown(lines: Lines) -> str:
    """Return one row a job: its seconds, those of a warm round, and how often they go into the yardstick's."""
    rows = [
        (
            line["job"],
            f"{line['whole_seconds']:.0f} s",
            f"{line['warm_round_seconds']:.1f} s",
            f"{line['whole_times_as_fast_as_peft']:.2f}",
            f"{line['warm_round_times_as_fast_as_peft']:.2f}",
        )
        for line in latest(lines, "job")
    ]
    return _table(("job", "the whole command", "a warm round", "times as fast", "its rounds"), rows)


def start_markdown(lines: Lines) -> str:
    """Return one row a job: the seconds from the command to its first step."""
    rows = [
        (line["job"], f"{line['median']:.1f} s", ", ".join(f"{seconds:.1f}" for seconds in sorted(line["seconds"])))
        for line in latest(lines, "job")
    ]
    return _table(("job", "the first step after", "each start, in s"), rows)


def cohort_markdown(lines: Lines) -> str:
    """Return one row a case: a client's step one after another and in one pass."""
    rows = []
    for line in latest(lines, "model", "clients", "batch_size"):
        times = []
        for way in ("alone", "together"):
            found = line[f"{way}_step_ms"]
            low, high = found["quartiles"]
            times.append(f"{found['median']:.1f} ms ({low:.1f}–{high:.1f})")
        rows.append(
            (line["model"], str(line["clients"]), str(line["batch_size"]), *times, f"{line['times_as_fast']:.2f}")
        )
    head = ("model", "clients", "batch", "a step, one after another", "a step, in one pass", "times as fast")
    return _table(head, rows)


def step_markdown(lines: Lines) -> str:
    """Return one row a case: how many times as fast as PEFT's LoRA each system's step is."""
    systems = ("B only", "B only, two products", "LoRA", "LoRA, two products", "PEFT LoRA, A frozen", "full", "bare")
    rows = []
    for line in latest(lines, "device", "dtype", "examples", "tokens", "rank"):
        peft = line["PEFT LoRA"]
        low, high = peft["quartiles_ms"]
        rows.append(
            (
                line["device"].partition(" ")[0],
                line["dtype"],
                f"{line['examples']} × {line['tokens']}",
                str(line["rank"]),
                f"{peft['median_ms']:.0f} ms ({low:.0f}–{high:.0f})",
                *(f"{line[system]['times_as_fast_as_peft_lora']:.2f}" for system in systems),
            )
        )
    head = ("device", "dtype", "examples × tokens", "rank", "a step of PEFT's LoRA", *systems)
    return _table(head, rows)


def one_product_markdown(lines: Lines) -> str:
    """Return one row a layer: how many times as fast one product is, by the rows that it is given."""
    found = latest(lines, "device", "d_in", "d_out", "rank")
    heads = tuple(f"{multiple:g} × break-even" for multiple in found[0]["multiples"])
    rows = [
        (
            f"{line['d_in']:,} → {line['d_out']:,}",
            str(line["rank"]),
            *(f"{times:.2f} ({count:,})" for times, count in zip(line["times_as_fast"], line["rows"], strict=True)),
        )
        for line in found
    ]
    return _table(("layer", "rank", *heads), rows)


def light_clients_markdown(lines: Lines) -> str:
    """Return one row a number of clients and cohort: what a client costs in a round, and what the process holds."""
    rows = []
    for line in sorted(_of_cohorts(lines), key=lambda line: (line["cohort"], line["clients"])):
        step, beside = line["step_ms"], line["beside_the_step_ms"]
        held = line["resident_mb_after_each_round"][-1]
        rows.append(
            (
                str(line["cohort"]),
                f"{line['clients']:,}",
                f"{line['round_seconds']:.1f} s",
                *(f"{value:.1f} ms" for value in (step, beside)),
                f"{held:,.0f} MB",
            )
        )
    return _table(("cohort", "clients", "a round", "a client's step", "beside it", "the process holds"), rows)


def light_clients(lines: Lines) -> tuple[str, bytes]:
    """Return caption and PNG: seconds of a round by the number of clients."""
    found = sorted(_of_cohorts(lines), key=lambda line: (line["cohort"], line["clients"]))
    curves = []
    for cohort in sorted({line["cohort"] for line in found}):
        own = [line for line in found if line["cohort"] == cohort]
        label = f"{cohort} in one pass" if cohort > 1 else "one after another"
        curves.append(Line(label, label, [line["clients"] for line in own], [line["round_seconds"] for line in own]))
    png = draw_lines(curves, "Many light clients in one process", "clients", "seconds a round")
    return "Seconds of a round by the number of clients.", png


def _of_cohorts(lines: Lines) -> list[Mapping[str, Any]]:
    return latest([line for line in lines if "cohort" in line], "clients", "cohort")


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return to_markdown(Sheet("", head, [[Entry(text) for text in row] for row in rows]))


MADE_OF: dict[str, Callable[[Lines], str]] = {
    "whole_job.jsonl": whole_job_markdown,
    "start.jsonl": start_markdown,
    "step.jsonl": step_markdown,
    "one_product.jsonl": one_product_markdown,
    "cohort.jsonl": cohort_markdown,
    "scale.jsonl": light_clients_markdown,
}
