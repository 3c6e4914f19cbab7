"""Killed and resumed equals never killed: same digests, same record, same adapter."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from world import tiny_settings, tiny_values, what_is_left

from fedasym.record import read_rounds
from server.strategy import FederationError
from simulations.local import run_local

ROOT = Path(__file__).resolve().parents[1]
ROUNDS = 3


def command(values: dict[str, object], out: Path, engine: str) -> list[str]:
    overrides = [f"--set={key}={value}" for key, value in values.items()]
    return [sys.executable, "-m", "simulations", "run", *overrides, "--out", str(out), "--engine", engine]


def kill_after_round(arguments: list[str], folder: Path, number: int) -> None:
    """Start a run and SIGKILL it and all its children as soon as a round is in its record."""
    process = subprocess.Popen(
        arguments, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    )
    while len(read_rounds(folder)) < number:
        if process.poll() is not None:
            raise AssertionError(process.stdout.read().decode() if process.stdout else "")
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGSTOP)  # nothing goes on while its children are looked for
    family = descendants(process.pid)
    for pid in [process.pid, *family]:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    process.wait()
    assert len(read_rounds(folder)) < ROUNDS, "the run was over before it was killed"


def descendants(pid: int) -> list[int]:
    """Return the processes started by a process, directly or not (from /proc)."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text()
            except OSError:
                continue
            parents.setdefault(int(stat.rpartition(")")[2].split()[1]), []).append(int(entry.name))
    found: list[int] = []
    for child in parents.get(pid, []):
        found += [child, *descendants(child)]
    return found


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("world")


VARIANTS = {
    "the defaults": {},
    "all that has a state": {
        "method": "lora", "clients-per-round": 2, "server-optimizer": "adam", "server-lr": 0.01,
        "head": "local", "client-holdout": 0.25,
    },
}  # fmt: skip
REMEMBERING = {
    "a stack that is folded": {"method": "fedex", "clients-per-round": 3},
    "one factor a round": {"method": "rolora", "server-optimizer": "momentum"},
    "a B of each client's own": {"method": "fedsa", "client-holdout": 0.25},
}


@pytest.mark.parametrize("variant", [*VARIANTS, *(pytest.param(v, marks=pytest.mark.slow) for v in REMEMBERING)])
def test_killed_after_every_round_and_resumed_equals_never_killed(world: Path, tmp_path: Path, variant: str) -> None:
    more = {**VARIANTS, **REMEMBERING}[variant]
    values = tiny_values(world, num_rounds=ROUNDS, **more)
    run_local(tiny_settings(world, out=str(tmp_path / "whole"), num_rounds=ROUNDS, **more), workers=1)
    folder = tmp_path / "killed"
    for number in range(1, ROUNDS):
        kill_after_round(command(values, folder, "local"), folder, number)
    subprocess.run(command(values, folder, "local"), cwd=ROOT, check=True, capture_output=True)
    assert what_is_left(folder) == what_is_left(tmp_path / "whole")


@pytest.mark.slow
def test_killed_in_flowers_engine_and_resumed_there_equals_never_killed(world: Path, tmp_path: Path) -> None:
    values = tiny_values(world, num_rounds=ROUNDS, local_steps=30)
    run_local(tiny_settings(world, out=str(tmp_path / "whole"), num_rounds=ROUNDS, local_steps=30), workers=1)
    folder = tmp_path / "killed"
    for number in range(1, ROUNDS):
        kill_after_round(command(values, folder, "flower"), folder, number)
    subprocess.run(command(values, folder, "flower"), cwd=ROOT, check=True, capture_output=True)
    # Flower draws node and run ids at random and writes them with as many bytes as they need.
    assert what_is_left(folder, "message") == what_is_left(tmp_path / "whole", "message")


# Python tells its audit hooks of every file before it is opened.
KILLED_BEFORE = """
import os, signal, sys
from simulations.__main__ import main
name = sys.argv.pop(1) + ".new"
def look(event, about):
    if event == "open" and str(about[0]).endswith(name):
        os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(look)
sys.exit(main())
"""


