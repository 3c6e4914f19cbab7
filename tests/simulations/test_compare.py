"""A comparison runs each cell once, goes on where it stopped, and tunes every method alike without the test set."""

import dataclasses
import io
import json
import os
import shutil
import signal
import time
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import tomli_w
import warm
from rich.console import Console
from world import tiny_values

from fedasym.files import append_line, read_lines
from fedasym.ops.processes import held_alone
from fedasym.reports.study import study_page
from server.failure import FederationError
from simulations.__main__ import main
from simulations.study.cells import Cell, cell_settings
from simulations.study.compare import Comparison
from simulations.study.demo_tuning import TUNING, demo_study
from simulations.study.results import RESULTS, result_lines
from simulations.study.runner import require_same, run_study
from simulations.study.tuning import CUT, GRID, SEED, best_rates, grid_of, grid_points, rates_study

ROOT = Path(__file__).resolve().parents[2]
QUIET = Console(quiet=True)
TIMES = {"seconds", "seconds_by_round"}


def base(root: Path) -> dict[str, object]:
    values = tiny_values(root, num_rounds=2, num_clients=3, split="iid")
    return {key: value for key, value in values.items() if key not in ("task", "split")}


def told(lines):
    """What a comparison says but for how long it took."""
    return [{key: value for key, value in line.items() if key not in TIMES} for line in lines]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("compare")
    tiny_values(root)
    return root


@pytest.fixture
def in_this_process(monkeypatch) -> None:
    """Run cells in a thread: new processes import all anew, and which process runs them is not what is asked."""
    monkeypatch.setattr("simulations.study.runner._pool", ThreadPoolExecutor)


@pytest.fixture(scope="module")
def whole(world: Path):
    """A comparison that was never interrupted, its cells in threads of this process, and its lines."""
    splits, methods = ("iid", "dirichlet:1.0"), ("asymmetric", "lora", "central")
    comparison = Comparison(("classification",), splits, methods, (0,), base(world), {("lora", ""): {"lr": 0.25}})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("simulations.study.runner._pool", ThreadPoolExecutor)
        return comparison, run_study(comparison.study(), world / "whole/cells.jsonl", world / "whole/work", 2, QUIET)


def test_every_cell_has_a_line_of_its_split_method_seed_and_rates(whole) -> None:
    comparison, lines = whole
    cells = [(line["split"], line["method"], line["seed"]) for line in lines]
    federated = [(s, m, 0) for s in comparison.splits for m in comparison.methods if m != "central"]
    assert cells == [*federated[:2], ("iid", "central", 0), *federated[2:]]
    assert {line["settings"]["lr"] for line in lines if line["method"] == "lora"} == {0.25}
    wanted = {
        "task", "split", "method", "label", "seed", "final", "metric", "rounds", "payload_up_per_client_round",
        "payload_down_per_client_round", "payload_total", "payload_by_round", "mismatch", "settings", "versions",
        "partition", "personal", "head_bytes", "examples_trained",
    }  # fmt: skip
    assert all(wanted <= line.keys() for line in lines)


def test_methods_of_one_split_share_its_partition_and_their_number_of_examples(whole) -> None:
    _, lines = whole
    for split in ("iid", "dirichlet:1.0"):
        federated = [line for line in lines if line["split"] == split and line["method"] != "central"]
        assert len({line["partition"]["digest"] for line in federated}) == 1
    assert len({line["examples_trained"] for line in lines}) == 1


def test_all_data_in_one_place_run_once_and_nothing_travels(whole) -> None:
    _, lines = whole
    (one,) = (line for line in lines if line["method"] == "central")
    assert (one["payload_total"], one["message_total"], one["mismatch"]) == (0, 0, None)


def test_finished_cells_are_skipped_and_the_file_stays_as_it_is(whole, world) -> None:
    comparison, lines = whole
    file = world / "whole/cells.jsonl"
    before = file.read_bytes()
    assert run_study(comparison.study(), file, world / "nowhere", 1, QUIET) == lines
    assert file.read_bytes() == before and not (world / "nowhere").exists()


def test_lines_of_other_settings_are_refused_by_name(whole, world) -> None:
    comparison, _ = whole
    other = Comparison(("classification",), ("iid",), ("lora",), (0,), {**comparison.base, "rank": 2}, {})
    with pytest.raises(ValueError, match=r"cells.jsonl holds classification-iid-lora-0 of other .*rank: 4 there, 2 "):
        run_study(other.study(), world / "whole/cells.jsonl", world / "nowhere", 1, QUIET)


