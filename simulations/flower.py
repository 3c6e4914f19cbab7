"""Flower's own engine: a private SuperLink of ours, `flwr run`, and the run's real status.

`flwr run` alone would start a SuperLink that outlives the job and would report success for a failed run; here the
SuperLink is a child with a port and a home of its own, the status is polled, and everything started is ended.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fedasym.settings import Settings, Value

PROJECT = Path(__file__).resolve().parents[1]
POLL_SECONDS = 20.0  # without a new round; each poll is a process of about 2 s of one core, taken from the training
_START_SECONDS = 60.0
_CONNECTION = "fedasym"

QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}


class FlowerError(RuntimeError):
    """Flower did not complete the run; the text holds its status and the end of its log."""


def run_flower(settings: Settings, workers: int) -> Path:
    """Run a federation through ``flwr run`` on Flower's simulation engine (Ray).

    Args:
        settings: ``out`` must name the run folder.
        workers: clients that train at the same time, each in a process of its own.

    Returns:
        The run folder.

    Raises:
        FlowerError: the run ended otherwise than ``finished:completed``.
    """
    folder = Path(settings.out).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    log_file = folder / "flower.log"
    with tempfile.TemporaryDirectory(prefix="fedasym-flower-") as home:
        config = Path(home) / "run.toml"
        config.write_text("".join(f"{key} = {toml_value(v)}\n" for key, v in settings.run_config().items()))
        with _superlink(Path(home), log_file) as environment:
            # Ray starts as many actors as fit: num-cpus of each into num-cpus of all.
            each = max(1, (os.cpu_count() or 1) // workers)
            federation = (
                f"num-supernodes={settings.num_clients} client-resources-num-cpus={each} "
                f"init-args-num-cpus={each * workers}"
            )
            run = _flwr(
                [
                    "run",
                    str(_stage(Path(home) / "fedasym")),
                    _CONNECTION,
                    "-c",
                    str(config),
                    "--federation-config",
                    federation,
                ],
                environment,
            )
            _wait(str(run["run-id"]), environment, log_file, folder / "summary.json")
    return folder


def _stage(folder: Path) -> Path:
    """Copy what the app bundle is made of, so that Flower does not walk through a virtual environment to find it."""
    for name in ("fedasym", "server", "clients"):
        shutil.copytree(PROJECT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(PROJECT / name, folder / name)
    return folder


def toml_value(value: Value) -> str:
    """Write a run-config value as TOML."""
    return json.dumps(value, ensure_ascii=False)  # TOML shares JSON's strings, numbers and booleans


def _wait(run_id: str, environment: dict[str, str], log_file: Path, summary: Path) -> None:
    """Ask for the run's status when its summary is written, and when no round ends for a while, until it is over."""
    before, rounds = _written(summary), summary.with_name("rounds.jsonl")
    try:
        while True:
            seen, deadline = _written(rounds), time.monotonic() + POLL_SECONDS
            while time.monotonic() < deadline and _written(summary) == before:  # once written, the end is near
                time.sleep(0.2)
                if _written(rounds) != seen:
                    seen, deadline = _written(rounds), time.monotonic() + POLL_SECONDS
            status = str(_flwr(["list", _CONNECTION, "--run-id", run_id], environment)["runs"][0]["status"])
            if status == "finished:completed":
                return
            if status.startswith("finished"):
                _keep_run_log(run_id, environment, log_file)
                raise FlowerError(f"Flower's run ended as {status!r}; the end of {log_file}:\n{_tail(log_file)}")
    except KeyboardInterrupt:
        _flwr(["stop", run_id, _CONNECTION], environment)
        raise


def _keep_run_log(run_id: str, environment: dict[str, str], log_file: Path) -> None:
    """Append what the ServerApp printed, its traceback included, to our log."""
    with log_file.open("ab") as log:
        command = [_tool("flwr"), "log", run_id, _CONNECTION, "--show"]
        subprocess.run(command, env=environment, stdout=log, stderr=subprocess.STDOUT, check=False)


def _tool(name: str) -> str:
    """Return the path of a command that is installed beside this Python."""
    return str(Path(sys.executable).with_name(name))


def _written(path: Path) -> int:
    return path.stat().st_mtime_ns if path.exists() else 0


def _flwr(arguments: list[str], environment: dict[str, str]) -> Any:
    """Call Flower's command line and return its JSON answer."""
    command = [_tool("flwr"), *arguments, "--format", "json"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    start = done.stdout.find("{")
    answer = json.loads(done.stdout[start:]) if start >= 0 else {}
    if done.returncode or not answer.get("success"):
        raise FlowerError(f"`flwr {arguments[0]}` failed: {answer.get('error-message') or done.stdout + done.stderr}")
    return answer


@contextmanager
def _superlink(home: Path, log_file: Path) -> Iterator[dict[str, str]]:
    """Start a SuperLink on a free loopback port; yield the environment to reach it; end it and all it started."""
    port = _free_port()
    environment = {**os.environ, **QUIET, "FLWR_HOME": str(home)}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment.get('PATH', '')}"
    connection = f'[superlink]\ndefault = "{_CONNECTION}"\n\n[superlink.{_CONNECTION}]\naddress = "127.0.0.1:{port}"\n'
    (home / "config.toml").write_text(connection + "insecure = true\n")
    command = [
        _tool("flower-superlink"),
        "--insecure", "--simulation", "--isolation", "subprocess",
        "--host", "127.0.0.1", "--port", str(port),
        "--database", str(home / "state.db"),
    ]  # fmt: skip
    with log_file.open("ab") as log:
        process = subprocess.Popen(
            command, env=environment, cwd=PROJECT, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        _await_health(process, port, log_file)
        yield environment
    finally:
        _end(process)


def _await_health(process: subprocess.Popen[bytes], port: int, log_file: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise FlowerError(f"flower-superlink exited with {process.returncode}:\n{_tail(log_file)}")
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1.0):
                return
        except OSError:
            time.sleep(0.1)
    raise FlowerError(f"flower-superlink was not ready within {_START_SECONDS} s:\n{_tail(log_file)}")


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the SuperLink's whole process group: politely, then by force."""
    for how, seconds in ((signal.SIGTERM, 15.0), (signal.SIGKILL, 15.0)):
        try:
            os.killpg(process.pid, how)
            process.wait(seconds)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _tail(path: Path, lines: int = 40) -> str:
    return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])
