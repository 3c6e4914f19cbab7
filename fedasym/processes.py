"""Processes that we start: a group of their own each, ended with all they started; Flower kept quiet and offline."""

import fcntl
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}
_POLITE_SECONDS = 15.0
_LOOK_SECONDS = 0.05


def tool(name: str) -> str:
    """Return the path of a command that is installed beside this Python."""
    return str(Path(sys.executable).with_name(name))


def flower_environment(home: Path, first_on_path: Sequence[Path] = ()) -> dict[str, str]:
    """Return our environment with Flower quiet, its home elsewhere, and this Python's commands found first.

    Args:
        home: Flower's home (``FLWR_HOME``), for its configuration and installed apps.
        first_on_path: folders whose commands come before those beside this Python.
    """
    found = [*map(str, first_on_path), str(Path(sys.executable).parent), os.environ.get("PATH", "")]
    return {**os.environ, **QUIET, "FLWR_HOME": str(home), "PATH": os.pathsep.join(found)}


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
    for how, seconds in ((signal.SIGTERM, polite_seconds), (signal.SIGKILL, _POLITE_SECONDS)):
        with suppress(ProcessLookupError, PermissionError):  # PermissionError: none is left but zombies, on a Mac
            os.killpg(group, how)
        deadline = time.monotonic() + seconds
        while _lives(group):
            if time.monotonic() > deadline:
                break
            time.sleep(_LOOK_SECONDS)
        else:
            return


def _lives(group: int) -> bool:
    """Say whether some process of a group runs; one that only waits to be reaped does not."""
    if not Path("/proc/self/stat").exists():
        try:
            os.killpg(group, 0)
        except OSError:
            return False
        return True
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has ended meanwhile
            state, _, its_group = path.read_text().rpartition(")")[2].split()[:3]
            if int(its_group) == group and state not in "ZX":
                return True
    return False


@contextmanager
def started(
    command: Sequence[str], environment: Mapping[str, str], folder: Path, log_file: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """Start a process as `start` does and end it, with all it started, at the end."""
    process = start(command, environment, folder, log_file)
    try:
        yield process
    finally:
        end(process)


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
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BlockingIOError(f"{folder} is in use by another process; {else_}") from None
        yield


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
