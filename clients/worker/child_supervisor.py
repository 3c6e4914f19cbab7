"""Keeps one child alive that does the work: asked one message at a time, killed when it must be, started again.

A child that hangs, dies or grows too large costs its message, never the next one: that waits for the new child.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from clients.errors import note
from clients.node import NodeContext
from clients.worker import pipe
from clients.worker.child import READY
from fedasym.ops.processes import QUIET

PROJECT = Path(__file__).resolve().parents[2]
_LOOK_SECONDS = 0.1
_LONGEST_PAUSE = 60.0  # seconds between two starts of a child that does not come up
_KILLED = -signal.SIGKILL


class Failed(Exception):
    """The message has no answer; the text says why and what to do, and holds nothing of the data."""


class Abandoned(Exception):
    """Whoever asked is gone."""


@dataclass(frozen=True)
class Limits:
    """What a site allows its worker.

    Attributes:
        seconds: for one message.
        gigabytes: of resident memory (10^9 bytes); 0: as much as there is.
        threads: most threads of a training; 0: as many as the run says.
    """

    seconds: float = 3600.0
    gigabytes: float = 0.0
    threads: int = 0


class ChildSupervisor:
    """A child and its life; a context manager.

    Args:
        place: where the child works.
        limits: what it may take.
        output: file for what the child prints, which stays at the site.
        tell: called with whether the child can take a message, at each change.
    """

    def __init__(self, place: NodeContext, limits: Limits, output: Path, tell: Callable[[bool], None]) -> None:
        self._place, self._limits, self._output, self._tell = place, limits, output, tell
        self._change = threading.Condition()
        self._turns: deque[object] = deque()
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: socket.socket | None = None  # of a child that is ready
        self._closing = False
        self.busy = False  # whether the child has a message
        self._thread = threading.Thread(target=self._keep, name="keeper")

    def __enter__(self) -> "ChildSupervisor":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._change:
            self._closing = True
            self._change.notify_all()
        self._kill()
        self._thread.join()

    @property
    def pid(self) -> int:
        """The process id of the child that can take a message; 0 if there is none."""
        with self._change:
            return self._process.pid if self._process and self._channel else 0

    def await_ready(self, seconds: float) -> bool:
        """Wait until the child can take a message; return whether it can."""
        with self._change:
            return self._change.wait_for(lambda: self._channel is not None, seconds)

    def ask(self, frame: bytes, seconds: float, wanted: Callable[[], bool]) -> bytes:
        """Hand a frame to the child, when it is this message's turn, and return its answer.

        Args:
            frame: the request.
            seconds: after which nobody waits for the answer any more; the site's own limit counts from the turn.
            wanted: whether somebody still waits for the answer.

        Raises:
            Failed: no answer, and why.
            Abandoned: nobody waits any more.
        """
        end = time.monotonic() + seconds
        with self._turn(end, wanted):
            channel, process = self._take_child(end, wanted)
            allowed = min(self._limits.seconds, end - time.monotonic())
            try:
                look = self._look(process, time.monotonic() + allowed, allowed, wanted)
                look()
                pipe.write(channel, frame, look)
                answer = pipe.read(channel, look)
                if held := self._too_large(process):
                    note(f"the worker holds {held} after a message and is started again; is it a leak?", self._place)
                    self._retire()
                return answer
            except pipe.Closed:
                code = self._retire()
                died = "was killed" if code == _KILLED else f"ended with {code}"
                raise Failed(self._named(f"{died} while it worked; is there memory enough for it?")) from None
            except (Failed, Abandoned):
                self._retire()
                raise
            finally:
                with self._change:
                    self.busy = False
                    self._change.notify_all()

    def _look(
        self, process: subprocess.Popen[bytes], end: float, allowed: float, wanted: Callable[[], bool]
    ) -> Callable[[], None]:
        """Return what looks, while the child works, whether it may go on."""

        def look() -> None:
            if not wanted():
                note("whoever asked is gone; the worker's message is abandoned", self._place)
                raise Abandoned
            if time.monotonic() > end:
                raise Failed(
                    self._named(
                        f"did not finish within {allowed:.3g} s and was restarted; raise --deadline at the site or "
                        "round-timeout of the run, or give a round less to do"
                    )
                )
            if held := self._too_large(process):
                raise Failed(self._named(f"holds {held} and was restarted; raise --max-memory, or use a smaller model"))

        return look

    @contextmanager
    def _turn(self, end: float, wanted: Callable[[], bool]) -> Iterator[None]:
        """Wait until all who came before are served."""
        ticket = object()
        with self._change:
            self._turns.append(ticket)
        try:
            self._wait(lambda: self._turns[0] is ticket, end, wanted, "is still busy with an earlier message")
            yield
        finally:
            with self._change:
                self._turns.remove(ticket)
                self._change.notify_all()

    def _take_child(self, end: float, wanted: Callable[[], bool]) -> tuple[socket.socket, "subprocess.Popen[bytes]"]:
        self._wait(lambda: self._channel is not None, end, wanted, "is not up; the log of the site says why")
        with self._change:
            if self._channel is None or self._process is None:
                raise Failed(self._named("ended before it was asked; ask again"))
            self.busy = True
            return self._channel, self._process

    def _wait(self, ready: Callable[[], bool], end: float, wanted: Callable[[], bool], why: str) -> None:
        with self._change:
            while True:
                if not wanted():  # looked at first: who is gone already costs the child nothing
                    raise Abandoned
                if self._change.wait_for(ready, _LOOK_SECONDS):
                    return
                if self._closing:
                    raise Failed(self._named("is being shut down"))
                if time.monotonic() > end:
                    raise Failed(self._named(why))

    def _named(self, what: str) -> str:
        text = f"the worker of site {self._place.site} {what}"
        note(text, self._place)
        return text

    def _too_large(self, process: subprocess.Popen[bytes]) -> str:
        """Say what the child holds, if that is more than it may; else ""."""
        most = self._limits.gigabytes
        held = resident_gigabytes(process.pid) if most else 0.0
        return f"{held:.2f} GB of memory, more than {most:g} GB," if held > most else ""

    def _retire(self) -> int:
        """Kill the child and return how it ended; this supervisor's thread starts the next one."""
        with self._change:
            process, self._channel = self._process, None
        self._kill()
        return process.wait() if process else 0

    def _kill(self) -> None:
        with self._change:
            process = self._process
        if process and process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # it may be stopped, and holds nothing that is not written

    def _keep(self) -> None:
        """Start a child, see it end, start the next, with a growing pause when none comes up."""
        pause = 0.0
        while not self._closing:
            ours, theirs = socket.socketpair()
            with ours:
                with theirs, self._change:
                    if self._closing:
                        return
                    self._process = process = self._start(theirs)
                if came_up := self._greets(ours):
                    with self._change:
                        self._channel = ours
                        self._change.notify_all()
                    self._tell(True)
                code = process.wait()
                with self._change:
                    self._channel = None
                    self._change.wait_for(lambda: not self.busy)  # its socket is still being read, to the end
                self._tell(False)
            if process.stdin:
                process.stdin.close()
            if self._closing:
                return
            pause = 0.0 if came_up else min(2 * pause + 1.0, _LONGEST_PAUSE)
            note(f"the worker's process {process.pid} ended with {code}; the next starts in {pause:g} s", self._place)
            with self._change:
                self._change.wait_for(lambda: self._closing, pause)

    def _start(self, channel: socket.socket) -> "subprocess.Popen[bytes]":
        command = [sys.executable, "-m", "clients.worker.child", str(channel.fileno()), json.dumps(asdict(self._place))]
        with self._output.open("ab") as output:
            return subprocess.Popen(
                command,
                cwd=PROJECT,
                env=_environment(self._limits),
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                pass_fds=[channel.fileno()],
                start_new_session=True,
            )

    def _greets(self, channel: socket.socket) -> bool:
        """Wait for the child's word that it is ready."""
        try:
            return pipe.read(channel) == READY
        except pipe.Closed:
            self._kill()  # what closes its socket without an end is of no use
            return False


def resident_gigabytes(pid: int) -> float:
    """Return the resident memory of a process in 10^9 bytes; 0 if it is gone."""
    try:
        return float(psutil.Process(pid).memory_info().rss) / 1e9
    except psutil.NoSuchProcess:
        return 0.0


def _environment(limits: Limits) -> Mapping[str, str]:
    threads = str(limits.threads)
    bound = {"OMP_NUM_THREADS": threads, "RAYON_NUM_THREADS": threads} if limits.threads else {}
    return {**os.environ, **QUIET, **bound}
