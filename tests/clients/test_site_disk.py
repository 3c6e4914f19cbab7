"""A site's own disk: what cannot be written is its rejection alone, and what it kept of earlier runs goes in time."""

import os
import secrets
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Context, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st
from world import make_sites, no_report, site_settings

from clients.app import app
from clients.node import node_context_of
from clients.state import remove_earlier_runs, write_held, write_local
from fedasym.fields import Value
from fedasym.runs import checkpoint
from fedasym.runs.record import read_rounds
from server.app import app as server_app
from simulations.engines.grid import RUN_ID, SERVER_NODE, InProcessGrid

NAMES = ("north", "south", "east")
DAY = 86_400.0  # seconds


def run_sites(root: Path, rounds: int, nodes: list[dict[str, Value]]) -> list[dict]:
    out = str(root / "run")
    config = site_settings(root, out=out, num_rounds=rounds, method="rolora", head="local", client_holdout=0.2)
    with InProcessGrid(app, config.run_config(), nodes) as grid, no_report():
        server_app(grid, Context(RUN_ID, SERVER_NODE, {}, RecordDict(), config.run_config()))
    return read_rounds(root / "run")


def kept_run(folder: Path, days: float, name: str = "", clients: Sequence[int] = (0, 3)) -> Path:
    """Make what a client has kept of a run that was worked for so many days ago."""
    run = folder / (name or secrets.token_hex(16))
    for client in clients:
        write_held(run / f"client-{client}", 1, {"a.B": np.ones((2, 3), np.float32)})
        write_local(run / f"client-{client}", 1, {"head": np.ones(2, np.float32)})
    then = time.time() - days * DAY
    for path in (run, *run.rglob("*")):
        os.utime(path, (then, then))
    return run


def test_a_site_that_cannot_write_is_rejected_by_name_and_comes_back_when_it_can(tmp_path: Path) -> None:
    make_sites(tmp_path, NAMES)
    nodes: list[dict[str, Value]] = [
        {"site": name, "data-dir": str(tmp_path / "sites" / name), "state-dir": str(tmp_path / name),
         "log-file": str(tmp_path / f"{name}.log")}
        for name in NAMES
    ]  # fmt: skip
    nodes[2]["log-file"] = "/dev/full"  # nothing can be written there, as on a full disk
    (tmp_path / "east").write_text("in the way")
    (row,) = run_sites(tmp_path, 1, nodes)
    assert set(row["weights"]) == {"0", "1"} and set(row["rejections"]) == {"2"}
    said = row["rejections"]["2"]
    assert said.startswith("it refused: error ") and said.endswith("what it keeps cannot be written (Not a directory)")
    assert str(tmp_path) not in said
    (tmp_path / "east").unlink()
    rows = run_sites(tmp_path, 2, nodes)
    assert rows[0]["digest"] == row["digest"] and set(rows[1]["weights"]) == {"0", "1", "2"}
    assert any("client 2 started its private matrices anew" in warning for warning in rows[1]["warnings"])


def test_a_site_removes_what_it_kept_of_earlier_runs_and_says_so(tmp_path: Path) -> None:
    make_sites(tmp_path, NAMES)
    old, first, last = (kept_run(tmp_path / "north", days) for days in (100, 3, 2))
    nodes: list[dict[str, Value]] = [
        {"site": name, "data-dir": str(tmp_path / "sites" / name), "state-dir": str(tmp_path / name),
         "log-file": str(tmp_path / f"{name}.log"), "keep-runs": "1"}
        for name in NAMES
    ]  # fmt: skip
    run_sites(tmp_path, 2, nodes)
    state = checkpoint.load(tmp_path / "run")
    assert state is not None
    assert {path.name for path in (tmp_path / "north").iterdir()} == {state.run, last.name}
    log = (tmp_path / "north.log").read_text()
    assert f"removed what was kept of run {old.name}, last worked for on " in log
    assert ": not worked for in 90 days" in log and f"of run {first.name}" in log and "the 1 after it are kept" in log


@settings(max_examples=20)  # each writes some files to the disk
@given(st.lists(st.floats(0, 400), max_size=4), st.integers(0, 6), st.floats(1, 300), st.booleans())
def test_what_stays_are_the_newest_of_those_that_are_not_old(tmp_path_factory, ages, runs, days, present_old) -> None:
    folder, present = tmp_path_factory.mktemp("state"), "0" * 32
    kept_run(folder, 1000.0 if present_old else 0.0, present, [3])
    made = {kept_run(folder, age, clients=[0]).name: age for age in ages}
    said = remove_earlier_runs(folder, present, runs, days)
    left = {path.name for path in folder.iterdir()} - {present}
    assert (folder / present / "client-3").is_dir() and len(left) == min(runs, sum(age < days for age in ages))
    assert len(said) == len(ages) - len(left)
    assert all(made[name] <= days for name in left)
    assert not left or max(made[name] for name in left) <= min([made[n] for n in made if n not in left], default=1e9)


@pytest.mark.parametrize("strange", ["notes.txt", "client-0/model.safetensors", "client-x/round-000001.safetensors"])
def test_a_folder_that_holds_anything_else_stays_as_it_is(tmp_path: Path, strange: str) -> None:
    run = kept_run(tmp_path / "state", 1000)
    dear = run / strange
    dear.parent.mkdir(exist_ok=True)
    dear.write_text("dear")
    (tmp_path / "state" / "contract-0.json").write_text("{}")
    (tmp_path / "state" / ("f" * 32)).symlink_to(kept_run(tmp_path / "elsewhere", 1000))
    before = {path for path in tmp_path.rglob("*")}
    assert remove_earlier_runs(tmp_path / "state", "0" * 32, 0, 1.0) == []
    assert {path for path in tmp_path.rglob("*")} == before


@pytest.mark.parametrize("wrong", [{"keep-runs": "-1"}, {"keep-days": "0"}, {"keep-days": "nan"}])
def test_numbers_that_keep_nothing_sensible_are_refused(wrong: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"keep-runs=.*keep-days=.*; at least 0, more than 0"):
        node_context_of(wrong)
