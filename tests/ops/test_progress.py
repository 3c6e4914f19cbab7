"""Whoever waits sees progress: what a run is doing is written down and said, and disturbs nothing."""

import io
import json
import re
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from kits import ENVIRONMENT, ROOT, wait_for
from rich.console import Console
from world import make_sites, site_settings, tiny_settings, tiny_values, watched_run, what_is_left

from clients.app import app as honest
from fedasym.ops import progress
from fedasym.ops.progress import FOLDER, Pace, Progress, begin, client_tell, look, note, seconds_left, words
from server import reporter
from server.app import app as server_app
from server.reporter import Reporter
from simulations.cli.display import Follower
from simulations.cli.waiting import LOADING, cells_shown, cells_words, waiting
from simulations.engines.grid import RUN_ID, SERVER_NODE, InProcessGrid
from simulations.engines.in_process import run_local
from simulations.folders import is_run

TRAINING = Progress("training", 100.0, "clients", 0, 4, round=2, rounds=5, steps_each=10)


def written(folder: Path, number: int, **steps: tuple[int, int]) -> None:
    (folder / FOLDER).mkdir(exist_ok=True)
    for client, both in steps.items():
        (folder / FOLDER / f"round-{number}-client-{client.lstrip('_')}.json").write_text(json.dumps(both))


@pytest.mark.parametrize(
    ("state", "said"),
    [
        (Progress("loading model and data", 0.0, rounds=5), "loading model and data"),
        (
            Progress("handshake", 0.0, "nodes agreed", 3, 10, round=1, rounds=5),
            "round 1/5: handshake, 3 of 10 nodes agreed; about 9 s left",
        ),
        (TRAINING, "round 2/5: training, 0 of 4 clients"),
        (
            Progress("evaluating", 0.0, "examples", 512, 1024, 2, 5),
            "round 2/5: evaluating, 512 of 1,024 examples; about 4 s left",
        ),
        (Progress("averaging", 0.0, round=5, rounds=5), "round 5/5: averaging"),
    ],
)  # fmt: skip
def test_every_phase_has_its_words(state: Progress, said: str) -> None:
    assert words(state, 4.0) == said


def test_steps_of_clients_that_still_train_are_added_to_those_of_clients_that_are_done(tmp_path: Path) -> None:
    (tmp_path / FOLDER).mkdir()
    note(tmp_path, replace(TRAINING, done=1))
    written(tmp_path, 2, _0=(10, 10), _3=(5, 10))  # client 0 has replied
    written(tmp_path, 1, _1=(10, 10))  # of the round before
    found = look(tmp_path)
    assert found is not None and (found.steps, found.steps_total, found.fraction) == (15, 40, 1.5 / 4)
    # 15 of 40 steps in 30 s: 25 steps in 50 s more, and three rounds of 80 s.
    assert words(found, 130.0) == "round 2/5: training, 1 of 4 clients, 15 of 40 steps; about 50 s left, 5 min in all"


def test_passes_over_data_have_a_total_once_every_client_has_named_its_own(tmp_path: Path) -> None:
    (tmp_path / FOLDER).mkdir()
    note(tmp_path, Progress("training", 0.0, "clients", 0, 2, round=1, rounds=1))
    written(tmp_path, 1, _0=(3, 12))
    assert words(look(tmp_path), 1.0) == "round 1/1: training, 0 of 2 clients, 3 steps"
    written(tmp_path, 1, _1=(1, 4))
    assert words(look(tmp_path), 1.0) == "round 1/1: training, 0 of 2 clients, 4 of 16 steps"


def test_nothing_is_said_of_the_time_left_where_nothing_tells_it() -> None:
    assert seconds_left(TRAINING, 200.0) == (None, None)  # nothing is done, and there was no round before
    started = Progress("training", 100.0, "clients", 1, 4, round=2, rounds=5)
    assert seconds_left(started, 101.0) == (None, None)  # too soon
    assert seconds_left(started, 110.0) == (30.0, 30.0 + 3 * 40.0)
    after = Progress("training", 100.0, "clients", 0, 4, round=2, rounds=5, last=60.0)
    assert seconds_left(after, 110.0) == (50.0, 50.0 + 3 * 60.0)  # as long as the round before
    assert seconds_left(after, 170.0) == (None, None)  # it takes longer than that, and nothing is done
    assert seconds_left(started, 90.0) == (None, None)  # the clock was set back


def test_a_line_is_due_after_some_seconds_of_silence_and_not_before() -> None:
    pace = Pace(1000.0, every=15.0)
    assert pace.line(1014.9, lambda: "a") is None
    assert pace.line(1015.0, lambda: "a") == "   0:15  a"
    assert pace.line(1029.0, lambda: "b") is None
    pace.said(1029.5)
    assert pace.line(1044.0, lambda: "b") is None and pace.line(4744.5, lambda: "b") == "1:02:24  b"