def test_killed_after_the_last_round_while_the_end_is_written_and_resumed_equals_never_killed(
    world: Path, tmp_path: Path
) -> None:
    whole = run_local(tiny_settings(world, out=str(tmp_path / "whole"), num_rounds=ROUNDS), workers=1)
    folder, values = tmp_path / "killed", tiny_values(world, num_rounds=ROUNDS)
    for name in ("summary.json", "adapter_model.safetensors"):
        words = command(values, folder, "local")[3:]
        done = subprocess.run([sys.executable, "-c", KILLED_BEFORE, name, *words], cwd=ROOT, capture_output=True)
        assert done.returncode == -signal.SIGKILL, done.stdout.decode()
        assert len(read_rounds(folder)) == ROUNDS and not list(folder.rglob(name))
    run_local(tiny_settings(world, out=str(folder), num_rounds=ROUNDS), workers=1)
    assert what_is_left(folder) == what_is_left(whole)


def test_a_finished_run_started_again_changes_nothing(world: Path, tmp_path: Path) -> None:
    settings = tiny_settings(world, out=str(tmp_path / "run"))
    before = what_is_left(run_local(settings, workers=1))
    assert what_is_left(run_local(settings, workers=1)) == before


def test_a_new_run_does_not_take_over_what_clients_kept_of_an_old_one(world: Path, tmp_path: Path) -> None:
    more = {"head": "local", "client_holdout": 0.25, "num_rounds": 2}
    fresh = run_local(tiny_settings(world, out=str(tmp_path / "fresh"), **more), workers=1)
    used = run_local(tiny_settings(world, out=str(tmp_path / "used"), **{**more, "seed": 1}), workers=1)
    for name in ("checkpoint.safetensors", "rounds.jsonl"):
        (used / name).unlink()
    again = run_local(tiny_settings(world, out=str(used), **more), workers=1)
    assert what_is_left(again) == what_is_left(fresh)


def test_a_stopped_run_continues_with_a_longer_timeout_and_a_smaller_quorum(world: Path, tmp_path: Path) -> None:
    whole = run_local(tiny_settings(world, out=str(tmp_path / "whole"), num_rounds=2), workers=1)
    run_local(tiny_settings(world, out=str(tmp_path / "run"), num_rounds=1, min_valid=4), workers=1)
    more = {"num_rounds": 2, "min_valid": 2, "round_timeout": 7200.0}
    assert what_is_left(run_local(tiny_settings(world, out=str(tmp_path / "run"), **more), workers=1)) == what_is_left(
        whole
    )


def test_a_longer_run_continues_a_shorter_one_to_the_same_bits(world: Path, tmp_path: Path) -> None:
    whole = run_local(tiny_settings(world, out=str(tmp_path / "whole"), num_rounds=4), workers=1)
    run_local(tiny_settings(world, out=str(tmp_path / "short"), num_rounds=2), workers=1)
    longer = run_local(tiny_settings(world, out=str(tmp_path / "short"), num_rounds=4), workers=1)
    assert what_is_left(longer) == what_is_left(whole)


@pytest.mark.parametrize(("change", "named"), [({"seed": 1}, "seed: 0 there, 1 here"), ({"lr": 0.1}, "lr: ")])
def test_a_folder_of_another_run_is_refused_and_the_difference_named(
    world: Path, tmp_path: Path, change: dict[str, object], named: str
) -> None:
    out = str(tmp_path / "run")
    run_local(tiny_settings(world, out=out, num_rounds=1), workers=1)
    with pytest.raises(FederationError, match="holds another run") as raised:
        run_local(tiny_settings(world, out=out, num_rounds=1, **change), workers=1)
    assert named in str(raised.value)


def test_a_folder_whose_base_model_changed_is_refused(world: Path, tmp_path: Path) -> None:
    from world import make_model

    out = str(tmp_path / "run")
    run_local(tiny_settings(tmp_path, out=out, num_rounds=1), workers=1)
    make_model(tmp_path / "model", seed=9)
    with pytest.raises(FederationError, match="base: '"):
        run_local(tiny_settings(tmp_path, out=out, num_rounds=2), workers=1)
