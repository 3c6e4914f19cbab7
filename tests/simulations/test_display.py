"""What is shown of a run: every round once, when it is done; an error of the display is said and ends no run."""

import io
from pathlib import Path

import pytest
from kits import wait_for
from rich.console import Console
from world import simulate, tiny_settings

from fedasym.files import write_atomic
from simulations.cli.display import Follower

ROUNDS = 3


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Return the record of a run of three rounds, and its config.json last."""
    root = tmp_path_factory.mktemp("world")
    folder = simulate(tiny_settings(root, out=str(root / "run"), num_clients=2), workers=1)
    return [*(folder / "rounds.jsonl").read_text().splitlines(keepends=True), (folder / "config.json").read_text()]


@pytest.fixture
def folder(lines: list[str], tmp_path: Path) -> Path:
    """Return a run folder that holds no round yet."""
    (tmp_path / "config.json").write_text(lines[-1])
    return tmp_path


def write(folder: Path, *rows: str) -> None:
    write_atomic(folder / "rounds.jsonl", "".join(rows).encode())


def follower(folder: Path, out: io.StringIO, terminal: bool = False) -> Follower:
    return Follower("run", folder, ROUNDS, Console(file=out, width=200, force_terminal=terminal))


def numbers(out: io.StringIO) -> list[int]:
    """The rounds that were printed, in order."""
    return [int(line[6]) for line in out.getvalue().splitlines() if line.startswith("round ")]


def test_rounds_that_an_earlier_start_recorded_are_said_once_and_not_shown_as_new(folder, lines) -> None:
    write(folder, *lines[:2])
    out = io.StringIO()
    with follower(folder, out):
        write(folder, *lines[:3])
    assert out.getvalue().startswith("run: continuing; rounds up to 2 are recorded\n") and numbers(out) == [3]


def test_a_round_that_was_cut_off_the_record_is_shown_when_it_is_done_again(folder, lines) -> None:
    again = lines[1].replace('"seconds": ', '"seconds": 1')
    write(folder, *lines[:2])
    out = io.StringIO()
    with follower(folder, out):
        write(folder, lines[0], again, lines[2])
        wait_for(lambda: numbers(out) == [2, 3])
        write(folder, lines[0], again)
    assert numbers(out) == [2, 3]
    out = io.StringIO()
    with follower(folder, out):
        write(folder, *lines[:2])
        wait_for(lambda: numbers(out) == [2])
        write(folder, *lines[:1])
        write(folder, *lines[:1], again, lines[2])
    assert numbers(out) == [2, 2, 3]


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_an_error_of_the_display_is_said_once_at_the_end_and_the_run_goes_on(folder, terminal: bool, when: str) -> None:
    out = io.StringIO()
    if when == "before":
        write(folder, "no JSON\n")
    with follower(folder, out, terminal):
        write(folder, "no JSON\n")
    assert out.getvalue().count("the display ended early (JSONDecodeError: ") == 1
    assert str(folder / "rounds.jsonl") in out.getvalue()


def test_an_error_of_the_run_is_the_runs(folder) -> None:
    out = io.StringIO()
    with pytest.raises(RuntimeError, match="of the run"), follower(folder, out):
        raise RuntimeError("of the run")
    assert "display" not in out.getvalue()
