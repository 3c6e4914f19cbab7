"""A process that dies is started again, one that dies again and again is given up, and nothing is left at the end."""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from kits import lives, wait_for

from fedasym.ops.supervisor import Patience, Service, ServiceError, Supervisor

LIVES = "import time; time.sleep(60)"
QUICK = Patience(ready=20.0, quick=5.0, deaths=3, first_pause=0.05, longest_pause=0.1)


def service(folder: Path, name: str, code: str, ready: Callable[[], bool] = lambda: True) -> Service:
    # The pid of each life is a line of a file; the rest is the code.
    first = f"import os; open({str(folder / name)!r}, 'a').write(f'{{os.getpid()}}\\n')\n"
    return Service(name, (sys.executable, "-c", first + code), dict(os.environ), folder, folder / f"{name}.log", ready)


def pids_of(folder: Path, name: str) -> list[int]:
    path = folder / name
    return [int(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture
def stop() -> Iterator[threading.Event]:
    event = threading.Event()
    yield event
    event.set()


def test_processes_start_when_the_one_before_is_ready_and_end_in_the_opposite_order(
    tmp_path: Path, stop: threading.Event
) -> None:
    said: list[str] = []
    first = service(tmp_path, "first", LIVES, lambda: bool(pids_of(tmp_path, "first")))
    second = service(tmp_path, "second", LIVES, lambda: bool(pids_of(tmp_path, "second")))
    supervisor = Supervisor([first, second], said.append, stop, QUICK)
    supervisor.start()
    pids = [*pids_of(tmp_path, "first"), *pids_of(tmp_path, "second")]
    assert len(pids) == 2 and all(map(lives, pids))
    supervisor.end()
    assert not any(map(lives, pids))
    assert [line.split()[0] for line in said] == ["first", "second", "second", "first"]


def test_a_killed_process_is_back_and_what_it_started_is_ended(tmp_path: Path, stop: threading.Event) -> None:
    child = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {LIVES!r}])\n"
    note = f"open({str(tmp_path / 'child')!r}, 'a').write(f'{{p.pid}}\\n')\n"
    code = child.replace("subprocess.Popen", "p = subprocess.Popen") + note + LIVES
    said: list[str] = []
    ready = lambda: len(pids_of(tmp_path, "one")) == len(pids_of(tmp_path, "child")) > 0  # noqa: E731
    supervisor = Supervisor([service(tmp_path, "one", code, ready)], said.append, stop, QUICK)
    supervisor.start()
    watcher = threading.Thread(target=supervisor.watch, args=(lambda: None,))
    watcher.start()
    try:
        (pid,) = pids_of(tmp_path, "one")
        (orphan,) = pids_of(tmp_path, "child")
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda: any("ready again" in line for line in said))
        assert not lives(orphan)
        assert len(pids_of(tmp_path, "one")) == 2 and "died with -9" in said[1]
    finally:
        stop.set()
        watcher.join()
        supervisor.end()
    assert not any(map(lives, [*pids_of(tmp_path, "one"), *pids_of(tmp_path, "child")]))


def test_a_process_that_dies_again_and_again_is_given_up_with_its_log(tmp_path: Path, stop: threading.Event) -> None:
    lasting = service(tmp_path, "lasting", LIVES)
    failing = service(tmp_path, "failing", "import time; time.sleep(0.3); raise SystemExit('no such thing')")
    supervisor = Supervisor([lasting, failing], lambda _: None, stop, QUICK)
    try:
        with pytest.raises(ServiceError, match=r"(?s)failing died 3 times in a row.*no such thing"):
            supervisor.start()
            supervisor.watch(lambda: None)
    finally:
        supervisor.end()
    assert len(pids_of(tmp_path, "failing")) == 3 and len(pids_of(tmp_path, "lasting")) == 1
    assert not lives(pids_of(tmp_path, "lasting")[0])


def test_a_start_that_fails_or_takes_too_long_is_told(tmp_path: Path, stop: threading.Event) -> None:
    failing = service(tmp_path, "failing", "raise SystemExit('bad flag')", lambda: False)
    with pytest.raises(ServiceError, match=r"(?s)failing exited with 1 at its start.*bad flag"):
        Supervisor([failing], lambda _: None, stop, QUICK).start()
    hanging = Supervisor(
        [service(tmp_path, "hanging", LIVES, lambda: False)], lambda _: None, stop, Patience(ready=0.5)
    )
    with pytest.raises(ServiceError, match=r"was not ready within 0.5 s"):
        hanging.start()
    hanging.end()


def test_a_start_that_is_told_to_end_returns_early(tmp_path: Path, stop: threading.Event) -> None:
    stop.set()
    supervisor = Supervisor([service(tmp_path, "one", LIVES)], lambda _: None, stop, QUICK)
    supervisor.start()
    supervisor.end()
    assert pids_of(tmp_path, "one") == []
