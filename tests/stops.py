"""Stops of a run at the steps by which it writes: killed there, or told there that the disk is full.

A step changes what lies in a folder: a file is opened to be written, its bytes are written, it is on its way to the
disk, takes another's place, is linked, cut, removed; a folder is made or removed. They are seen where Python hands
them to the system (its audit hooks, and `os.fsync`). What is for the eye alone (``progress``) is left out.

A run is stopped in a process that is forked from one that has imported everything and built what server and clients
hold, so one stop costs as much as the rounds themselves. All is done by one core: threads of a library do not outlive
a fork.
"""

import errno
import os
import random
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from warm import CONTEXT
from world import no_report, tiny_settings, what_is_left

from fedasym.runs import checkpoint

KILLED, FULL = "killed", "full"
_CHANGES = ("os.rename", "os.link", "os.mkdir", "os.rmdir", "os.remove", "os.truncate")
_NEED_NO_SPACE = ("os.rmdir", "os.remove", "os.truncate")


@dataclass(frozen=True)
class Stop:
    """One stop.

    Attributes:
        step: what was about to be done.
        code: how the stopped process ended, as `os.waitstatus_to_exitcode` says.
        said: of one that ended by an exception, its type and text.
        after: how the process that continued the run ended; 0 if well.
        why: of that, as ``said``.
        same: whether the run then had all files of the run that was never stopped, and its record and summary.
        files: the names in which the two folders differ.
    """

    step: str
    code: int
    said: str
    after: int
    why: str
    same: bool
    files: tuple[str, ...]


