"""A private SuperLink of ours, `flwr run`, and the run's real status.

`flwr run` alone would start a SuperLink that outlives the job and would report success for a failed run; here the
SuperLink is a child with a port and a home of its own, the status is polled, and everything started is ended.
"""

import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import tomli_w

from fedasym.ops.app_bundle import PROJECT, stage
from fedasym.ops.flower_cli import FlowerError, connection, flwr
from fedasym.ops.processes import flower_environment, free_port, started, tail, tool
from fedasym.ops.progress import begin
from fedasym.settings import Settings
from simulations.interrupts import STOPPING

POLL_SECONDS = 120.0  # without a new round; each poll is a process of about 2 s of one core, taken from the training
_LOOK_SECONDS = 0.5
_APPS = ("flwr-simulation", "flwr-serverapp")  # the process that runs an app, while it does
_START_SECONDS = 60.0
_CONNECTION = "fedasym"


@dataclass(frozen=True)
class Superlink:
    """A running SuperLink of ours.

    Attributes:
        home: its folder, removed when it ends.
        port: on 127.0.0.1; one port serves control, fleet and runtime.
        environment: of processes that shall reach it by Flower's command line.
        log_file: what it prints.
        connection: its name in Flower's configuration.
        pid: of its process, if we have started it; 0 if not.
    """

    home: Path
    port: int
    environment: dict[str, str]
    log_file: Path
    connection: str = _CONNECTION
    pid: int = 0


def run_app(link: Superlink, settings: Settings, *options: str) -> Path:
    """Run our app on a SuperLink and wait until it is finished.

    Args:
        link: where.
        settings: ``out`` must name the run folder.
        *options: further words for ``flwr run``.

    Returns:
        The run folder.

    Raises:
        FlowerError: the run ended otherwise than ``finished:completed``.
    """
    folder = Path(settings.out).absolute()
    begin(folder, "starting the run in Flower")
    with tempfile.TemporaryDirectory(prefix="run-", dir=link.home) as work:
        config = Path(work) / "run.toml"
        config.write_text(tomli_w.dumps(settings.run_config()))
        app = str(stage(Path(work) / "fedasym"))
        run = flwr(["run", app, link.connection, "-c", str(config), *options], link.environment)
    _wait(str(run["run-id"]), link, folder / "summary.json")
    return folder


def _wait(run_id: str, link: Superlink, summary: Path) -> None:
    """Ask for the run's status when its process has ended, and when no round ends for a while, until it is over.

    Of a SuperLink that is not ours the process is not seen; once the summary is written, the end is near.
    """
    before, rounds, began = _written(summary), summary.with_name("rounds.jsonl"), False
    while True:
        seen, deadline = _written(rounds), time.monotonic() + POLL_SECONDS
        while time.monotonic() < deadline and (link.pid or _written(summary) == before):
            time.sleep(_LOOK_SECONDS)
            works = _works(link)
            if began and not works:
                break
            began = began or works
            if _written(rounds) != seen:
                seen, deadline = _written(rounds), time.monotonic() + POLL_SECONDS
        status = str(flwr(["list", link.connection, "--run-id", run_id], link.environment)["runs"][0]["status"])
        if status == "finished:completed":
            return
        if status.startswith("finished"):
            _keep_run_log(run_id, link)
            raise FlowerError(f"Flower's run ended as {status!r}; the end of {link.log_file}:\n{tail(link.log_file)}")


def _works(link: Superlink) -> bool:
    """Say whether a process that the SuperLink has started runs an app."""
    with suppress(psutil.Error):  # one of them has just ended
        below = psutil.Process(link.pid).children(recursive=True) if link.pid else []
        return any(Path(word).name in _APPS for each in below for word in each.cmdline()[:2])
    return False


def _keep_run_log(run_id: str, link: Superlink) -> None:
    """Append what the ServerApp printed, its traceback included, to our log."""
    with link.log_file.open("ab") as log:
        command = [tool("flwr"), "log", run_id, link.connection, "--show"]
        with suppress(subprocess.TimeoutExpired):
            subprocess.run(command, env=link.environment, stdout=log, stderr=log, check=False, timeout=_START_SECONDS)


def _written(path: Path) -> int:
    return path.stat().st_mtime_ns if path.exists() else 0


@contextmanager
def superlink(log_file: Path, *options: str) -> Iterator[Superlink]:
    """Start a SuperLink on a free loopback port with a home of its own; end it and all it started.

    Args:
        log_file: to which its output is appended; its folder is made.
        *options: further words for ``flower-superlink``, e.g. ``--simulation``.

    Raises:
        FlowerError: it was not ready in time.
    """
    log_file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="fedasym-flower-") as home:
        STOPPING.leavings.add(Path(home))
        link = _configure(Path(home), log_file)
        command = [
            tool("flower-superlink"),
            "--insecure", "--isolation", "subprocess", *options,
            "--host", "127.0.0.1", "--port", str(link.port),
        ]  # fmt: skip
        with started(command, link.environment, PROJECT, log_file) as process:
            _await_health(process, link.port, log_file)
            yield replace(link, pid=process.pid)


def _configure(home: Path, log_file: Path) -> Superlink:
    """Choose a port and write Flower's own configuration for it."""
    port = free_port()
    (home / "config.toml").write_text(connection(_CONNECTION, port))
    return Superlink(home, port, flower_environment(home), log_file)


def _await_health(process: subprocess.Popen[bytes], port: int, log_file: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise FlowerError(f"flower-superlink exited with {process.returncode}:\n{tail(log_file)}")
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1.0):
                return
        except OSError:
            time.sleep(0.1)
    raise FlowerError(f"flower-superlink was not ready within {_START_SECONDS} s:\n{tail(log_file)}")
