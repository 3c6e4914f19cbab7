"""A site that is up: its data looked at, the warm worker, and a SuperNode that is started again when it dies."""

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path

from clients.folder import make_private
from clients.keeper import PROJECT
from clients.plan import Plan, scripts
from clients.worker import worker
from fedasym.processes import QUIET, end, held_alone, listens, start, stopped_by_signals, tail

_LOOK_SECONDS = 0.1
_WORKER_SECONDS = 300.0  # for the worker's imports
_LONGEST_PAUSE = 60.0  # seconds between two starts of a SuperNode that does not stay
_STEADY_SECONDS = 60.0  # a SuperNode that lived so long is started again at once


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
        if plan.limits and not stop.is_set():
            keeper = stack.enter_context(worker(state, plan.place, plan.limits))
            patience = time.monotonic() + _WORKER_SECONDS
            while not stop.is_set() and not keeper.await_ready(_LOOK_SECONDS):
                if time.monotonic() > patience:
                    log = state / "worker.log"
                    raise SiteError(f"the worker did not come up within {_WORKER_SECONDS:g} s; {log}:\n{tail(log)}")
        _keep_supernode(plan, stop)
    _say(f"site {plan.kit.name} is down")


def _look_at_data(plan: Plan, stop: threading.Event) -> str:
    """Return what a short-lived process says of the data.

    Raises:
        SiteError: it cannot use them.
    """
    config = plan.settings.run_config()
    process = subprocess.Popen(
        [sys.executable, "-m", "clients.look", json.dumps(config), plan.place.data],
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


def _keep_supernode(plan: Plan, stop: threading.Event) -> None:
    """Run the SuperNode, again and again, with a growing pause when it does not stay."""
    log, pause, told = plan.state / "supernode.log", 0.0, False
    while not stop.is_set():
        began = time.monotonic()
        process = start(plan.supernode, {**os.environ, **plan.environment}, plan.state, log)
        try:
            while not stop.wait(_LOOK_SECONDS) and process.poll() is None:
                if not told and listens("127.0.0.1", plan.port):
                    _say(f"site {plan.kit.name} is up")
                    told = True
        finally:
            end(process)
        if stop.is_set():
            return
        pause = 0.0 if time.monotonic() - began > _STEADY_SECONDS else min(2 * pause + 1.0, _LONGEST_PAUSE)
        _say(f"the SuperNode ended with {process.returncode} and starts again in {pause:g} s; {log}:\n{tail(log, 5)}")
        stop.wait(pause)


def _say(text: str) -> None:
    print(text, flush=True)