def test_an_unknown_method_and_a_bad_setting_are_refused_before_anything_runs(world) -> None:
    for methods, more, message in (
        (("asymmetrc",), {}, "methods asymmetrc are unknown; use asymmetric, lora"),
        (("lora",), {"rank": 0}, "setting rank=0 is below 1"),
    ):
        with pytest.raises(ValueError, match=message):
            comparison = Comparison(("classification",), ("iid",), methods, (0,), {**base(world), **more}, {})
            run_study(comparison.study(), world / "none/cells.jsonl", world / "none/work", 1, QUIET)


@pytest.mark.slow
def test_killed_at_any_point_and_started_again_a_comparison_ends_with_the_same_lines(whole, world) -> None:
    comparison, lines = whole
    out = world / "killed"
    config = world / "killed.toml"
    config.write_text(tomli_w.dumps({"task": "classification", "lr": 0.0, **comparison.base}))
    words = [
        "compare", "--config", str(config), "--split", "iid,dirichlet:1.0", "--methods", "asymmetric,lora,central",
        "--seeds", "1", "--jobs", "1", "--out", str(out),
    ]  # fmt: skip
    out.mkdir()
    rates = {"cell": {"method": "lora", "task": "t", **GRID[0], "lr": 0.25}, "score": 1.0}
    (out / "tuning.jsonl").write_text(json.dumps(rates) + "\n")
    for _ in range(2):
        process = warm.start(words, world / "killed.log")
        before = progress(out)
        while progress(out) < before + 3 and process.is_alive():
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGKILL)  # its workers are of its process group
        process.join()
    assert f"lr of {config} give way to the tuned rates of" in " ".join((world / "killed.log").read_text().split())
    assert len(read_lines(out / "cells.jsonl")) < len(lines), "the comparison was over before it was killed"
    assert main(words) == 0
    order = {(line["split"], line["method"]): place for place, line in enumerate(lines)}
    again = sorted(read_lines(out / "cells.jsonl"), key=lambda line: order[line["split"], line["method"]])
    assert told(again) == told(lines)
    assert (out / "report.html").exists() and not list((out / "work").iterdir())


def progress(out: Path) -> int:
    """Count finished rounds, of finished cells and of those at work."""
    lines = len(read_lines(out / "cells.jsonl"))
    return 2 * lines + sum(len(path.read_text().splitlines()) for path in out.glob("work/*/rounds.jsonl"))


def test_central_trains_on_as_many_examples_as_the_federation_and_a_personal_method_makes_all_keep_some_out(
    world,
) -> None:
    shared = base(world)
    settings = cell_settings(Cell("classification", "severe", "central", 3), shared, Path("x"))
    assert (settings.num_clients, settings.split, settings.local_steps) == (1, "iid", 3 * 3)
    both = Comparison(("classification",), ("iid",), ("lora", "fedsa"), (0,), shared, {})
    assert {cell_settings(cell, both.shared(), Path("x")).client_holdout for cell in both.study().cells} == {0.2}


def test_the_best_rates_are_a_tasks_own_or_those_of_the_highest_mean_over_all_tasks() -> None:
    def line(lr, task, score):
        return {"cell": {"method": "lora", "task": task, **GRID[0], "lr": lr}, "score": score}

    lines = [line(0.1, "a", 0.9), line(0.1, "b", 0.1), line(0.3, "a", 0.5), line(0.3, "b", 0.6), line(1.0, "a", 0.99)]
    assert {place: config["lr"] for place, config in best_rates(lines).items()} == {
        ("lora", "a"): 1.0, ("lora", "b"): 0.3, ("lora", ""): 0.3,
    }  # fmt: skip
    assert [point["score"] for point in grid_points(lines)] == pytest.approx([0.5, 0.55, 0.99])
    failed = best_rates([*lines, line(3.0, "a", 0.0), line(3.0, "b", None)])  # it diverged on b
    assert failed == best_rates(lines)


