"""What we start ends with us, whole, politely or by force; a folder is held by one process at a time."""

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from kits import lives, wait_for

from fedasym.ops.processes import free_port, held_alone, is_held, listens, started, stopped_by_signals, tail

SECONDS = 60.0


def sleeper(deaf: bool = False) -> list[str]:
    """A process that starts another one, says its id, and waits; a deaf one does not hear SIGTERM."""
    code = f"""
        import signal, subprocess, sys
        if {deaf}: signal.signal(signal.SIGTERM, signal.SIG_IGN)
        child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
        print(child.pid, flush=True)
        child.wait()
        signal.pause()  # it ends by a signal, also if its child is killed first
    """
    return [sys.executable, "-c", textwrap.dedent(code)]


@pytest.mark.parametrize("deaf", [False, True])
def test_a_process_ends_with_all_that_it_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, deaf: bool) -> None:
    monkeypatch.setattr("fedasym.ops.processes._POLITE_SECONDS", 1.0 if deaf else SECONDS)
    log = tmp_path / "log"
    with started(sleeper(deaf), os.environ, tmp_path, log) as process:
        wait_for(lambda: log.read_text().endswith("\n"))
        child = int(log.read_text())
        assert lives(child) and lives(process.pid)
    wait_for(lambda: not lives(child))
    assert process.returncode == (-signal.SIGKILL if deaf else -signal.SIGTERM)


def test_what_a_process_started_may_end_politely_after_it(tmp_path: Path) -> None:
    child = f"""
        import pathlib, signal, sys, threading
        stop = threading.Event()
        signal.signal(signal.SIGTERM, lambda *_: stop.set())
        print("ready", flush=True)
        stop.wait()
        sys.stdin.read()  # until the one that started it is gone
        pathlib.Path({str(tmp_path / "goodbye")!r}).touch()
    """
    code = f"""
        import subprocess, sys
        child = subprocess.Popen([sys.executable, "-c", {textwrap.dedent(child)!r}], stdin=subprocess.PIPE)
        child.wait()
    """
    log = tmp_path / "log"
    with started([sys.executable, "-c", textwrap.dedent(code)], os.environ, tmp_path, log):
        wait_for(lambda: log.read_text() == "ready\n")
    assert (tmp_path / "goodbye").exists()


def test_what_we_started_ends_when_we_are_killed(tmp_path: Path) -> None:
    code = f"""
        import os, pathlib
        from fedasym.ops.processes import start
        folder = pathlib.Path({str(tmp_path)!r})
        process = start({sleeper()!r}, os.environ, folder, folder / "log")
        print(process.pid, flush=True)
        process.wait()
    """
    ours = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True)
    assert ours.stdout
    theirs = int(ours.stdout.readline())
    wait_for(lambda: (tmp_path / "log").read_text().endswith("\n"))
    ours.kill()
    ours.wait()
    wait_for(lambda: not lives(theirs))


def test_signals_set_the_event_and_are_given_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with stopped_by_signals() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.wait(SECONDS)
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_folder_is_held_by_one_and_free_afterwards(tmp_path: Path) -> None:
    with held_alone(tmp_path, "wait"), pytest.raises(BlockingIOError, match="wait"), held_alone(tmp_path, "wait"):
        pass
    with held_alone(tmp_path, "wait"):
        pass


def test_of_a_folder_whose_lock_cannot_be_opened_nobody_is_said_to_hold_it(tmp_path: Path) -> None:
    with held_alone(tmp_path, "wait"):
        assert is_held(tmp_path)
    (tmp_path / ".lock").unlink()
    (tmp_path / ".lock").mkdir()
    assert not is_held(tmp_path)


def test_a_free_port_is_one_on_which_nobody_listens() -> None:
    assert not listens("127.0.0.1", free_port())


def test_the_tail_of_a_file_is_its_last_lines(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("one\ntwo\nthree\n")
    assert tail(tmp_path / "log", 2) == "two\nthree" and tail(tmp_path / "none") == ""
