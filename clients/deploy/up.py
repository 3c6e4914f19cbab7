"""A site that is up: its data looked at, the warm worker, and Flower's processes, started again when they die."""

import json
import os
import secrets
import shutil
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path

from clients.deploy.site_processes import Plan, commands, scripts
from clients.worker.private_folder import make_private
from clients.worker.service import PROJECT, worker
from fedasym.ops.processes import QUIET, free_port, held_alone, stopped_by_signals, tail
from fedasym.ops.supervisor import Patience, Service, Supervisor

_LOOK_SECONDS = 0.1
_WORKER_SECONDS = 300.0  # for the worker's imports
_PATIENCE = Patience(quick=60.0, deaths=0, longest_pause=60.0)  # a site never gives up: its server may be away for long
_REACHED = "SuperNode ID"  # what a SuperNode prints when the server knows it


class SiteError(RuntimeError):
    """The site cannot be brought up; the text says why and what to do."""


def up(plan: Plan) -> None:
    """Bring a site up and keep it up until SIGINT or SIGTERM; then end all that was started.

    Raises:
        SiteError: data that cannot be used, or a worker that does not come up.
        PermissionError: a state folder that others may enter.
        BlockingIOError: a state folder that another process works in.
    """
    with ExitStack() as stack:
        stop = stack.enter_context(stopped_by_signals())
        state = make_private(plan.state)
        stack.enter_context(held_alone(state, "end it, or give this site a --state of its own"))
        _say(f"data of site {plan.kit.name}: {_look_at_data(plan, stop)}")
        for folder in (Path(plan.place.state), plan.flower_home):
            folder.mkdir(parents=True, exist_ok=True)
        _write_scripts(plan)
        _write_secret(plan)
        if plan.limits and not stop.is_set():
            warm = stack.enter_context(worker(state, plan.place, plan.limits))
            patience = time.monotonic() + _WORKER_SECONDS
            while not stop.is_set() and not warm.ready.wait(_LOOK_SECONDS):
                if time.monotonic() > patience:
                    log = state / "worker.log"
                    raise SiteError(f"the worker did not come up within {_WORKER_SECONDS:g} s; {log}:\n{tail(log)}")
        _keep_flower(plan, stop)
    _say(f"site {plan.kit.name} is down")


def _look_at_data(plan: Plan, stop: threading.Event) -> str:
    """Return what a short-lived process says of the data.

    Raises:
        SiteError: it cannot use them.
    """
    config = plan.settings.run_config()
    process = subprocess.Popen(
        [sys.executable, "-m", "clients.deploy.data_check", json.dumps(config), plan.place.data],
        cwd=PROJECT, env={**os.environ, **QUIET}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    while True:
        try:
            said, wrong = process.communicate(timeout=_LOOK_SECONDS)
            break
        except subprocess.TimeoutExpired:
            if stop.is_set():
                process.kill()
    if stop.is_set():
        return "not looked at to the end"
    if process.returncode:
        raise SiteError(f"the data of site {plan.kit.name} cannot be used: {wrong.strip()}")
    return said.strip()


def _write_scripts(plan: Plan) -> None:
    """Write the commands that come before Flower's own; of an earlier start none stays."""
    shutil.rmtree(plan.state / "bin", ignore_errors=True)
    for name, text in scripts(plan).items():
        path = plan.state / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        path.chmod(0o700)


def _write_secret(plan: Plan) -> None:
    """Write a new secret, by which the SuperNode tells our SuperExec from another process of this machine."""
    plan.secret.unlink(missing_ok=True)
    with open(os.open(plan.secret, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(secrets.token_hex(32))


class _Reached:
    """Answers whether a SuperNode, of all that were started one after the other, has reached the server."""

    def __init__(self, log: Path) -> None:
        self._log, self._read = log, log.stat().st_size if log.exists() else 0
        self.times = 0

    def __call__(self) -> bool:
        with self._log.open("rb") as log:
            start = log.seek(min(self._read, self._log.stat().st_size))  # shorter: somebody cut it
            printed = log.read()
        end = start + len(printed)
        found = _REACHED.encode() in printed
        self._read = end if found else max(end - len(_REACHED), start)  # its first half may be there
        self.times += found
        return found


def _keep_flower(plan: Plan, stop: threading.Event) -> None:
    """Keep SuperNode, SuperExec and fork server running until told to stop; say when the server is reached."""
    reached = _Reached(plan.state / "supernode.log")
    services = [
        Service(
            name, command, plan.environment, plan.state, plan.state / f"{name}.log",
            reached if name == "supernode" else lambda: True,
        )
        for name, command in commands(plan, free_port()).items()
    ]  # fmt: skip
    supervisor = Supervisor(services, _say, stop, _PATIENCE)
    told = 0

    def tell() -> None:
        nonlocal told
        if told < reached.times:
            told = reached.times
            _say(f"site {plan.kit.name} is up")

    _say(f"site {plan.kit.name} waits for {plan.server}")
    try:
        supervisor.watch(tell)
    finally:
        supervisor.end()


def _say(text: str) -> None:
    print(text, flush=True)
