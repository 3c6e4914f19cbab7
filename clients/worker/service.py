"""The warm worker's service: takes messages on a Unix socket, one after another, and has its child work on them.

A child that hangs, dies or grows too large costs its message, never the next one: that waits for the new child. Who
asks (`clients.worker.call`) waits in the socket's own queue. Nothing here imports torch or looks into a message.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent import futures
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path

import psutil

from clients.errors import note, refused
from clients.node import NodeContext
from clients.worker.call import MOST_BYTES, TURN, bounded
from clients.worker.child import READY
from clients.worker.frames import pack
from clients.worker.private_folder import socket_in
from fedasym.ops.processes import QUIET

PROJECT = Path(__file__).resolve().parents[2]
_LOOK_SECONDS = 0.1
_LONGEST_PAUSE = 60.0  # seconds between two starts of a child that does not come up


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


@contextmanager
def worker(folder: Path, place: NodeContext, limits: Limits | None = None) -> Iterator["Worker"]:
    """Serve a site's messages on the socket in a private folder; end the service and the child at the end.

    Args:
        folder: of mode 0700, in which nobody else works; holds the socket, and ``worker.log``, what the child prints.
        place: a site with data of its own.
        limits: what it allows.

    Raises:
        PermissionError: the folder is not ours alone.
        ValueError: its path is too long for a socket, or the place has no data of its own.
        OSError: the socket cannot be bound.
    """
    if not place.private:
        raise ValueError("a worker answers for a site with data of its own; give its place site and data")
    path = socket_in(folder)
    with socket.socket(socket.AF_UNIX) as listener:
        try:
            path.unlink(missing_ok=True)  # of a worker that was killed
            listener.bind(str(path))
        except OSError as error:
            raise OSError(f"the socket {path} cannot be bound; remove it, or choose another --state") from error
        listener.listen()
        found = Worker(listener, place, limits or Limits(), folder / "worker.log")
        thread = threading.Thread(target=found.run, name="worker")
        thread.start()
        try:
            yield found
        finally:
            found.closing.set()
            thread.join()


class Worker:
    """A child and its life, all of it on the thread that runs `run`.

    Args:
        listener: where messages come in.
        place: where the child works.
        limits: what it may take.
        output: file for what the child prints, which stays at the site.

    Attributes:
        pid: the child's process id.
        ready: set while the child can take a message.
        closing: to be set when all shall end.
    """

    def __init__(self, listener: socket.socket, place: NodeContext, limits: Limits, output: Path) -> None:
        self._listener, self._place, self._limits, self._output = listener, place, limits, output
        self.pid, self.ready, self.closing = 0, threading.Event(), threading.Event()

    def run(self) -> None:
        """Start a child, serve until it ends, start the next, with a growing pause when none comes up."""
        pause = 0.0
        while not self.closing.wait(pause):
            came_up = False
            try:
                came_up, ended = self._live()
            except (OSError, RuntimeError, MemoryError) as error:  # no process, thread or memory, a full disk
                ended = f"the worker's process cannot be run ({type(error).__name__}: {error})"
            if not self.closing.is_set():
                pause = 0.0 if came_up else min(2 * pause + 1.0, _LONGEST_PAUSE)
                note(f"{ended}; the next starts in {pause:g} s", self._place)

    def _live(self) -> tuple[bool, str]:
        """Start a child and serve until it ends; return whether it ever came up, and how it ended."""
        ours, theirs = Pipe()
        with ours, theirs, self._start(theirs) as process:
            theirs.close()
            self.pid = process.pid
            try:
                came_up = self._serve(ours, process)
            finally:
                code = self._end(process)
        return came_up, f"the worker's process {self.pid} ended with {code}"

    def _start(self, pipe: Connection) -> "subprocess.Popen[bytes]":
        place, threads = json.dumps(asdict(self._place)), str(self._limits.threads)
        with self._output.open("ab") as output:
            return subprocess.Popen(
                [sys.executable, "-m", "clients.worker.child", str(pipe.fileno()), place, threads],
                cwd=PROJECT,
                env=_environment(self._limits),
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                pass_fds=[pipe.fileno()],
                start_new_session=True,
            )

    def _serve(self, pipe: Connection, process: "subprocess.Popen[bytes]") -> bool:
        """Hand messages to a child until it ends or all shall end; return whether it ever came up."""
        while not pipe.poll(_LOOK_SECONDS):
            if self.closing.is_set():
                return False
        try:
            if pipe.recv_bytes(len(READY)) != READY:
                return False
        except (EOFError, OSError):
            return False
        self.ready.set()
        while not self.closing.is_set():
            found = wait([pipe, self._listener], _LOOK_SECONDS)
            if pipe in found:  # its end: nobody has asked it anything
                break
            if found:
                try:
                    self._take_message(pipe, process)
                except (EOFError, OSError, MemoryError) as error:
                    why = "whoever asked is gone, hangs, or is of another version of fedasym"
                    note(f"a message is dropped ({type(error).__name__}: {error}); {why}", self._place)
        return True

    def _take_message(self, pipe: Connection, process: "subprocess.Popen[bytes]") -> None:
        with Connection(bounded(self._listener.accept()[0]).detach()) as caller:
            caller.send_bytes(TURN)
            frame = caller.recv_bytes(MOST_BYTES)
            caller.send_bytes(self._ask(frame, caller, pipe, process))

    def _ask(self, frame: bytes, caller: Connection, pipe: Connection, process: "subprocess.Popen[bytes]") -> bytes:
        """Return the child's answer to a frame, or a refusal in place of a child that had to be killed."""
        end = time.monotonic() + self._limits.seconds
        with futures.ThreadPoolExecutor(1) as pool:  # a child that is stopped would hold this thread
            exchange = pool.submit(_exchange, pipe, frame)
            while True:
                if why := self._why_end(caller, process, end):
                    self._end(process)  # which ends the exchange
                    return self._refusal(why)
                if futures.wait([exchange], _LOOK_SECONDS).done:
                    break
        try:
            answer = exchange.result()
        except (EOFError, OSError, MemoryError):
            code = self._end(process)
            died = "was killed" if code == -signal.SIGKILL else f"ended with {code}"
            return self._refusal(f"{died} while it worked; is there memory enough for it?")
        if held := self._too_large(process):
            note(f"the worker holds {held} after a message and is started again; is it a leak?", self._place)
            self._end(process)
        return answer

    def _why_end(self, caller: Connection, process: "subprocess.Popen[bytes]", end: float) -> str:
        """Say why a child must not go on with its message; "" if it may."""
        if caller.poll():  # it has said all it had to say: this is its end
            return "was abandoned: whoever asked is gone"
        if self.closing.is_set():
            return "is being shut down"
        if time.monotonic() > end:
            return (
                f"did not finish within {self._limits.seconds:.3g} s and was restarted; raise --deadline at the site, "
                "or give a round less to do"
            )
        held = self._too_large(process)
        return f"holds {held} and was restarted; raise --max-memory, or use a smaller model" if held else ""

    def _refusal(self, what: str) -> bytes:
        text = f"the worker of site {self._place.site} {what}"
        note(text, self._place)
        return pack(refused(text, passing=True))

    def _end(self, process: "subprocess.Popen[bytes]") -> int:
        """Kill a child, which may be stopped and holds nothing that is not written; return how it ended."""
        self.ready.clear()  # before whoever asked is answered
        if process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        return process.wait()

    def _too_large(self, process: "subprocess.Popen[bytes]") -> str:
        """Say what the child holds, if that is more than it may; else ""."""
        most = self._limits.gigabytes
        held = resident_gigabytes(process.pid) if most else 0.0
        return f"{held:.2f} GB of memory, more than {most:g} GB," if held > most else ""


def resident_gigabytes(pid: int) -> float:
    """Return the resident memory of a process in 10^9 bytes; 0 if it is gone."""
    try:
        return float(psutil.Process(pid).memory_info().rss) / 1e9
    except psutil.NoSuchProcess:
        return 0.0


def _exchange(pipe: Connection, frame: bytes) -> bytes:
    pipe.send_bytes(frame)
    return pipe.recv_bytes(MOST_BYTES)


def _environment(limits: Limits) -> Mapping[str, str]:
    threads = str(limits.threads)
    bound = {"OMP_NUM_THREADS": threads, "RAYON_NUM_THREADS": threads} if limits.threads else {}
    return {**os.environ, **QUIET, **bound}