class Steps:
    """Counts the steps in a folder and stops this process at one of them.

    Args:
        folder: whose files count.
        at: number of the step, from 1; 0: none.
        how: `KILLED` or `FULL`.
        tell: called with the step.
    """

    def __init__(self, folder: Path, at: int, how: str, tell: Callable[[str], object]) -> None:
        self.count = 0
        self._folder, self._at, self._how, self._tell = str(folder), at, how, tell
        self._sizes: dict[str, int] = {}
        self._fsync = os.fsync
        os.fsync = self._to_disk
        sys.addaudithook(self._hear)

    def _hear(self, event: str, about: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(about[0], str) and about[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            path = about[0]
            self._sizes[path] = os.stat(path).st_size if os.path.exists(path) and not about[2] & os.O_TRUNC else 0
            self._step("open", path)
        elif event in _CHANGES and not (event == "os.mkdir" and os.path.exists(about[0])):
            self._step(event, os.fspath(about[1] if event in ("os.rename", "os.link") else about[0]))

    def _to_disk(self, file: int) -> None:
        path = os.readlink(f"/proc/self/fd/{file}")
        if os.path.isfile(path):
            before, size = self._sizes.get(path, 0), os.fstat(file).st_size
            self._step("half of the bytes of", path, lambda: os.truncate(path, before + (size - before) // 2))
        self._step("fsync", path)
        self._fsync(file)

    def _step(self, event: str, path: str, first: Callable[[], None] = lambda: None) -> None:
        inside = path[len(self._folder) :] if path.startswith(self._folder) else ""
        if not inside or inside.startswith("/progress") or (self._how == FULL and event in _NEED_NO_SPACE):
            return
        self.count += 1
        if not 0 < self._at <= self.count:  # a full disk stays full
            return
        if self._at == self.count:
            self._tell(f"{event} {inside}")
        first()
        if self._how == KILLED:
            os.kill(os.getpid(), signal.SIGKILL)
        named = () if event.startswith("half") else (path,)  # a write does not know its file's name
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), *named)


class _Here(Executor):
    """Does what it is given at once, on the thread that gives it."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> "Future[Any]":
        done: Future[Any] = Future()
        try:
            done.set_result(fn(*args, **kwargs))
        except BaseException as error:
            done.set_exception(error)
        return done


def in_a_fork_of_one_that_is_warm(do: Callable[..., Any], *arguments: Any) -> Any:
    """Do something in a process of its own, on one core, that has imported everything; return what it returns."""
    ours, theirs = CONTEXT.Pipe()
    process = CONTEXT.Process(target=_send, args=(theirs, do, arguments))
    process.start()
    theirs.close()
    try:
        found, wrong = ours.recv()
    finally:
        process.join()
    assert not wrong, wrong
    return found


def _send(to: Connection, do: Callable[..., Any], arguments: Sequence[Any]) -> None:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    try:
        to.send((do(*arguments), ""))
    except BaseException:
        to.send((None, traceback.format_exc()))


def stop_at_steps(root: Path, more: dict[str, object], shares: dict[str, int]) -> dict[str, tuple[int, list[Stop]]]:
    """Run a tiny federation, then again for some of its steps: stop it there, continue it, and compare.

    Args:
        root: folder of it all.
        more: settings.
        shares: every how many steps it is stopped, with 1 at each, by how: `KILLED`, or `FULL`, where from that step
            on nothing can be written.

    Returns:
        By how, the number of steps of the run, and the stops.
    """
    run, folder, step = runner(root, more), root / "run", root / "step"
    found = {}
    for how, share in shares.items():

        def count(how: str = how) -> str:
            steps = Steps(folder, 0, how, step.write_text)
            run()
            return str(steps.count)

        code, said = forked(count)
        assert code == 0, said
        shutil.rmtree(root / "whole", ignore_errors=True)
        folder.rename(root / "whole")
        stops = []
        for at in range(1 + (share - 1) // 2, int(said) + 1, share):

            def stopped(at: int = at, how: str = how) -> str:
                Steps(folder, at, how, step.write_text)
                return run()

            stops.append(_stop(root, stopped, run, step.read_text))
        found[how] = (int(said), stops)
    return found


def stop_with_little_space(root: Path, more: dict[str, object], left: Sequence[int]) -> list[Stop]:
    """Run a tiny federation on a small file system that gets full, once for each number of bytes that are left."""
    run, folder, ballast = runner(root, more), root / "run", root / "ballast"
    code, said = forked(run)
    assert code == 0, said
    folder.rename(root / "whole")
    stops = []
    for size in left:

        def filled(size: int = size) -> str:
            with ballast.open("wb") as file:
                file.write(bytes(shutil.disk_usage(root).free - size))
            return run()

        def again() -> str:
            ballast.unlink()
            return run()

        stops.append(_stop(root, filled, again, lambda size=size: f"{size} bytes left"))  # type: ignore[misc]
        ballast.unlink(missing_ok=True)
    return stops


def kill_at_random(root: Path, more: dict[str, object], kills: int, seed: int) -> tuple[int, int]:
    """Run a tiny federation again and again, each time killed at random times until it is done.

    Args:
        root: folder of it all.
        more: settings.
        kills: how many at least.
        seed: of the times.

    Returns:
        The number of kills, and of the runs that came to their end, each with what the run never killed has left.
    """
    run, folder, draw = runner(root, more), root / "run", random.Random(seed)
    begun = time.monotonic()
    code, said = forked(run)
    assert code == 0, said
    longest = time.monotonic() - begun
    folder.rename(root / "whole")
    killed = ended = 0
    while killed < kills or folder.exists():
        child = os.fork()
        if child == 0:
            run()
            os._exit(0)
        end = threading.Timer(draw.uniform(0.0, longest), os.kill, (child, signal.SIGKILL))
        end.start()  # before it is reaped its id is nobody else's
        os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
        end.cancel()
        end.join()
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert code in (0, -signal.SIGKILL), f"after {killed} kills a run ended with {code}"
        killed += code != 0
        if code == 0:
            assert what_is_left(folder) == what_is_left(root / "whole"), f"after {killed} kills"
            assert files_of(folder) == files_of(root / "whole"), f"after {killed} kills"
            shutil.rmtree(folder)
            ended += 1
    return killed, ended


def _stop(root: Path, stopped: Callable[[], str], again: Callable[[], str], step: Callable[[], str]) -> Stop:
    """Do what stops the run, then what continues it, compare, and remove the run."""
    folder, whole = root / "run", root / "whole"
    code, said = forked(stopped)
    after, why = forked(again)
    same = after == 0 and what_is_left(folder) == what_is_left(whole)
    files = tuple(sorted(files_of(folder) ^ files_of(whole))) if same else ()
    shutil.rmtree(folder, ignore_errors=True)
    return Stop(step(), code, said, after, why, same, files)


def files_of(folder: Path) -> set[str]:
    """Return the files of a run folder but for what clients kept of a run that ended before its first round did."""
    state = checkpoint.load(folder)
    assert state is not None
    found = [path.relative_to(folder).parts for path in folder.rglob("*") if path.is_file()]
    own = [parts for parts in found if parts[0] != "clients" or parts[1] == state.run]
    return {"/".join(part for part in parts if part != state.run) for parts in own}


def runner(root: Path, more: dict[str, object]) -> Callable[[], str]:
    """Build all that server and clients hold, and return what runs the federation ``root/run``; to be forked."""

    from clients.app import app
    from clients.session import session_of
    from server.app import only_user
    from server.lifecycle import federate, opened
    from server.reporter import Reporter
    from simulations.engines.grid import InProcessGrid

    settings = tiny_settings(root, out=str(root / "run"), **more).resolved()
    session = opened(settings, root / "run")
    session_of(session.settings)  # of this thread, on which the clients work

    def run() -> str:
        folder = root / "run"
        with InProcessGrid(app, settings.run_config(), settings.num_clients) as grid, no_report():
            grid._pool = _Here()
            with only_user(folder), Reporter(folder, settings.num_rounds) as reporter:
                federate(grid, session, folder, reporter)
        return ""

    return run


def forked(do: Callable[[], str]) -> tuple[int, str]:
    """Do something in a forked process; return how it ended, and what it returned or the exception that ended it."""
    reads, writes = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reads)
        try:
            said, code = do(), 0
        except BaseException as error:
            said, code = f"{type(error).__name__}: {error}", 1
        os.write(writes, said.encode())
        os._exit(code)
    os.close(writes)
    with os.fdopen(reads, "rb") as pipe:
        said = pipe.read().decode()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), said