def test_tuning_gives_every_method_the_same_grid_on_a_cut_of_the_training_data_alone(world, in_this_process) -> None:
    data = world / "train-only"
    shutil.copytree(world / "data", data)
    (data / "test.jsonl").unlink()  # reading it would fail
    grid, own = grid_of(["adamw:0.003"]), {"validation-cut": 40}
    file = world / "tuning.jsonl"
    shared = {**base(world), "data": str(data)}
    compared = Comparison((), (), ("asymmetric", "fedsa", "local"), (), shared, {})
    run_study(rates_study(compared, ["classification"], "iid", grid, own), file, world / "tuning", 1, QUIET)
    lines = read_lines(file)
    assert best_rates(lines)["fedsa", ""] == grid[0]
    assert [line["cell"]["method"] for line in lines] == ["asymmetric", "fedsa"]
    assert {line["settings"]["client_holdout"] for line in lines} == {0.2}
    assert best_rates(lines)["local", ""] == best_rates(lines)["asymmetric", ""]
    other = dataclasses.replace(compared, base={**shared, "rank": 2})
    with pytest.raises(ValueError, match="rank: 4 there, 2 here"):
        run_study(rates_study(other, ["classification"], "iid", grid, own), file, world / "tuning", 1, QUIET)
    with pytest.raises(ValueError, match=r"split: 'iid' there, 'dirichlet:0\.5' here"):
        run_study(rates_study(compared, ["classification"], "dirichlet:0.5", grid, own), file, world / "t", 1, QUIET)
    assert {line["settings"]["validation_cut"] for line in lines} == {40}
    assert {line["settings"]["seed"] for line in lines} == {SEED}
    assert all(line["score"] == sum(line["metric_by_round"][-2:]) / 2 for line in lines)


def test_a_cell_that_fails_is_named_after_the_others_are_done_and_tried_again(world, tmp_path, in_this_process) -> None:
    shared = {**base(world), "clip": 0.0}
    rates = {("lora", "classification"): {"lr": 1e30, "head-lr": 1e30}}
    broken = Comparison(("classification",), ("iid",), ("lora", "asymmetric"), (0,), shared, rates)
    for _ in range(2):
        with pytest.raises(FederationError, match=r"1 of 2 cells failed.*iid-lora-0.*the training loss is"):
            run_study(broken.study(), tmp_path / "cells.jsonl", tmp_path / "work", 1, QUIET)
        assert [line["method"] for line in read_lines(tmp_path / "cells.jsonl")] == ["asymmetric"]


def test_a_cell_whose_split_is_impossible_is_recorded_the_others_run_and_it_is_tried_again_when_asked(
    world, tmp_path, in_this_process
) -> None:
    def compare(**options):
        told = Console(file=io.StringIO(), width=1000)
        more = options.pop("more", {})
        comparison = Comparison(
            ("classification",), ("pathological:7", "iid"), ("asymmetric",), (0,), {**base(world), **more}, {}
        )
        lines = run_study(comparison.study(), tmp_path / "cells.jsonl", tmp_path / "work", 1, told, **options)
        return lines, told.file.getvalue()

    (never, made), _ = compare()
    assert never["split"] == "pathological:7" and "is not possible on" in never["impossible"] and "final" not in never
    assert made["split"] == "iid" and 0 <= made["final"] <= 1
    assert not list((tmp_path / "work").iterdir())

    before = (tmp_path / "cells.jsonl").read_bytes()
    again, said = compare()
    assert again == [never, made] and (tmp_path / "cells.jsonl").read_bytes() == before
    assert f"classification-pathological7-asymmetric-0: {never['impossible']}" in said and "--retry" in said

    retried, _ = compare(retry=True)
    assert retried == [never, made] and len(read_lines(tmp_path / "cells.jsonl")) == 3  # tried, and impossible again
    assert study_page.comparison_markdown(read_lines(tmp_path / "cells.jsonl")).count("cannot be made") >= 1

    (tmp_path / "cells.jsonl").write_bytes(before.splitlines(keepends=True)[0])  # nothing but what was impossible
    other, said = compare(more={"rank": 2})
    assert "rank" not in said and other[0]["settings"]["rank"] == 2 == other[1]["settings"]["rank"]


def test_a_tuning_whose_split_is_impossible_on_one_task_leaves_that_task_out() -> None:
    def line(lr, task, **found):
        return {"cell": {"method": "lora", "task": task, **GRID[0], "lr": lr}} | found

    lines = [line(0.1, "a", score=0.5), line(0.3, "a", score=0.6)]
    lines += [line(lr, "b", impossible="too few", settings={}) for lr in (0.1, 0.3)]
    assert {place: config["lr"] for place, config in best_rates(lines).items()} == {
        ("lora", "a"): 0.3,
        ("lora", ""): 0.3,
    }


