"""Ctrl-C and SIGTERM at any moment leave no process, lose no finished round and say how to go on."""

import os
import shlex
import signal
import subprocess
import sys
import textwrap
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import psutil
import pytest
import warm
from kits import wait_for
from rich.console import Console
from world import tiny_settings, tiny_values, what_is_left

from fedasym.files import read_lines
from fedasym.ops.processes import held_alone
from fedasym.runs.record import read_rounds
from simulations.__main__ import main
from simulations.cli.waiting import LOADING
from simulations.demo import demo
from simulations.engines.in_process import run_local

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 10.0  # what we promise
STEPS = 40  # a round takes a good part of a second: time enough to be stopped in it


def hear() -> None:
    """Heed the signals, whoever runs the tests: a script's background ignores Ctrl-C, nohup a closed terminal."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


class Command:
    """A command in a session of its own; its output is in a file, and all that it starts has a variable of ours."""

    def __init__(self, words: Sequence[str], log: Path) -> None:
        self.own, self.log = uuid.uuid4().hex, log
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                words, cwd=ROOT, env={**os.environ, "STARTED_BY_THE_TEST": self.own}, stdin=subprocess.DEVNULL,
                stdout=output, stderr=subprocess.STDOUT, start_new_session=True, preexec_fn=hear,
            )  # fmt: skip

    def await_(self, condition: Callable[[], object]) -> None:
        wait_for(lambda: condition() or self.process.poll() is not None, 400)
        assert self.process.poll() is None, self.log.read_text()

    def maps(self, library: str) -> bool:
        """Whether it has loaded a library by now."""
        return library in Path(f"/proc/{self.process.pid}/maps").read_text()

    def stop(self, number: signal.Signals) -> str:
        """Send a signal as a terminal does, to the whole group; require that all ends; return what was said."""
        below = psutil.Process(self.process.pid).children(recursive=True)
        os.killpg(self.process.pid, number)
        self.process.wait(SECONDS)
        wait_for(lambda: not [each for each in {*below, *self.marked()} if alive(each)], SECONDS)
        said = self.log.read_text()
        assert "Traceback" not in said and "resource_tracker" not in said
        return said

    def marked(self) -> list[psutil.Process]:
        every = psutil.process_iter(["environ"])
        return [each for each in every if (each.info["environ"] or {}).get("STARTED_BY_THE_TEST") == self.own]

    def end(self) -> None:
        for each in self.marked():
            each.kill()


def alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Command]]:
    """Start commands that do not outlive the test."""
    begun: list[Command] = []

    def begin(*words: str) -> Command:
        begun.append(Command([sys.executable, *words], tmp_path / f"said-{len(begun)}.txt"))
        return begun[-1]

    yield begin
    for command in begun:
        command.end()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("world")


@pytest.fixture(scope="module")
def undisturbed(world: Path) -> Path:
    return run_local(tiny_settings(world, out=str(world / "whole"), local_steps=STEPS), workers=1)


def run_words(world: Path, out: Path, engine: str = "local") -> list[str]:
    return warm.words(tiny_values(world, local_steps=STEPS), out, engine)


def command_said(said: str) -> list[str]:
    return shlex.split(said.rpartition("this goes on: ")[2])


def test_ctrl_c_while_our_command_imports_is_no_traceback(start, world, tmp_path) -> None:
    command = start("-m", "simulations", *run_words(world, tmp_path / "run"))
    command.await_(lambda: command.maps("libtorch_cpu"))
    said = command.stop(signal.SIGINT)
    assert command.process.returncode == 130
    assert said == f"{LOADING}\nstopped by SIGINT; again: {shlex.join(command.process.args)}\n"


@pytest.mark.parametrize(
    "words", [("-m", "server", "up", "nowhere"), ("-m", "clients", "up", "--kit", "nowhere", "--data", "nowhere")]
)
def test_ctrl_c_while_a_server_or_a_site_imports_is_no_traceback(start, words) -> None:
    command = start(*words)
    command.await_(lambda: command.maps("_multiarray_umath") or command.maps("_rust.abi3"))
    assert command.stop(signal.SIGINT) == ""
    assert command.process.returncode == -signal.SIGINT


def test_ctrl_c_while_clients_train_in_process_keeps_the_rounds_and_the_command_said_goes_on(
    start, undisturbed, world, tmp_path
) -> None:
    out = tmp_path / "run"
    command = start("-m", "simulations", *run_words(world, out), "--workers", "2")
    command.await_(lambda: read_rounds(out))
    said = command.stop(signal.SIGINT)
    assert command.process.returncode == 130
    assert 1 <= len(read_rounds(out)) < 3 and "finished rounds are kept" in said
    again = command_said(said)
    assert again == command.process.args and main(again[3:]) == 0
    assert what_is_left(out) == what_is_left(undisturbed)


# Python tells its audit hooks of every file before it is opened.
SIGNAL_AT_WRITING = """
import os, runpy, signal, sys
name = sys.argv.pop(1) + ".new"
def look(event, about):
    if event == "open" and str(about[0]).endswith(name):
        os.kill(os.getpid(), signal.SIGTERM)
