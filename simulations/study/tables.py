"""The pages' tables and figures, made anew from the raw result lines: ``python -m simulations tables``.

A block stands between ``<!-- table: FILE -->`` and ``<!-- end -->``; FILE is a results file.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fedasym.files import read_lines, write_atomic
from fedasym.methods import METHODS
from fedasym.reports.comparison import human_bytes, mismatch_entry, percent
from fedasym.reports.study.figures import figures
from fedasym.reports.study.result_lines import in_order
from fedasym.reports.study.scores import difference_sheets, score_sheets
from fedasym.reports.study.study_page import comparison_markdown
from fedasym.reports.study.tuning_table import tuning_markdown
from fedasym.reports.table import Entry, Sheet, to_markdown
from simulations.study.benchmark_tables import MADE_OF, light_clients
from simulations.study.results import RESULTS
from simulations.study.tuning import grid_points

ROOT = RESULTS.parents[1]
PAGES = tuple(
    ROOT / page
    for page in ("README.md", "simulations/README.md", "docs/reliability.md", "docs/scale.md", "docs/speed.md")
)
BENCHMARKS = ROOT / "benchmarks" / "results"
PLOTS = RESULTS / "plots"
FAMILIES = "families.jsonl"
START = "start-of-a.jsonl"
ATTACKS = "attacks.jsonl"
TRAFFIC = "traffic.jsonl"
_BLOCK = re.compile(r"<!-- table: (\S+) -->\n.*?<!-- end -->", re.DOTALL)


def refreshed(page: Path) -> str:
    """Return a page's text with every block made anew.

    Raises:
        FileNotFoundError: a block names a results file that does not exist.
    """

    def block(match: re.Match[str]) -> str:
        folder = BENCHMARKS if "benchmarks/" in match[1] else RESULTS
        file = folder / Path(match[1]).name
        if not file.exists():
            raise FileNotFoundError(f"{page} has a table of {match[1]}, but there is no {file}")
        return f"<!-- table: {match[1]} -->\n\n{_content(file)}\n\n<!-- end -->"

    return _BLOCK.sub(block, page.read_text())


def refresh() -> list[Path]:
    """Rewrite the pages, and the comparison's figures; return what was written."""
    for page in PAGES:
        write_atomic(page, refreshed(page).encode())
    comparison = read_lines(RESULTS / "comparison.jsonl")
    drawn = figures(in_order(comparison)) if comparison else {}
    for task, lines in _by_task(read_lines(RESULTS / FAMILIES)).items():
        drawn[f"families-{task}"] = figures(in_order(lines))["metric-by-bytes"]
    drawn["light-clients"] = light_clients(read_lines(BENCHMARKS / "scale.jsonl"))
    PLOTS.mkdir(exist_ok=True)
    for name, (_, png) in drawn.items():
        write_atomic(PLOTS / f"{name}.png", png)
    return [*PAGES, *(PLOTS / f"{name}.png" for name in drawn)]


def _content(file: Path) -> str:
    lines = read_lines(file)
    if file.name == FAMILIES:
        return families_markdown(lines)
    if file.name == FAMILIES.replace(".", "-tuning."):
        return "\n\n".join(
            f"{task}:\n\n{tuning_markdown(grid_points(points))}"
            for task, points in _by_task({"task": line["cell"]["task"], **line} for line in lines).items()
        )
    if file.name == "comparison.jsonl":
        return comparison_markdown(lines)
    if file.name == ATTACKS:
        return attacks_markdown(lines)
    if file.name == START:
        return start_markdown(lines)
    if file.name in MADE_OF:
        return MADE_OF[file.name](lines)
    if file.name == TRAFFIC:
        return traffic_markdown(lines, read_lines(BENCHMARKS / "average.jsonl")[-1])
    if file.name in ("comparison-tuning.jsonl", START.replace(".", "-tuning.")):
        return tuning_markdown(grid_points(lines))
    return tuning_markdown(lines) if file.name == "tuning.jsonl" else _runs_markdown(lines)


def families_markdown(lines: Sequence[Mapping[str, Any]]) -> str:
    """Return one row a family: what B only and standard LoRA reach from the untouched model, and their bytes."""
    rows = []
    for task, found in _by_task(lines).items():
        of = {line["method"]: line for line in found}
        ours, lora = of["asymmetric"], of["lora"]
        settings = ours["settings"]
        ups = [f"{line['payload_up_per_client_round']:,.0f} B" for line in (ours, lora)]
        who = f"{settings['num_clients']} clients, {settings['split']}, {ours['rounds']} rounds"
        judged = f"{ours['metric']}, n = {ours['held_out_examples']:,}"
        reached = [f"{line['final']:.3f} ± {standard_error(line):.3f}" for line in (ours, lora)]
        rows.append((task, Path(settings["model"]).name, who, judged, f"{ours['untouched']:.3f}", *reached, *ups))
    head = (
        "task", "model", "federation", "judged by", "untouched", "B only", "standard LoRA", "up, B only", "up, LoRA",
    )  # fmt: skip
    return to_markdown(Sheet("", head, [[Entry(text) for text in row] for row in rows]))


