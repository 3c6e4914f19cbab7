"""The README is true: its table is the committed result, its commands and its library example run."""

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from page_commands import ROOT, blocks, commands, filled, flower_run, flower_shell, overrides_of
from transformers import LlamaConfig, LlamaForCausalLM
from world import make_data, make_model, simulate

from clients.__main__ import _parser
from fedasym.runs.record import read_json
from simulations.run import read_settings

README = (ROOT / "README.md").read_text()


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Make what stands behind the README's /path/to names."""
    root = tmp_path_factory.mktemp("readme")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=50, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4
        )
        LlamaForCausalLM(config).save_pretrained(root / "causal-lm")
    return {
        "/path/to/model": str(make_model(root / "model")),
        "/path/to/data": str(make_data(root / "data")),
        "/path/to/run": str(root / "run"),
        "/path/to/causal-lm": str(root / "causal-lm"),
    }


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    with flower_shell(tmp_path_factory.mktemp("flower")) as environment:
        yield environment


OVERRIDDEN = [line for line in commands(README) if line.startswith("flwr run . --stream -c")]


@pytest.mark.slow
@pytest.mark.parametrize("command", [*OVERRIDDEN[:-1], pytest.param(OVERRIDDEN[-1], marks=pytest.mark.ci)])
def test_a_flwr_run_command_of_the_readme_completes_with_the_bits_of_one_process(
    command: str, places: dict[str, str], shell: dict[str, str], tmp_path: Path
) -> None:
    command = filled(command, places)
    folder = flower_run(command, shell)
    assert (folder / "report.html").exists()
    summary = read_json(folder / "summary.json")
    assert summary["rounds"] >= 1
    same = simulate(read_settings(None, overrides_of(command), tmp_path / "local"), workers=1)
    assert read_json(same / "summary.json")["digest"] == summary["digest"]


@pytest.mark.slow
def test_the_plain_flwr_run_of_the_readme_is_the_whole_demo(shell: dict[str, str]) -> None:
    (command,) = (line for line in commands(README) if line == "flwr run . --stream")
    folder = flower_run(command, shell)
    assert read_json(folder / "summary.json")["final"] >= 0.76
    shutil.rmtree(folder)  # it lies where `flwr run` puts it, not in a place of this test


@pytest.mark.slow
@pytest.mark.ci
@pytest.mark.parametrize("command", [line for line in commands(README) if line.startswith("python")])
def test_an_in_process_command_of_the_readme_completes(command: str, shell: dict[str, str], tmp_path: Path) -> None:
    run = subprocess.run(
        ["bash", "-c", f"{command} --out {tmp_path / 'run'}"], cwd=ROOT, env=shell, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert (tmp_path / "run" / "summary.json").exists()


def test_the_commands_of_a_deployment_in_the_readme_are_taken(tmp_path: Path) -> None:
    (run,) = re.findall(r"^    (flwr run \. federation .*)", README, re.MULTILINE)
    settings = read_settings(None, overrides_of(run), tmp_path / "run")
    (up,) = re.findall(r"^    python -m (clients up .*?)  +#", README, re.MULTILINE)
    words = up.replace("KIT", str(tmp_path / "kit")).replace("FOLDER", str(tmp_path)).split()[1:]
    told = _parser().parse_args(words)
    assert told.labels == settings.labels == "0,1" and "FLWR_HOME=HOME/flwr" in README


def test_the_library_example_runs_and_moves_only_B(places: dict[str, str]) -> None:
    (code,) = blocks(README, "python")
    rng = torch.Generator().manual_seed(1)
    clients = [torch.randint(0, 50, (n, 12), generator=rng) for n in (16, 24)]
    names: dict[str, object] = {"clients": clients}
    exec(filled(code, places), names)
    from fedasym.adapters import lora, trainable_state

    model, mean = names["model"], names["mean"]
    trained = trainable_state.read(trainable_state.trainable(model))
    assert all(trained[name].any() and np.array_equal(trained[name], B) for name, B in mean.mean().items())
    fresh = LlamaForCausalLM.from_pretrained(places["/path/to/causal-lm"])
    lora.adapt(fresh, targets=["q_proj", "v_proj"], rank=8, alpha=16, seed=7)
    assert lora.fingerprint_base(model) == lora.fingerprint_base(fresh)
    assert lora.fingerprint_A(model, "orthonormal") == lora.fingerprint_A(fresh, "orthonormal")
