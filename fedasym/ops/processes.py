"""Processes that we start: a group of their own each, ended with all they started; Flower kept quiet and offline.

What they start may leave their group (Flower's engine does), so each carries a mark in its environment, which all that
comes after it inherits. A process has the marks of all before it.
"""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
from filelock import FileLock, Timeout

QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.1",  # seconds; a run waits for the SuperExec before anything else
    "RAY_prestart_worker_first_driver": "0",  # processes that no client would use
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",  # a client without a share of a GPU sees none
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}
_MARKS = "FEDASYM_STARTED_BY"
_POLITE_SECONDS = 15.0
_LEFT_SECONDS = 2.0  # from SIGTERM to SIGKILL for what a process has left behind
_LOOK_SECONDS = 0.05


def ray_address() -> str:
    """Return where the Ray of simulations is: what RAY_ADDRESS names, or ``local``: each run starts its own."""
    return os.environ.get("RAY_ADDRESS") or "local"


def tool(name: str) -> str:
    """Return the path of a command that is installed beside this Python."""
    return str(Path(sys.executable).with_name(name))


def cores() -> int:
    """Return how many CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def flower_environment(home: Path, first_on_path: Sequence[Path] = ()) -> dict[str, str]:
    """Return our environment with Flower quiet, its home elsewhere, and this Python's commands found first.

    Flower's engine runs on a Ray of its own, unless RAY_ADDRESS names one: what another program has left in Ray's
    temporary folder is not taken for it.

    Args:
        home: Flower's home (``FLWR_HOME``), for its configuration and installed apps.
        first_on_path: folders whose commands come before those beside this Python.
    """
    found = [*map(str, first_on_path), str(Path(sys.executable).parent), os.environ.get("PATH", "")]
    here = {"FLWR_HOME": str(home), "PATH": os.pathsep.join(found), "RAY_ADDRESS": ray_address()}
    return {**os.environ, **QUIET, **here}


def start(
    command: Sequence[str], environment: Mapping[str, str], folder: Path, log_file: Path
) -> subprocess.Popen[bytes]:
    """Start a process in a group of its own, its output appended to a file.

    Where util-linux has ``setpriv`` it is told to end when we are killed; a thread that ends counts as we, so call
    this from the main thread.
    """
    setpriv = shutil.which("setpriv")
    leash = [setpriv, "--pdeathsig", "TERM", "--"] if setpriv else []
    with log_file.open("ab") as log:
        return subprocess.Popen(
            [*leash, *command],
            env=environment,
            cwd=folder,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def end(process: subprocess.Popen[bytes]) -> None:
    """End a process and all of its group: politely, then by force."""
    end_group(process.pid, _POLITE_SECONDS)
    process.poll()


def end_group(group: int, polite_seconds: float) -> None:
    """End all processes of a group, whether or not its leader lives: politely, then by force.

    Args:
        group: its id, that of the process that `start` made its leader.
        polite_seconds: from SIGTERM to SIGKILL.
    """
    end_all(lambda: {each for each in psutil.process_iter() if _group(each) == group}, polite_seconds)


def end_all(find: Callable[[], set[psutil.Process]], polite_seconds: float) -> None:
    """End processes, and what they start meanwhile: politely, then by force.

    Args:
        find: returns them, again and again, since they may start others; one that was found once is not forgotten.
        polite_seconds: from SIGTERM to SIGKILL.
    """
    known: set[psutil.Process] = set()
    for how, seconds in ((signal.SIGTERM, polite_seconds), (signal.SIGKILL, _POLITE_SECONDS)):
        deadline = time.monotonic() + seconds
        told: set[psutil.Process] = set()
        while alive := {each for each in known | find() if _lives(each)}:
            for each in alive - told:
                with suppress(psutil.Error):  # it has ended meanwhile
                    each.send_signal(how)
            known, told = known | alive, told | alive
            if time.monotonic() > deadline:
                break
            time.sleep(_LOOK_SECONDS)
        else:
            return


def marked(environment: Mapping[str, str], mark: str) -> dict[str, str]:
    """Return an environment with one more mark, by which `bearers` finds a process and all that it starts."""
    return {**environment, _MARKS: f"{environment.get(_MARKS, '')} {mark}".strip()}


def bearers(mark: str) -> set[psutil.Process]:
    """Return all other processes with a mark, with the rest of their groups and all below them.

    Some of Ray's write their title over their environment; they are found by the others.
    """
    everyone = list(psutil.process_iter(["ppid", "environ"]))
    found = {each for each in everyone if mark in (each.info["environ"] or {}).get(_MARKS, "").split()}
    groups = {_group(each) for each in found} - {None, os.getpgrp()}
    found |= {each for each in everyone if _group(each) in groups}
    ids = {each.pid for each in found}
    while more := {each for each in everyone if each.info["ppid"] in ids} - found:
        found |= more
        ids |= {each.pid for each in more}
    return {each for each in found if each.pid != os.getpid()}


def _group(process: psutil.Process) -> int | None:
    try:
        return os.getpgid(process.pid)
    except OSError:  # it has ended, or is not ours
        return None


def _lives(process: psutil.Process) -> bool:
    """Say whether a process runs; one that only waits to be reaped does not."""
    try:
        return bool(process.is_running() and process.status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD))
    except psutil.Error:
        return False


@contextmanager
def started(
    command: Sequence[str], environment: Mapping[str, str], folder: Path, log_file: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """Start a process as `start` does and end it, with all it started, at the end."""
    mark = secrets.token_hex(8)
    process = start(command, marked(environment, mark), folder, log_file)
    try:
        yield process
    finally:
        end(process)
        end_all(lambda: bearers(mark), _LEFT_SECONDS)


@contextmanager
def stopped_by_signals() -> Iterator[threading.Event]:
    """Yield an event that SIGTERM and SIGINT set, so that nothing is left half done."""
    stop = threading.Event()
    before = {number: signal.signal(number, lambda *_: stop.set()) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def held_alone(folder: Path, else_: str) -> Iterator[None]:
    """Hold a folder for this process alone; the lock ends with the process, however it ends.

    Args:
        folder: that exists; gets a file ``.lock``.
        else_: what to do if another process holds it.

    Raises:
        BlockingIOError: another process holds it.
    """
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise BlockingIOError(f"{folder} is in use by another process; {else_}") from None
    try:
        yield
    finally:
        lock.release()


def is_held(folder: Path) -> bool:
    """Say whether a process that lives holds a folder (`held_alone`) that is seen here too."""
    if not (folder / ".lock").exists():
        return False
    lock = FileLock(folder / ".lock")
    try:
        with lock.acquire(blocking=False):
            return False
    except Timeout:
        return True
    except OSError:  # it cannot be told, as on a full disk
        return False


def listens(host: str, port: int) -> bool:
    """Say whether somebody listens at an address of this machine; those for all addresses are asked by loopback."""
    here = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    try:
        with socket.create_connection((here, port), timeout=1.0):
            return True
    except OSError:
        return False


def free_port() -> int:
    """Return a port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def tail(path: Path, lines: int = 40) -> str:
    """Return the last lines of a text file, "" if there is none."""
    return "\n".join(path.read_text(errors="replace").splitlines()[-lines:]) if path.exists() else ""