def test_a_client_writes_twice_a_second_at_most_and_nothing_if_it_is_done_at_once(tmp_path: Path) -> None:
    (tmp_path / FOLDER).mkdir()
    seconds = iter([0.0, *(0.125 * step for step in range(1, 20))])
    tell, seen, path = (
        client_tell(tmp_path, 3, 7, lambda: next(seconds)),
        [],
        tmp_path / FOLDER / "round-3-client-7.json",
    )
    for step in range(1, 20):
        tell(step, 19)
        seen.append(path.read_text() if path.exists() else "")
    assert sorted({*seen}, key=seen.index) == ["", "[4, 19]", "[8, 19]", "[12, 19]", "[16, 19]", "[19, 19]"]
    quick = client_tell(tmp_path, 3, 8, lambda: 0.0)
    quick(1, 2)
    quick(2, 2)
    assert [path.name for path in (tmp_path / FOLDER).iterdir()] == [path.name]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A world and a run in it that wrote nothing down: where its folder would lie, there is a file."""
    root = tmp_path_factory.mktemp("world")
    out = root / "plain"
    out.mkdir()
    (out / FOLDER).write_text("in the way")
    begin(out, "starting")
    run_local(tiny_settings(root, out=str(out), num_rounds=2), workers=2)
    assert (out / FOLDER).read_text() == "in the way"
    return root, out


def test_a_run_is_the_same_with_and_without_and_leaves_nothing(plain, monkeypatch) -> None:
    root, out = plain
    monkeypatch.setattr(progress, "LOOK_SECONDS", 0.0)  # every step is written down
    monkeypatch.setattr(reporter, "LOOK_SECONDS", 0.001)
    states: set[tuple[str, str]] = set()
    folder, stop = root / "told", threading.Event()

    def watch() -> None:
        while not stop.wait(0.001):
            if found := look(folder):
                states.add((found.doing, found.counted))

    watcher = threading.Thread(target=watch)
    watcher.start()

    def pause(number: int, client: int) -> None:
        wait_for(lambda: ("training", "clients") in states)  # what is written is there to be read meanwhile

    watched_run(tiny_settings(root, out=str(folder), num_rounds=2), 2, pause)
    stop.set()
    watcher.join()
    assert ("training", "clients") in states
    told, untold = what_is_left(folder)[:2], what_is_left(out)[:2]
    assert told == untold
    assert not (folder / FOLDER).exists()


def test_the_clients_of_a_simulation_write_their_steps_down_and_sites_with_data_of_their_own_do_not(
    tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(progress, "LOOK_SECONDS", 0.0)  # every step is written down
    data = make_sites(tmp_path)
    nodes = [{"site": name, "data-dir": str(data / name)} for name in ("north", "south", "east")]
    for name, settings, where, more in (
        ("split", tiny_settings(tmp_path, num_clients=3, out=str(tmp_path / "split"), num_rounds=1), 3, 1),
        ("sites", site_settings(tmp_path, out=str(tmp_path / "sites-run"), num_rounds=1), nodes, 0),
    ):
        folder, seen, app = Path(settings.out), [], ClientApp()
        app.query()(lambda message, context: honest(message, context))

        @app.train()
        def train(message: Message, context: Context, folder=folder, seen=seen) -> Message:
            reply = honest(message, context)
            seen.append(len(list((folder / FOLDER).glob("round-1-client-*"))))
            return reply

        config = settings.run_config()
        with InProcessGrid(app, config, where) as grid:
            server_app(grid, Context(RUN_ID, SERVER_NODE, {}, RecordDict(), dict(config)))
        assert seen == [more, 2 * more, 3 * more], name
        assert not (folder / FOLDER).exists()


def test_a_new_start_forgets_what_a_killed_run_had_written_down(tmp_path: Path) -> None:
    begin(tmp_path, "starting")
    written(tmp_path, 4, _2=(3, 10))
    assert is_run(tmp_path)  # one that hardly began, which a demo may replace
    with Reporter(tmp_path, 5) as one:
        assert [path.name for path in (tmp_path / FOLDER).iterdir()] == ["run.json"]
        assert look(tmp_path).doing == "loading model and data"
        one.begin("training", "clients", 3, round=1, steps_each=2)
        one.tell(1, 3)
        wait_for(lambda: look(tmp_path).steps == 2)
    assert not (tmp_path / FOLDER).exists()


def test_the_server_says_a_line_in_silence_whatever_becomes_of_its_folder(tmp_path: Path) -> None:
    said: list[str] = []
    with Reporter(tmp_path / "nowhere", 5, said.append, every=0.0) as one:
        one.begin("training", "clients", 3, round=1, steps_each=2)
        wait_for(lambda: said and "training" in said[-1])
    assert said[-1].endswith("  round 1/5: training, 0 of 3 clients")
    count = len(said)
    assert not any(thread.name == "progress" for thread in threading.enumerate()) and len(said) == count


def test_a_broken_file_is_as_good_as_none(tmp_path: Path) -> None:
    (tmp_path / FOLDER).mkdir()
    for text in ("", "[]", '{"doing": "x", "began": 1.0, "of another version": 1}'):
        (tmp_path / FOLDER / "run.json").write_text(text)
        assert look(tmp_path) is None
    note(tmp_path, TRAINING)
    (tmp_path / FOLDER / "round-2-client-0.json").write_text("tor")
    assert look(tmp_path) is None


@pytest.mark.parametrize("terminal", [False, True])
def test_the_display_shows_what_the_run_is_doing_now_and_not_what_an_earlier_one_did(tmp_path, terminal: bool) -> None:
    begin(tmp_path, "what a killed run did")
    out = io.StringIO()
    console = Console(file=out, width=200, force_terminal=terminal)
    with Follower("run", tmp_path, 3, console, every=0.0):
        wait_for(lambda: "  starting" in out.getvalue())
        begin(tmp_path, "loading model and data")
        wait_for(lambda: "  loading model and data" in out.getvalue())
    assert "killed" not in out.getvalue()


def test_what_takes_long_outside_a_run_is_said_at_once_and_again() -> None:
    out = io.StringIO()
    with waiting("starting the server", Console(file=out, width=200), every=0.0):
        assert out.getvalue() == "starting the server\n"
        wait_for(lambda: "   0:00  starting the server\n" in out.getvalue() or "   0:01" in out.getvalue())


def test_a_comparison_says_how_many_cells_are_done_and_where_those_that_run_are(tmp_path: Path) -> None:
    half = Progress("training", 0.0, "clients", 2, 4, round=1, rounds=1)
    assert cells_words(1, 4, {"iid-lora-0": half}, 60.0, 60.0).splitlines() == [
        "1 of 4 cells done; about 2 min left",  # 1.5 cells in 60 s, 2.5 to do
        "           iid-lora-0: round 1/1: training, 2 of 4 clients; about 60 s left",
    ]
    assert cells_words(0, 4, {"iid-lora-0": half}, 60.0, 2.0).splitlines() == [
        "0 of 4 cells done",  # and nothing of the time left
        "           iid-lora-0: round 1/1: training, 2 of 4 clients",
    ]
    assert cells_words(0, 4, {}, 5.0, 5.0).splitlines() == ["0 of 4 cells done", "           the processes start"]
    out = io.StringIO()
    with cells_shown(2, tmp_path, Console(file=out, width=200), every=0.0) as advance:
        begin(tmp_path / "iid-lora-0", "loading model and data")
        wait_for(lambda: "iid-lora-0: loading model and data" in out.getvalue())
        advance(1, "iid-lora-0: accuracy 0.5")
    assert "\n1/2  iid-lora-0: accuracy 0.5\n" in out.getvalue()


@pytest.mark.slow
@pytest.mark.ci
def test_a_long_round_is_never_silent_off_a_terminal(tmp_path: Path) -> None:
    values = tiny_values(tmp_path, out=str(tmp_path / "run"), num_rounds=1, local_steps=50_000)
    (tmp_path / "settings.json").write_text(json.dumps(values))
    code = (
        "import json, sys; from rich.console import Console; from fedasym.settings import from_run_config; "
        "from simulations.run import run; "
        "run(from_run_config(json.load(open(sys.argv[1]))), 'local', 1, Console(), None, every=0.5)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "settings.json")]
    with subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        steps: list[int] = []
        for line in process.stdout:  # one after the other, while nothing ends but steps
            if found := re.search(r"round 1/1: training, 0 of 4 clients, ([\d,]+) of 200,000 steps", line):
                steps.append(int(found[1].replace(",", "")))
            if len(steps) >= 3 and steps[-1] > steps[0]:
                process.kill()
    assert len(steps) >= 3 and steps == sorted(steps) and steps[-1] > steps[0]
    assert look(tmp_path / "run") is not None  # what a killed run leaves, for the next start to remove


def test_the_first_line_of_a_command_comes_before_any_large_library(tmp_path: Path) -> None:
    command = [sys.executable, "-X", "importtime", "-m", "simulations", "run", str(tmp_path / "none.toml")]
    said = subprocess.run(
        command, cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    ).stdout
    before, _, after = said.partition(f"{LOADING}\n")  # again later, on a slow machine
    large = re.compile(r"^import time:.*\| +(torch|transformers|flwr|datasets|pandas)(\.|$)", re.MULTILINE)
    assert not large.search(before) and large.search(after)
    assert "failed: FileNotFoundError" in after
