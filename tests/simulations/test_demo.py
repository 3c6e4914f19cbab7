"""The demo's promises, on the committed result and, slowly, on a new run."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from world import simulate, tiny_settings

from fedasym.files import read_lines
from fedasym.methods import METHODS
from fedasym.reports.study.estimates import paired
from fedasym.settings import Settings
from simulations.__main__ import main
from simulations.folders import clear, is_run
from simulations.study.demo_tuning import METHODS as TUNED
from simulations.study.demo_tuning import TUNING
from simulations.study.results import RESULTS, result_lines

ROOT = Path(__file__).resolve().parents[2]


def keeps_its_promises(lines: list[dict[str, Any]]) -> None:
    """Assert what the demo promises of B only beside standard LoRA."""
    ours, lora = lines
    assert (ours["method"], lora["method"]) == ("asymmetric", "lora")
    assert ours["final"] >= 0.76
    assert ours["final"] >= lora["final"] - 0.005
    last = [value for value in ours["metric_by_round"] if value is not None][-3:]  # of the rounds that were evaluated
    assert max(last) - min(last) <= 0.03
    for way in ("up", "down"):
        key = f"payload_{way}_per_client_round"
        assert ours[key] <= 0.51 * lora[key]
    assert ours["mismatch"] <= 1e-7 < 1e-3 < lora["mismatch"]


def test_the_committed_demo_keeps_its_promises() -> None:
    keeps_its_promises(read_lines(RESULTS / "demo.jsonl"))


def test_the_demo_is_within_four_points_of_central_training_by_its_recipe_on_as_many_examples() -> None:
    ours = read_lines(RESULTS / "demo.jsonl")[0]
    central = read_lines(RESULTS / "central.jsonl")[0]
    recipe = ("kind", "optimizer", "lr", "head_lr", "batch_size", "rank", "targets")
    assert [ours["settings"][key] for key in recipe] == [central["settings"][key] for key in recipe]
    for line, clients in ((ours, 10), (central, 1)):
        settings = line["settings"]
        assert settings["num_rounds"] * clients * settings["local_steps"] * settings["batch_size"] == 4_480
    assert ours["final"] >= central["final"] - 0.04


@pytest.mark.parametrize("method", TUNED)
def test_the_defaults_are_the_winners_of_the_committed_grid(method: str) -> None:
    lines = [line for line in read_lines(TUNING) if line["cell"].keys() == {"method", "optimizer", "lr", "head-lr"}]
    best = max((line for line in lines if line["cell"]["method"] == method), key=lambda line: line["score"])["cell"]
    chosen = METHODS[method]
    assert (chosen.optimizer, chosen.lr, chosen.head_lr) == (best["optimizer"], best["lr"], best["head-lr"])


def test_the_plain_mean_is_the_default_since_momentum_is_ahead_but_not_beyond_chance() -> None:
    scores = {}
    for line in read_lines(TUNING):
        cell = line["cell"]
        if (cell["optimizer"], cell["lr"]) == ("sgd", 0.3) and cell.get("server-momentum", 0.5) == 0.5:
            scores[cell["method"], cell.get("seed", 0), cell.get("server-optimizer", "none")] = line["score"]
    places = [(method, seed) for method in TUNED for seed in (0, 1)]
    difference = paired(
        *({place: scores[*place, name] for place in places} for name in ("momentum", "none")), lambda place: place
    )
    assert difference and difference.n == 4 and difference.low <= 0.0 <= difference.high and difference.mean > 0.01
    assert all(scores[*place, "momentum"] > scores[*place, "none"] for place in places)
    assert Settings().server_optimizer == "none"


def test_both_methods_were_tuned_on_the_same_grid_and_never_on_the_test_set() -> None:
    lines = read_lines(TUNING)
    cells = {method: [line["cell"] for line in lines if line["cell"]["method"] == method] for method in TUNED}
    grids = [{tuple(v for k, v in sorted(cell.items()) if k != "method") for cell in group} for group in cells.values()]
    assert grids[0] == grids[1] and len(grids[0]) == len(cells["lora"])
    assert all(line["settings"]["validation-cut"] > 0 for line in lines)


def test_the_demos_configs_differ_from_the_defaults_in_the_method_alone() -> None:
    ours, lora = (line["settings"] for line in read_lines(RESULTS / "demo.jsonl"))
    assert {key for key in ours if ours[key] != lora[key]} <= {"method", "kind", "optimizer", "lr", "head_lr"}
    assert ours["num_clients"] == 10 and ours["split"] == "dirichlet:0.5" == Settings().split


@pytest.mark.parametrize("text", [None, "{}", "[]", "no JSON", '{"model_type": "bert"}'])
def test_a_folder_that_is_no_run_is_refused_by_name_and_no_run_is_removed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str | None
) -> None:
    for name in ("asymmetric/config.json", "lora/notes.txt"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text('{"contract_hash": "c0"}')
    if text is not None:
        (tmp_path / "lora" / "config.json").write_text(text)
    before = sorted(tmp_path.rglob("*"))
    assert main(["demo", "--out", str(tmp_path)]) == 1
    said = "".join(capsys.readouterr().out.split())
    assert f"{tmp_path}/lora" in said and "isnotdeleted" in said and "--out" in said
    assert sorted(tmp_path.rglob("*")) == before


def test_an_earlier_run_makes_way_also_one_that_hardly_began(tmp_path: Path) -> None:
    run = simulate(tiny_settings(tmp_path, out=str(tmp_path / "run"), num_rounds=1), workers=1)
    begun = tmp_path / "begun"
    begun.mkdir()
    for name in ("flower.log", ".lock"):
        (begun / name).write_text("")
    for folder in (run, begun, tmp_path / "none"):
        clear(folder, is_run, "run")
        assert not folder.exists()


@pytest.mark.slow
def test_a_new_demo_keeps_its_promises(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "simulations", "demo", "--out", str(tmp_path)], cwd=ROOT, check=True)
    lines = result_lines([tmp_path / "asymmetric", tmp_path / "lora"])
    keeps_its_promises(lines)
