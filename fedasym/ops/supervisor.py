"""Processes kept alive: started in order, started again when they die, ended in the opposite order."""

import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedasym.ops import processes

_LOOK_SECONDS = 0.2
_ORPHAN_SECONDS = 2.0  # from SIGTERM to SIGKILL for what a dead process left behind


class ServiceError(RuntimeError):
    """A process does not become ready, or dies again and again; the text holds the end of its log."""


@dataclass(frozen=True)
class Service:
    """A process to keep alive.

    Attributes:
        name: for messages.
        command: its words.
        environment: of the process, whole.
        folder: its working directory.
        log_file: to which its output is appended.
        ready: answers whether it can be used.
    """

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    folder: Path
    log_file: Path
    ready: Callable[[], bool]


@dataclass(frozen=True)
class Patience:
    """How long a supervisor waits, in seconds, and how often it tries.

    Attributes:
        ready: until a process must be ready at the start.
        quick: a life shorter than this is a quick death.
        deaths: quick deaths in a row after which it gives up; 0: never.
        first_pause: before a process is started again; doubled with each quick death.
        longest_pause: to which it grows.
    """

    ready: float = 120.0
    quick: float = 20.0
    deaths: int = 6
    first_pause: float = 1.0
    longest_pause: float = 30.0


@dataclass
class _Child:
    service: Service
    process: subprocess.Popen[bytes] | None = None
    since: float = 0.0
    deaths: int = 0  # quick ones, in a row
    again_at: float = 0.0
    waited_for: bool = False  # its readiness is still to be told


class Supervisor:
    """Keeps some processes alive until it is told to end.

    Args:
        services: in the order of their start.
        say: called with one line of text for everything that happens.
        stop: set from elsewhere when all shall end.
        patience: how long and how often.
    """

    def __init__(
        self,
        services: Sequence[Service],
        say: Callable[[str], None],
        stop: threading.Event,
        patience: Patience | None = None,
    ) -> None:
        self._children = [_Child(service) for service in services]
        self._say, self._stop, self._patience = say, stop, patience or Patience()

    def start(self) -> None:
        """Start one process after the other, each when the one before is ready; return early when told to end.

        Raises:
            ServiceError: one is not ready in time or dies.
        """
        for child in self._children:
            if self._stop.is_set():
                return
            self._spawn(child)
            self._await(child)

    def watch(self, meanwhile: Callable[[], None]) -> None:
        """Start again what dies until told to end.

        Args:
            meanwhile: called at every look, some times a second.

        Raises:
            ServiceError: a process died quickly too often.
        """
        while not self._stop.wait(_LOOK_SECONDS):
            for child in self._children:
                self._look(child)
            meanwhile()

    def end(self) -> None:
        """End all processes and all that they started, the last started first."""
        for child in reversed(self._children):
            if child.process is not None:
                processes.end(child.process)
                self._say(f"{child.service.name} ended")
                child.process = None

    def _spawn(self, child: _Child) -> None:
        service = child.service
        service.log_file.parent.mkdir(parents=True, exist_ok=True)
        child.process = processes.start(service.command, service.environment, service.folder, service.log_file)
        child.since = time.monotonic()
        child.waited_for = True

    def _await(self, child: _Child) -> None:
        service, deadline = child.service, child.since + self._patience.ready
        while not self._stop.is_set():
            assert child.process is not None
            if child.process.poll() is not None:
                raise ServiceError(_words(service, f"exited with {child.process.returncode} at its start"))
            if service.ready():
                child.waited_for = False
                self._say(f"{service.name} ready after {time.monotonic() - child.since:.1f} s")
                return
            if time.monotonic() > deadline:
                raise ServiceError(_words(service, f"was not ready within {self._patience.ready:g} s"))
            self._stop.wait(_LOOK_SECONDS)

    def _look(self, child: _Child) -> None:
        if child.process is None:
            if time.monotonic() >= child.again_at:
                self._spawn(child)
            return
        code = child.process.poll()
        if code is not None:
            self._bury(child, code)
        elif child.waited_for and child.service.ready():
            child.waited_for = False
            self._say(f"{child.service.name} ready{' again' if child.deaths else ''}")

    def _bury(self, child: _Child, code: int) -> None:
        assert child.process is not None
        processes.end_group(child.process.pid, _ORPHAN_SECONDS)  # what it left behind holds its port
        lived, patience = time.monotonic() - child.since, self._patience
        child.process, child.deaths = None, child.deaths + 1 if lived < patience.quick else 1
        if child.deaths >= patience.deaths > 0:
            often = f"died {child.deaths} times in a row, each within {patience.quick:g} s, last with {code}"
            raise ServiceError(_words(child.service, often))
        pause = min(patience.longest_pause, patience.first_pause * 2.0 ** min(child.deaths - 1, 30))
        child.again_at = time.monotonic() + pause
        self._say(f"{child.service.name} died with {code} after {lived:.0f} s; starting it again in {pause:g} s")


def _words(service: Service, what: str) -> str:
    end = processes.tail(service.log_file, 15)
    return f"{service.name} {what}; mend what its log says and start again. The end of {service.log_file}:\n{end}"
