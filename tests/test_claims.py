"""What the pages claim: the tests they name exist, and the committed comparison holds what is said of it."""

import ast
import re
from collections import defaultdict
from pathlib import Path
from statistics import fmean

import pytest

from fedasym.files import read_lines

ROOT = Path(__file__).parents[1]
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("*/README.md")]
NON_IID = ("dirichlet:0.5", "severe")
EXACT = 1e-6  # relative; float32 alone is up to 6e-8


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_test_and_measurement_that_a_page_names_is_there(page: Path) -> None:
    for path, _, name in re.findall(r"\b((?:tests|benchmarks|simulations)/[\w./-]+\.\w+)(::(\w+))?", page.read_text()):
        assert (ROOT / path).exists(), f"{path} does not exist"
        if name:
            tree = ast.parse((ROOT / path).read_text())
            assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, f"{path}::{name}"


def test_the_throughput_of_the_exact_mean_is_that_of_the_raw_line() -> None:
    pattern = (
        r"takes in ([\d.]+) GB of .* in ([\d.]+): ([\d.]+) times its time \((\d+) replies of (\d+) MB, (\d+) cores\)"
    )
    (said,) = re.findall(pattern, (ROOT / "docs/limits.md").read_text())
    line = read_lines(ROOT / "benchmarks/results/average.jsonl")[-1]
    assert line["unit"] == "GB/s of incoming float32"
    assert [float(text) for text in said] == [
        line["exact"], line["flower"], round(line["times_flowers_time"], 1),
        line["replies"], line["values"] * 4 / 1e6, line["cpu_count"],
    ]  # fmt: skip


@pytest.fixture(scope="module")
def lines() -> dict[tuple[str, str, str, int], dict]:
    found = read_lines(ROOT / "simulations/results/comparison.jsonl")
    return {(line["method"], line["task"], line["split"], line["seed"]): line for line in found}


def test_the_comparison_is_whole(lines) -> None:
    methods, tasks, splits, seeds = (set(column) for column in zip(*lines, strict=True))
    assert {"asymmetric", "ffa", "lora", "fedex", "rolora", "fedsvd", "central"} <= methods
    assert {"sst2", "qnli", "mrpc", "stsb"} <= tasks and {"iid", *NON_IID} <= splits and len(seeds) >= 3
    assert len(lines) == len(methods) * len(tasks) * len(splits) * len(seeds)
    assert len({line["examples_trained"] for line in lines.values()}) == 1
    partitions = defaultdict(set)
    for (method, *cell), line in lines.items():
        if method != "central":
            partitions[tuple(cell)].add(line["partition"]["digest"])
    assert all(len(digests) == 1 for digests in partitions.values())


def test_b_only_has_at_least_loras_mean_and_the_best_exact_ones_less_a_point_at_half_the_bytes(lines) -> None:
    finals, mismatch = defaultdict(list), defaultdict(list)
    for (method, _, split, _), line in lines.items():
        if split in NON_IID:
            finals[method].append(line["final"])
        mismatch[method].append(line["mismatch"])
    means = {method: fmean(values) for method, values in finals.items() if method != "central"}
    exact = {method for method in means if max(mismatch[method]) <= EXACT}
    assert exact == {"asymmetric", "ffa", "fedex", "rolora", "fedsvd"} and min(mismatch["lora"]) > 1e-2
    assert means["asymmetric"] >= means["lora"]
    assert means["asymmetric"] >= max(means[method] for method in exact) - 0.01
    for (method, *cell), line in lines.items():
        if method == "asymmetric":
            for way in ("payload_up_per_client_round", "payload_down_per_client_round"):
                ours, theirs = (each[way] - each["head_bytes"] for each in (line, lines[("lora", *cell)]))
                assert 2 * ours <= theirs  # of the adapters; the output layer is the same for both


def test_b_only_reaches_loras_final_value_at_half_its_bytes_in_most_cells(lines) -> None:
    reached = []
    for (method, *cell), line in lines.items():
        if method == "lora":
            ours, spent = lines[("asymmetric", *cell)], 0
            for value, payload in zip(ours["metric_by_round"], ours["payload_by_round"], strict=True):
                spent += payload
                if value is not None and value >= line["final"] and spent <= line["payload_total"] / 2:
                    reached.append(cell)
                    break
    assert len(reached) > sum(key[0] == "lora" for key in lines) / 2