def test_a_method_with_another_kind_of_A_has_its_own_lines_label_and_rates(world, tmp_path, in_this_process) -> None:
    comparison = Comparison(("classification",), ("iid",), ("lora", "lora:orthonormal"), (0,), base(world), {})
    one, other = run_study(comparison.study(), tmp_path / "cells.jsonl", tmp_path / "work", 1, QUIET)
    assert (one["method"], one["label"]) == ("lora", "standard LoRA")
    assert (other["method"], other["label"]) == ("lora:orthonormal", "standard LoRA, orthonormal A")
    assert one["settings"] | {"kind": "orthonormal"} == other["settings"] and one["settings"]["kind"] == "kaiming"
    assert one["train_loss_by_round"] != other["train_loss_by_round"]
    tuned = dataclasses.replace(comparison, rates={("lora:orthonormal", ""): {"lr": 0.125}}).study()
    assert [cell_settings(cell, tuned.base, Path(".")).lr for cell in tuned.cells] == [one["settings"]["lr"], 0.125]
    for method, message in (
        ("lora:kaiming", "names no other kind of A than lora's own; use lora, or lora:orthonormal"),
        ("lora:round", "names no other kind of A"),
        ("central:kaiming", "central is not compared by kinds of A"),
        ("full:kaiming", "full is not compared by kinds of A"),
    ):
        with pytest.raises(ValueError, match=message):
            dataclasses.replace(comparison, methods=(method,)).study()


def test_a_line_torn_by_a_crash_is_left_out_and_replaced(tmp_path) -> None:
    file = tmp_path / "lines.jsonl"
    append_line(file, {"a": 1})
    with file.open("a") as end:
        end.write('{"a": 2, "tor')
    assert read_lines(file) == [{"a": 1}]
    append_line(file, {"a": 3})
    assert read_lines(file) == [{"a": 1}, {"a": 3}]


def test_result_lines_need_a_finished_run(tmp_path) -> None:
    with pytest.raises((ValueError, FileNotFoundError)):
        result_lines([tmp_path])


@pytest.mark.parametrize(
    ("name", "other", "named"),
    [
        ("comparison", {"num-rounds": 7}, "num_rounds: 6 there, 7 here"),
        ("start-of-a", {"one-product": True}, "one_product: False there, True here"),  # in float32: other bits
    ],
)
def test_the_committed_tuning_fits_the_committed_settings_whatever_settings_came_since(name, other, named) -> None:
    base = tomllib.loads((ROOT / f"simulations/configs/{name}.toml").read_text()) | {
        "validation-cut": CUT,
        "test-cap": 0,
    }
    for line in read_lines(RESULTS / f"{name}-tuning.jsonl"):
        base["dtype"] = line["settings"]["dtype"]  # the second leaves it to the machine
        point = {key: value for key, value in line["cell"].items() if key not in ("method", "task")}
        cell = Cell(line["cell"]["task"], "dirichlet:0.5", line["cell"]["method"], SEED, tuple(sorted(point.items())))
        require_same(cell, base, line, RESULTS)
    with pytest.raises(ValueError, match=named):
        require_same(cell, {**base, **other}, line, RESULTS)


def test_every_cell_of_the_demos_grid_has_its_committed_line_of_the_same_settings(tmp_path) -> None:
    shutil.copy(TUNING, tmp_path / "tuning.jsonl")
    lines = run_study(demo_study(), tmp_path / "tuning.jsonl", tmp_path / "nowhere", 1, QUIET)
    assert lines == read_lines(TUNING) and len(lines) == len(demo_study().cells)
    assert (tmp_path / "tuning.jsonl").read_bytes() == TUNING.read_bytes() and not (tmp_path / "nowhere").exists()


def test_a_new_line_of_the_demos_grid_says_what_the_committed_ones_say(world, tmp_path, in_this_process) -> None:
    (committed, *_), cell = read_lines(TUNING), demo_study().cells[-1]
    tiny = dataclasses.replace(cell, task="classification", split="iid")
    study = dataclasses.replace(demo_study(), cells=[tiny], base={**base(world), "num-rounds": 4})
    (line,) = run_study(study, tmp_path / "tuning.jsonl", tmp_path / "work", 1, QUIET)
    assert line.keys() == committed.keys()
    assert line["cell"] == {"method": "lora", **dict(cell.overrides), "seed": 1}
    assert line["score"] == sum(line["accuracy"][1:]) / 3 and len(line["accuracy"]) == 4
    assert line["settings"].keys() >= committed["settings"].keys() - {"out"}
    assert run_study(study, tmp_path / "tuning.jsonl", tmp_path / "work", 1, QUIET) == [line]


def test_the_folder_of_the_results_has_one_study_at_a_time(tmp_path) -> None:
    with held_alone(tmp_path, ""), pytest.raises(BlockingIOError, match="in use by another process"):
        run_study(demo_study(), tmp_path / "tuning.jsonl", tmp_path / "work", 1, QUIET)
