"""Killed and resumed equals never killed: same digests, same record, same adapter."""

import dataclasses
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import warm
from warm import kill_one_process_after_round, words
from world import crash_in_round, simulate, tiny_settings, tiny_values, what_is_left

from fedasym.runs import checkpoint
from fedasym.runs.record import read_json, read_rounds
from fedasym.runs.trained_model import load_trained
from server.failure import FederationError

ROOT = Path(__file__).resolve().parents[2]
ROUNDS = 3


def command(values: dict[str, object], out: Path, engine: str) -> list[str]:
    return [sys.executable, "-m", "simulations", *words(values, out, engine)]


def kill_family(arguments: list[str], when: Callable[[], bool], after: float = 0.0) -> bool:
    """Start a run and SIGKILL it and all its children so many seconds after something is true; False: it was over."""
    process = subprocess.Popen(
        arguments, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    )
    while not when():
        if process.poll() is not None:
            raise AssertionError(process.stdout.read().decode() if process.stdout else "")
        time.sleep(0.002)
    with suppress(subprocess.TimeoutExpired):
        process.wait(after)
        return False
    os.kill(process.pid, signal.SIGSTOP)  # nothing goes on while its children are looked for
    family = descendants(process.pid)
    for pid in [process.pid, *family]:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    process.wait()
    return True


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


@pytest.fixture(scope="module")
def whole(world: Path) -> Path:
    """A run with the defaults that was never killed."""
    return simulate(tiny_settings(world, out=str(world / "whole"), num_rounds=ROUNDS))


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
def test_killed_after_every_round_and_resumed_equals_never_killed(
    world: Path, whole: Path, tmp_path: Path, variant: str
) -> None:
    more = {**VARIANTS, **REMEMBERING}[variant]
    values = tiny_values(world, num_rounds=ROUNDS, **more)
    same = simulate(tiny_settings(world, out=str(tmp_path / "whole"), num_rounds=ROUNDS, **more)) if more else whole
    folder = tmp_path / "killed"
    for number in range(1, ROUNDS):
        kill_one_process_after_round(values, folder, number, ROUNDS)
    simulate(tiny_settings(world, out=str(folder), num_rounds=ROUNDS, **more))
    assert what_is_left(folder) == what_is_left(same)


@pytest.mark.slow
def test_killed_in_flowers_engine_and_resumed_there_equals_never_killed(world: Path, tmp_path: Path) -> None:
    values = tiny_values(world, num_rounds=ROUNDS, local_steps=30)
    simulate(tiny_settings(world, out=str(tmp_path / "whole"), num_rounds=ROUNDS, local_steps=30))
    folder = tmp_path / "killed"
    for number in range(1, ROUNDS):
        assert kill_family(command(values, folder, "flower"), lambda n=number: len(read_rounds(folder)) >= n)
        assert len(read_rounds(folder)) < ROUNDS, "the run was over before it was killed"
    subprocess.run(command(values, folder, "flower"), cwd=ROOT, check=True, capture_output=True)
    # Flower draws node and run ids at random and writes them with as many bytes as they need.
    assert what_is_left(folder, "message") == what_is_left(tmp_path / "whole", "message")


@pytest.mark.slow
def test_killed_at_ten_random_times_in_flowers_engine_and_resumed_equals_never_killed(
    world: Path, tmp_path: Path
) -> None:
    rounds, kills, draw = 80, 10, random.Random(11)  # so many rounds that ten kills find one to interrupt
    more = {"num_rounds": rounds, "method": "rolora", "head": "local", "client_holdout": 0.25, "keep_best": False}
    whole = simulate(tiny_settings(world, out=str(tmp_path / "whole"), **more))
    folder, values = tmp_path / "killed", tiny_values(world, **more)
    words_, killed_in = command(values, folder, "flower"), []
    for _ in range(kills):
        before = len(read_rounds(folder))
        # From a round's end, at any time of the next few.
        assert kill_family(words_, lambda n=before: len(read_rounds(folder)) > n, draw.uniform(0.0, 1.0))
        killed_in.append(len(read_rounds(folder)))
    assert killed_in[-1] < rounds, "the run was over before it was killed"
    subprocess.run(words_, cwd=ROOT, check=True, capture_output=True)
    print(f"{kills} kills, after the rounds {killed_in}")
    assert what_is_left(folder, "message") == what_is_left(whole, "message")


def test_killed_after_the_last_round_while_the_end_is_written_and_resumed_equals_never_killed(
    world: Path, whole: Path, tmp_path: Path
) -> None:
    folder, values = tmp_path / "killed", tiny_values(world, num_rounds=ROUNDS, keep_best=False)
    for name in ("summary.json", "adapter_model.safetensors"):
        log = tmp_path / "log"
        process = warm.start(words(values, folder), log, killed_before=f"{name}.new")
        process.join()
        assert process.exitcode == -signal.SIGKILL, log.read_text()
        assert len(read_rounds(folder)) == ROUNDS and not list(folder.rglob(name))
    simulate(tiny_settings(world, out=str(folder), num_rounds=ROUNDS))
    assert what_is_left(folder) == what_is_left(whole)


