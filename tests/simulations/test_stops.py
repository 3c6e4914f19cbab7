"""A run that is stopped in the midst of any write, or finds its disk full or shut, loses nothing that was whole.

Real processes are stopped (`stops`); each is started again, and ends with the digests, the record, the summary, the
adapter and the files of the run that was never stopped.
"""

import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from stops import (
    FULL,
    KILLED,
    Stop,
    forked,
    in_a_fork_of_one_that_is_warm,
    kill_at_random,
    runner,
    stop_at_steps,
    stop_with_little_space,
)

from server.app import only_user
from server.failure import FederationError

# A method that remembers, a layer of each client's own, a server optimizer: all that has a state.
ALL = {
    "num_clients": 2, "num_rounds": 3, "local_steps": 1, "method": "rolora", "head": "local", "client_holdout": 0.25,
    "server_optimizer": "momentum", "keep_checkpoints": 2,
}  # fmt: skip
# The least that is kept, so that files of a client and of the server go, too; no adapter of the best round.
LEAST = ALL | {"keep_checkpoints": 1, "keep_best": False}
REMEDY = "free space there, then start the same again: what was written before is whole, and a run goes on from it"


def require_same_ends(stops: list[Stop]) -> None:
    for stop in stops:
        assert stop.after == 0, f"stopped at {stop.step}, it does not go on: {stop.why}"
        assert stop.same, f"stopped at {stop.step}, it ends otherwise"
        assert stop.files == (), f"stopped at {stop.step}, it leaves other files"


def require_named(stop: Stop) -> None:
    """Require one sentence that says what cannot be written, why, and what to do."""
    assert stop.code == 1, stop
    assert stop.said.startswith(("WriteError: ", "FederationError: round ")), stop
    assert re.search(rf": \S*/run\S* cannot be written \(No space left on device\); {REMEDY}$", stop.said), stop


Found = dict[str, tuple[int, list[Stop]]]


@pytest.fixture(scope="module")
def some(tmp_path_factory: pytest.TempPathFactory) -> Found:
    """A few steps, far from each other."""
    root = tmp_path_factory.mktemp("some")
    return in_a_fork_of_one_that_is_warm(stop_at_steps, root, ALL, {KILLED: 40, FULL: 60})


@pytest.fixture(scope="module")
def every(tmp_path_factory: pytest.TempPathFactory) -> Found:
    """Every step there is."""
    root = tmp_path_factory.mktemp("every")
    found = in_a_fork_of_one_that_is_warm(stop_at_steps, root, ALL, {KILLED: 1, FULL: 1})
    for count, stops in found.values():
        assert len(stops) == count >= 130
    return found


WHICH = ["some", pytest.param("every", marks=pytest.mark.slow)]


@pytest.mark.parametrize("which", WHICH)
def test_killed_at_any_step_of_any_write_and_resumed_equals_never_killed(
    which: str, request: pytest.FixtureRequest
) -> None:
    steps, stops = request.getfixturevalue(which)[KILLED]
    print(f"{len(stops)} of {steps} steps")
    assert stops and {stop.code for stop in stops} == {-9}
    require_same_ends(stops)


@pytest.mark.parametrize("which", WHICH)
def test_a_disk_that_is_full_at_any_step_is_named_and_the_run_goes_on_when_it_is_not(
    which: str, request: pytest.FixtureRequest
) -> None:
    steps, stops = request.getfixturevalue(which)[FULL]
    print(f"{len(stops)} of {steps} steps")
    assert stops
    for stop in stops:
        require_named(stop)
    require_same_ends(stops)


@pytest.mark.slow
def test_killed_at_any_step_where_the_least_is_kept_and_resumed_equals_never_killed(tmp_path: Path) -> None:
    steps, stops = in_a_fork_of_one_that_is_warm(stop_at_steps, tmp_path, LEAST, {KILLED: 1})[KILLED]
    print(f"{len(stops)} of {steps} steps")
    gone = {stop.step for stop in stops if stop.step.startswith("os.remove")}
    assert any("round-000001" in step for step in gone) and any("held-000001" in step for step in gone)
    assert {stop.code for stop in stops} == {-9}
    require_same_ends(stops)


@pytest.mark.slow
def test_killed_at_a_hundred_random_times_and_resumed_equals_never_killed(tmp_path: Path) -> None:
    killed, ended = in_a_fork_of_one_that_is_warm(kill_at_random, tmp_path, ALL, 100, 20)
    print(f"{killed} kills, {ended} runs")
    assert killed >= 100 and ended >= 10


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """A file system of 4 MB that everybody may enter; skips where none can be mounted (that takes root)."""
    folder = Path(tempfile.mkdtemp())
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m,mode=755", "fedasym", str(folder)], check=False, capture_output=True
    )
    if mounted.returncode:
        folder.rmdir()
        # Nothing hides behind it: a disk that is full at each step is tried above, and needs no root.
        pytest.skip("a small file system cannot be mounted here, which takes root; full at each step: tried above")
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)
        folder.rmdir()


@pytest.mark.parametrize("left", [(40_000,), pytest.param(range(0, 96_000, 4096), marks=pytest.mark.slow)])
def test_a_small_disk_that_gets_full_is_named_and_the_run_goes_on_when_it_is_not(small_disk: Path, left) -> None:
    stops = in_a_fork_of_one_that_is_warm(stop_with_little_space, small_disk, ALL, left)
    print(f"{len(stops)} sizes")
    for stop in stops:
        require_named(stop)
    require_same_ends(stops)


def run_where_it_cannot_write(root: Path) -> list[tuple[int, str]]:
    """Run a federation as nobody in a folder of root's, on a file system mounted to be read, and as root."""
    run = runner(root, ALL)
    (root / "run").mkdir()

    def as_nobody() -> str:
        os.setgid(65_534)
        os.setuid(65_534)
        return run()

    ends = [forked(as_nobody)]
    subprocess.run(["mount", "-o", "remount,ro", str(root)], check=True)
    ends.append(forked(run))
    subprocess.run(["mount", "-o", "remount,rw", str(root)], check=True)
    return [*ends, forked(run)]


def test_a_run_folder_that_is_anothers_or_read_only_is_named(small_disk: Path) -> None:
    theirs, shut, ours = in_a_fork_of_one_that_is_warm(run_where_it_cannot_write, small_disk)
    assert ours == (0, "")
    for (code, said), why, remedy in (
        (theirs, "Permission denied", "let this user write there, or choose another place"),
        (shut, "Read-only file system", "have its file system mounted for writing, or choose another place"),
    ):
        assert code == 1
        cannot = f"WriteError: {small_disk / 'run'} cannot be written ({why})"
        assert said.startswith(f"{cannot}; {remedy}, then start the same again")


def test_a_file_in_the_place_of_the_run_folder_or_above_it_is_named_and_kept(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("dear")
    for folder in (file, file / "run"):
        said = rf"^{folder} cannot be made: a file is in the way; choose another out"
        with pytest.raises(FederationError, match=said), only_user(folder):
            pass
    assert file.read_text() == "dear"