def attacks_markdown(lines: Sequence[Mapping[str, Any]]) -> str:
    """Return one row a rule of averaging: the final accuracy without liars, and under each attack by some of them."""
    rules = [*dict.fromkeys(line["rule"] for line in lines)]
    columns = sorted({(line["liars"], line["attack"]) for line in lines})
    of = {(line["rule"], line["liars"], line["attack"]): line for line in lines}

    def entry(line: Mapping[str, Any] | None) -> Entry:
        if line is None:
            return Entry("–")
        return Entry("the run ended") if line["ended"] else Entry(f"{line['accuracy'][-1]:.3f}")

    clients = lines[0]["clients"]
    head = ["aggregation", *(f"{liars} of {clients}: {attack}" if liars else "no liars" for liars, attack in columns)]
    rows = [[Entry(f"`{rule}`"), *(entry(of.get((rule, *place))) for place in columns)] for rule in rules]
    return to_markdown(Sheet("", head, rows))


def traffic_markdown(lines: Sequence[Mapping[str, Any]], average: Mapping[str, Any]) -> str:
    """Return one row a model, by size: a client's bytes each way, and what 1,000 replies of B only cost a server."""
    rows = []
    latest = {line["model"]: line for line in lines}
    for line in sorted(latest.values(), key=lambda line: line["parameters"]):
        each = line["bytes_each_way"]
        all_of_them = 1000 * each["asymmetric"]
        rows.append(
            [
                Entry(line["model"]),
                *(Entry(human_bytes(each[method])) for method in ("asymmetric", "lora", "full")),
                Entry(percent(1 - each["asymmetric"] / each["lora"])),
                Entry(human_bytes(all_of_them)),
                Entry(f"{all_of_them / 1e9 / average['exact']:,.0f} s"),
                Entry(human_bytes(each["asymmetric"] / 4 * average["most_bytes_a_value"])),
            ]
        )
    head = ("model", "B only", "standard LoRA", "full", "saved", "1,000 replies", "their exact mean", "its memory")
    return to_markdown(Sheet("", head, rows))


def start_markdown(lines: Sequence[Mapping[str, Any]]) -> str:
    """Return the ablation of A's start: what each method reached with either A, and how far start and method matter."""
    found = in_order(lines)
    beside_lora = [line for line in found if line["method"] != "asymmetric"]
    sheets = [*score_sheets(found), *difference_sheets(found), *difference_sheets(beside_lora, "lora")]
    return "\n\n".join(f"### {sheet.title}\n\n{to_markdown(sheet)}" for sheet in sheets)


def standard_error(line: Mapping[str, Any]) -> float:
    """Return the standard error of a final metric over held-out examples: the line's own, or that of a share."""
    if line["stderr"] is not None:
        return float(line["stderr"])
    return math.sqrt(line["final"] * (1.0 - line["final"]) / line["held_out_examples"])


def _by_task(lines: Iterable[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    found: dict[str, list[Mapping[str, Any]]] = {}
    for line in lines:
        found.setdefault(line["task"], []).append(line)
    return found


def _runs_markdown(lines: Sequence[Mapping[str, Any]]) -> str:
    """Return a table of runs side by side in Markdown; bytes are float32 values, 1 kB = 1000 bytes."""
    head = ("", "final", "up / client / round", "down / client / round", "whole run", "saved", "saved, adapter only")
    rows = [
        (
            METHODS[line["method"]].label,
            f"{line['metric']} {line['final']:.3f}",
            f"{line['payload_up_per_client_round']:,.0f} B",
            f"{line['payload_down_per_client_round']:,.0f} B",
            f"{line['payload_total'] / 1e6:.1f} MB",
            percent(line["saving"]),
            percent(line["saving_adapter"]),
        )
        for line in lines
    ]
    marks = [mismatch_entry(line["method"], line["mismatch"], 1) for line in lines]
    body = [[*(Entry(text) for text in row), mark] for row, mark in zip(rows, marks, strict=True)]
    return to_markdown(Sheet("", (*head, "mismatch"), body))