@pytest.mark.parametrize("more", [{}, {"method": "fedsa", "client_holdout": 0.2}, {"server_optimizer": "momentum"}])
def test_a_damaged_checkpoint_costs_its_rounds_and_no_bit(tmp_path: Path, more: dict[str, object]) -> None:
    whole = simulate(tiny_settings(tmp_path, out=str(tmp_path / "whole"), num_rounds=4, **more))
    simulate(tiny_settings(tmp_path, out=str(tmp_path / "run"), num_rounds=3, **more))
    for name in ("checkpoint.safetensors", "checkpoint-000002.safetensors"):
        path = tmp_path / "run" / name
        flipped = bytearray(path.read_bytes())
        flipped[-1] ^= 1
        path.write_bytes(flipped)
    again = simulate(tiny_settings(tmp_path, out=str(tmp_path / "run"), num_rounds=4, **more))
    assert what_is_left(again) == what_is_left(whole)


def test_a_finished_run_started_again_changes_nothing(world: Path, whole: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(whole, tmp_path / "run")
    (folder / "summary.json").unlink()  # what is written anew is seen
    again = simulate(tiny_settings(world, out=str(folder), num_rounds=ROUNDS))
    assert what_is_left(again) == what_is_left(whole)


def test_a_new_run_does_not_take_over_what_clients_kept_of_an_old_one(world: Path, tmp_path: Path) -> None:
    more = {"head": "local", "client_holdout": 0.25, "num_rounds": 2}
    fresh = simulate(tiny_settings(world, out=str(tmp_path / "fresh"), **more))
    used = simulate(tiny_settings(world, out=str(tmp_path / "used"), **{**more, "seed": 1}))
    for path in [*used.glob("checkpoint*.safetensors"), used / "rounds.jsonl"]:
        path.unlink()
    again = simulate(tiny_settings(world, out=str(used), **more))
    assert what_is_left(again) == what_is_left(fresh)


def test_a_stopped_run_continues_with_a_longer_timeout_and_fewer_valid_replies(world: Path, tmp_path: Path) -> None:
    whole = simulate(tiny_settings(world, out=str(tmp_path / "whole"), num_rounds=2))
    simulate(tiny_settings(world, out=str(tmp_path / "run"), num_rounds=1, min_valid=4))
    more = {"num_rounds": 2, "min_valid": 2, "round_timeout": 7200.0}
    assert what_is_left(simulate(tiny_settings(world, out=str(tmp_path / "run"), **more))) == what_is_left(whole)


def test_a_longer_run_continues_a_shorter_one_to_the_same_bits(world: Path, tmp_path: Path) -> None:
    whole = simulate(tiny_settings(world, out=str(tmp_path / "whole"), num_rounds=4))
    simulate(tiny_settings(world, out=str(tmp_path / "short"), num_rounds=2))
    longer = simulate(tiny_settings(world, out=str(tmp_path / "short"), num_rounds=4))
    assert what_is_left(longer) == what_is_left(whole)


def test_a_run_is_not_ended_at_a_round_that_was_not_evaluated(world: Path, tmp_path: Path) -> None:
    settings = tiny_settings(world, out=str(tmp_path / "run"), num_rounds=4, eval_every=3)
    crash_in_round(settings, 3)
    with pytest.raises(FederationError, match=r"num-rounds: round 2 is not evaluated there; set 3 or more"):
        simulate(dataclasses.replace(settings, num_rounds=2))
    assert read_json(simulate(dataclasses.replace(settings, num_rounds=3)) / "summary.json")["rounds"] == 3


@pytest.mark.parametrize(("change", "named"), [({"seed": 1}, "seed: 0 there, 1 here"), ({"lr": 0.1}, "lr: ")])
def test_a_folder_of_another_run_is_refused_and_the_difference_named(
    world: Path, tmp_path: Path, change: dict[str, object], named: str
) -> None:
    out = str(tmp_path / "run")
    simulate(tiny_settings(world, out=out, num_rounds=1))
    with pytest.raises(FederationError, match="holds another run") as raised:
        simulate(tiny_settings(world, out=out, num_rounds=1, **change))
    assert named in str(raised.value)


def of_before(folder: Path) -> Path:
    """Make a run folder one of a version of fedasym that had no setting ``one-product``."""
    state = checkpoint.load(folder)
    assert state is not None
    told = {key: value for key, value in state.settings.items() if key != "one-product"}
    checkpoint.save(folder, dataclasses.replace(state, settings=told))
    return folder


def test_a_run_of_before_one_product_goes_on_without_it_and_is_used_as_what_it_is(world: Path, tmp_path: Path) -> None:
    whole = simulate(tiny_settings(world, out=str(tmp_path / "whole"), num_rounds=2, one_product=False))
    out = str(tmp_path / "run")
    run = of_before(simulate(tiny_settings(world, out=out, num_rounds=1, one_product=False)))
    assert not load_trained(run).settings.one_product
    with pytest.raises(FederationError, match="one-product: False there, True here"):
        simulate(tiny_settings(world, out=out, num_rounds=2))
    assert what_is_left(simulate(tiny_settings(world, out=out, num_rounds=2, one_product=False))) == what_is_left(whole)


def test_a_run_of_before_one_product_in_bfloat16_goes_on_as_it_is(world: Path, tmp_path: Path) -> None:
    more = {"dtype": "bfloat16", "out": str(tmp_path / "run")}
    run = of_before(simulate(tiny_settings(world, num_rounds=1, **more)))
    assert load_trained(run).rounds == 1
    assert len(read_rounds(simulate(tiny_settings(world, num_rounds=2, **more)))) == 2


def test_a_folder_whose_base_model_changed_is_refused(world: Path, tmp_path: Path) -> None:
    from world import make_model

    out = str(tmp_path / "run")
    simulate(tiny_settings(tmp_path, out=out, num_rounds=1))
    make_model(tmp_path / "model", seed=9)
    with pytest.raises(FederationError, match="base: '"):
        simulate(tiny_settings(tmp_path, out=out, num_rounds=2))
