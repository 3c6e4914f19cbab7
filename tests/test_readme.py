"""The README is true: its table is the committed result, its commands and its library example run."""

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from world import make_data, make_model, simulate

from fedasym.ops.processes import QUIET
from fedasym.runs.record import read_json
from simulations.run import read_settings

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def commands() -> list[str]:
    return [line for block in blocks("bash") for line in block.splitlines() if line]


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


def filled(text: str, places: dict[str, str]) -> str:
    for name in sorted(places, key=len, reverse=True):
        text = text.replace(name, places[name])
    return text


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory):
    """Yield an environment for `flwr` with a home and port of its own; end the SuperLink that it leaves behind."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    home = tmp_path_factory.mktemp("flower")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    yield {**os.environ, **QUIET, "FLWR_HOME": str(home), "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": port, "PATH": path}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().decode().split("\0")
            except OSError:
                continue
            if port in words and any(word.endswith("flower-superlink") for word in words):
                os.killpg(int(entry.name), signal.SIGTERM)


def final_status(shell: dict[str, str]) -> str:
    """Return the last run's status once it is finished; the log stream may end a moment earlier."""
    while True:
        command = ["flwr", "list", "--limit", "1", "--format", "json"]
        listed = subprocess.run(command, cwd=ROOT, env=shell, capture_output=True, text=True, check=True).stdout
        status = str(json.loads(listed[listed.index("{") :])["runs"][0]["status"])
        if status.startswith("finished"):
            return status


OVERRIDDEN = [line for line in commands() if line.startswith("flwr run . --stream -c")]


@pytest.mark.parametrize(
    "command", [*(pytest.param(each, marks=pytest.mark.slow) for each in OVERRIDDEN[:-1]), OVERRIDDEN[-1]]
)
def test_a_flwr_run_command_of_the_readme_completes_with_the_bits_of_one_process(
    command: str, places: dict[str, str], shell: dict[str, str], tmp_path: Path
) -> None:
    command = filled(command, places)
    run = subprocess.run(["bash", "-c", command], cwd=ROOT, env=shell, capture_output=True, text=True)
    assert "report " in run.stdout, run.stdout + run.stderr
    assert final_status(shell) == "finished:completed"
    report = re.search(r"report (\S+report\.html)", run.stdout)
    assert report and Path(report[1]).exists()
    summary = read_json(Path(report[1]).with_name("summary.json"))
    assert summary["rounds"] >= 1
    words = shlex.split(command)
    pairs = shlex.split(words[words.index("-c") + 1])
    same = simulate(read_settings(None, pairs, tmp_path / "local"), workers=1)
    assert read_json(same / "summary.json")["digest"] == summary["digest"]


@pytest.mark.slow
def test_the_plain_flwr_run_of_the_readme_is_the_whole_demo(shell: dict[str, str]) -> None:
    (command,) = (line for line in commands() if line == "flwr run . --stream")
    run = subprocess.run(["bash", "-c", command], cwd=ROOT, env=shell, capture_output=True, text=True)
    report = re.search(r"report (\S+report\.html)", run.stdout)
    assert report, run.stdout + run.stderr
    assert final_status(shell) == "finished:completed"
    folder = Path(report[1]).parent
    assert read_json(folder / "summary.json")["final"] >= 0.76
    shutil.rmtree(folder)  # it lies where `flwr run` puts it, not in a place of this test


@pytest.mark.parametrize("command", [line for line in commands() if line.startswith("python")])
def test_an_in_process_command_of_the_readme_completes(command: str, shell: dict[str, str], tmp_path: Path) -> None:
    run = subprocess.run(
        ["bash", "-c", f"{command} --out {tmp_path / 'run'}"], cwd=ROOT, env=shell, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert (tmp_path / "run" / "summary.json").exists()


def test_the_library_example_runs_and_moves_only_B(places: dict[str, str]) -> None:
    (code,) = blocks("python")
    rng = torch.Generator().manual_seed(1)
    clients = [torch.randint(0, 50, (n, 12), generator=rng) for n in (16, 24)]
    names: dict[str, object] = {"clients": clients}
    exec(filled(code, places), names)
    from fedasym.adapters import lora

    model, mean = names["model"], names["mean"]
    trained = lora.read(lora.trainable(model))
    assert all(trained[name].any() and np.array_equal(trained[name], B) for name, B in mean.mean().items())
    fresh = LlamaForCausalLM.from_pretrained(places["/path/to/causal-lm"])
    lora.adapt(fresh, targets=["q_proj", "v_proj"], rank=8, alpha=16, seed=7)
    assert lora.fingerprint_base(model) == lora.fingerprint_base(fresh)
    assert lora.fingerprint_A(model, "orthonormal") == lora.fingerprint_A(fresh, "orthonormal")
