"""What the pages claim: the tests they name exist, and the committed comparison holds what is said of it."""

import ast
import re
from collections import defaultdict
from itertools import combinations
from pathlib import Path
from statistics import fmean

import pytest
from scipy.stats import ttest_rel

from fedasym.files import read_lines

ROOT = Path(__file__).parents[1]
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("[!.]*/README.md")]
NON_IID = ("dirichlet:0.5", "severe")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_test_and_measurement_that_a_page_names_is_there(page: Path) -> None:
    for path, _, name in re.findall(r"\b((?:tests|benchmarks|simulations)/[\w./-]+\.\w+)(::(\w+))?", page.read_text()):
        assert (ROOT / path).exists(), f"{path} does not exist"
        if name:
            tree = ast.parse((ROOT / path).read_text())
            assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, f"{path}::{name}"


def test_the_page_about_scale_follows_from_its_raw_lines_and_its_tree_has_the_bits_of_one_server() -> None:
    page = (ROOT / "docs/scale.md").read_text()
    lines = read_lines(ROOT / "benchmarks/results/traffic.jsonl")
    sent = {line["model"]: line["bytes_each_way"]["asymmetric"] for line in lines}
    average = read_lines(ROOT / "benchmarks/results/average.jsonl")[-1]
    small, middle, large = sent["llama-3.2-1b"], sent["roberta-large"], sent["llama-3.1-70b"]
    for said in (
        f"are {small / 1e6:.0f} GB, {small / 1e6:.0f} s of the link and {small / 1e6 / average['exact']:.0f} s of the",
        f"A reply is {large / 1e6:.0f} MB. Its mean needs {large / 4e9 * average['most_bytes_a_value']:.0f} GB",
        f"sends for {large * 8 / 100e6:.0f} s",
        f"1,000 clients are {large / 1e6:.0f} GB, seven minutes",
        f"({middle / 1e6:.0f} MB) are {middle / 1e6:.0f} TB a round: four hours of that link, and five of the mean",
    ):
        assert said in page, said
    hours = middle / 3.6e6  # of a million replies on a link of 1 GB/s
    assert (round(large / 6e7), round(hours), round(hours / average["exact"])) == (7, 4, 5)
    exec(re.search(r"```python\n(.*?)```", page, re.DOTALL)[1], {})


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


def test_the_seconds_of_a_whole_job_are_those_of_the_raw_lines() -> None:
    found = {line["job"]: line for line in read_lines(ROOT / "benchmarks/results/whole_job.jsonl")}
    ours, yardstick = (
        found[job]["whole_seconds"] for job in ("fedasym, evaluated after every round", "PEFT and FedAvg")
    )
    said = f"takes {ours:.0f} s, evaluated after every round, where PEFT and FedAvg alone take {yardstick:.0f} s"
    assert said in (ROOT / "docs/limits.md").read_text()


def test_what_many_light_clients_cost_is_that_of_the_raw_lines() -> None:
    lines = read_lines(ROOT / "benchmarks/results/scale.jsonl")
    found = {(line["clients"], line.get("cohort", 1)): line for line in lines}
    counts = (10, 100, 1000, 3000)
    memory = [f"{found[n, 1]['resident_mb_after_each_round'][-1]:.0f}" for n in counts]
    alone, together = ([f"{found[n, cohort]['beside_the_step_ms']:.0f}" for n in counts] for cohort in (1, 16))
    said = (ROOT / "docs/limits.md").read_text()
    assert "none lost, the process holds {}, {}, {} and {} MB;".format(*memory) in said
    assert "a client costs {}, {}, {} and {} ms of a round".format(*alone) in said
    assert "trained 16 in one pass {}, {}, {} and {} (".format(*together) in said
    assert all(line["valid"] == [n] * 3 and not any(line["rejected"]) for (n, _), line in found.items())


@pytest.fixture(scope="module")
def lines() -> dict[tuple[str, str, str, int], dict]:
    found = read_lines(ROOT / "simulations/results/comparison.jsonl")
    return {(line["method"], line["task"], line["split"], line["seed"]): line for line in found}


def test_the_comparison_is_whole(lines) -> None:
    methods, tasks, splits, seeds = (set(column) for column in zip(*lines, strict=True))
    assert {"asymmetric", "ffa", "lora", "fedex", "rolora", "fedsvd", "central"} <= methods
    assert {"sst2", "qnli", "mrpc", "stsb"} <= tasks and {"iid", *NON_IID} <= splits and len(seeds) >= 3
    federated = len(methods - {"central"}) * len(tasks) * len(splits) * len(seeds)
    assert len(lines) == federated + len(tasks) * len(seeds)  # all data in one place have no split
    assert len({line["examples_trained"] for line in lines.values()}) == 1
    partitions = defaultdict(set)
    for (method, *cell), line in lines.items():
        if method != "central":
            partitions[tuple(cell)].add(line["partition"]["digest"])
    assert all(len(digests) == 1 for digests in partitions.values())


def test_no_two_federated_methods_are_told_apart_over_the_tasks_and_the_pages_say_the_interval(lines) -> None:
    by_task = defaultdict(lambda: defaultdict(list))
    for (method, task, split, _), line in lines.items():
        if split in NON_IID:
            by_task[method][task].append(line["final"])
    less = {}
    for one, other in combinations(sorted(by_task), 2):
        assert by_task[one].keys() == by_task[other].keys() == {"mrpc", "qnli", "sst2", "stsb"}
        pairs = [(fmean(by_task[one][task]), fmean(by_task[other][task])) for task in by_task[one]]
        less[one, other] = ttest_rel(*zip(*pairs, strict=True)), fmean(x - y for x, y in pairs)
    assert min(test.pvalue for test, _ in less.values()) > 0.05 / len(less)  # so none by Holm's
    test, mean = less["asymmetric", "lora"]
    interval = test.confidence_interval(0.95)
    said = [f"{100 * value:+.1f}".replace("-", "−") for value in (mean, interval.low, interval.high)]
    for page in ("README.md", "simulations/README.md", "docs/limits.md"):
        text = " ".join((ROOT / page).read_text().split())
        (found,) = re.findall(r"(\+2\.2) points[,:]?(?: with a)? 95 % interval (?:of )?(−[\d.]+) to (\+[\d.]+)", text)
        assert list(found) == said, page


def test_what_was_measured_of_the_mean_and_half_the_bytes(lines) -> None:
    mismatch = defaultdict(list)
    for (method, *_), line in lines.items():
        mismatch[method].append(line["mismatch"])
    assert max(max(mismatch[method]) for method in ("asymmetric", "ffa", "rolora", "fedsvd")) <= 5e-8
    assert min(mismatch["lora"]) > 1e-2
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