sys.addaudithook(look)
runpy.run_module("simulations", run_name="__main__", alter_sys=True)
"""


@pytest.mark.slow
def test_sigterm_between_two_rounds_while_the_checkpoint_is_written_loses_nothing(
    start, undisturbed, world, tmp_path
) -> None:
    out = tmp_path / "run"
    command = start("-c", SIGNAL_AT_WRITING, "checkpoint.safetensors", *run_words(world, out))
    command.process.wait(400)
    said = command.log.read_text()
    assert command.process.returncode == 128 + signal.SIGTERM and "Traceback" not in said, said
    run_local(tiny_settings(world, out=str(out), local_steps=STEPS), workers=1)
    assert what_is_left(out) == what_is_left(undisturbed)


@pytest.mark.slow
@pytest.mark.ci
def test_ctrl_c_in_flowers_engine_leaves_no_process_and_no_folder_and_the_run_goes_on(
    start, undisturbed, world, tmp_path
) -> None:
    out = tmp_path / "run"
    command = start("-m", "simulations", *run_words(world, out, "flower"))
    command.await_(lambda: read_rounds(out))
    names = {name for each in command.marked() for name in each.cmdline()[:3]}
    assert any("flwr-simulation" in name for name in names) and any("raylet" in name for name in names)
    homes = {each.info["environ"].get("FLWR_HOME") for each in command.marked()} - {None}
    said = command.stop(signal.SIGINT)
    assert command.process.returncode == 130 and "finished rounds are kept" in said
    assert len(homes) == 1 and not Path(homes.pop()).exists()
    assert command_said(said) == command.process.args
    assert 1 <= len(read_rounds(out)) < 3
    run_local(tiny_settings(world, out=str(out), local_steps=STEPS), workers=1)
    assert what_is_left(out, "message") == what_is_left(undisturbed, "message")


def test_a_folder_has_one_comparison_and_one_demo_at_a_time(tmp_path, capsys) -> None:
    for command in ("compare", "demo"):
        with held_alone(tmp_path, ""):
            assert main([command, "--out", str(tmp_path)]) == 1
        assert "is in use by another process" in " ".join(capsys.readouterr().out.split())


@pytest.mark.slow
def test_a_comparison_has_its_folder_alone_and_ctrl_c_ends_its_cells_and_begins_none(start, world, tmp_path) -> None:
    values = tiny_values(world, local_steps=STEPS)
    own = ("task", "split")
    words = [
        "compare", "--task", "classification", "--split", "iid", "--methods", "asymmetric,lora", "--seeds", "2",
        "--jobs", "2", "--out", str(tmp_path / "out"), *(f"--set={k}={v}" for k, v in values.items() if k not in own),
    ]  # fmt: skip
    command = start("-m", "simulations", *words)
    work = tmp_path / "out" / "work"
    command.await_(lambda: sum(len(path.read_text()) for path in work.glob("*/rounds.jsonl")))
    other = start("-m", "simulations", *words)
    assert other.process.wait(400) == 1 and "is in use by another process" in " ".join(other.log.read_text().split())
    begun = {path.name for path in work.iterdir()}
    said = command.stop(signal.SIGINT)
    assert command.process.returncode == 130 and command_said(said) == command.process.args
    finished = len(read_lines(tmp_path / "out" / "cells.jsonl"))
    assert finished < 4 and {path.name for path in work.iterdir()} <= begun and len(begun) <= 2


def stopping(polite_seconds: float) -> list[str]:
    """A process under our handlers that starts one which leaves its group and its parent and is deaf to SIGTERM."""
    orphan = 'import signal, time; signal.signal(15, 1); print("deaf", flush=True); time.sleep(600)'
    parent = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {orphan!r}], start_new_session=True)"
    code = f"""
        import subprocess, sys, time
        from simulations import interrupts
        interrupts._POLITE_SECONDS = {polite_seconds}
        interrupts.STOPPING.install()
        subprocess.run([sys.executable, "-c", {parent!r}])
        while True:
            time.sleep(600)
    """
    return ["-c", textwrap.dedent(code)]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_what_left_its_group_and_its_parent_is_ended_even_if_it_is_deaf(start, number) -> None:
    command = start(*stopping(0.5))
    command.await_(lambda: "deaf" in command.log.read_text())
    assert len([each for each in command.marked() if alive(each)]) == 2
    command.stop(number)
    assert command.process.returncode == 128 + number


def test_a_second_ctrl_c_does_not_wait_for_what_is_deaf(start) -> None:
    command = start(*stopping(600.0))
    command.await_(lambda: "deaf" in command.log.read_text())
    os.killpg(command.process.pid, signal.SIGINT)
    command.await_(lambda: "stopped by SIGINT" in command.log.read_text())
    command.stop(signal.SIGINT)
    assert command.process.returncode == 130


def test_who_calls_our_functions_keeps_their_own_handlers(capsys) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    assert main(["settings"]) == 0
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == before


def test_a_stopped_demo_goes_on_and_a_finished_one_is_replaced(world, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("simulations.demo.CONFIGS", tmp_path)
    for method in ("asymmetric", "lora"):
        values = {**tiny_values(world, num_rounds=1), "method": method}
        lines = [f"{key} = {value!r}".replace("'", '"') for key, value in values.items()]
        (tmp_path / f"{method}.toml").write_text("\n".join(lines))
    monkeypatch.setattr(
        "server.lifecycle.write_report", lambda folders, out: None
    )  # of each run; that of both is the demo's
    out, quiet = tmp_path / "out", Console(quiet=True)
    demo(out, "local", 1, 0, quiet)
    records = [out / method / "rounds.jsonl" for method in ("asymmetric", "lora")]
    first = [path.read_text() for path in records]  # how many seconds each round took, too
    (out / "report.html").unlink()  # as if it had been stopped before its end
    demo(out, "local", 1, 0, quiet)
    assert [path.read_text() for path in records] == first
    demo(out, "local", 1, 0, quiet)
    assert [path.read_text() for path in records] != first
