"""What Ctrl-C, SIGTERM and a closed terminal do to a command: all that it started ends, and it says how to go on.

A round is written whole or not at all, so a command may end at any moment; that is quicker and surer than an exception
that must find its way out of threads and foreign code. Only the command line takes the signals; who calls our functions
keeps their own.
"""

import os
import secrets
import shlex
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

import psutil

from fedasym.ops.processes import bearers, end_all, marked

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_POLITE_SECONDS = 3.0  # from SIGTERM to SIGKILL
_SHOW_CURSOR = "\x1b[?25h"  # a live display hides it


def typed(*more: str) -> str:
    """Return the command as it was typed, with more words."""
    return shlex.join([*sys.orig_argv, *more])


@contextmanager
def interrupts_held() -> Iterator[None]:
    """Keep Ctrl-C back for a moment; processes that are started meanwhile never hear it, and leave the end to us."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Stopping:
    """Ends this process, and what it started, at a signal.

    Attributes:
        words: said then; how to go on.
        leavings: folders that are removed then.
    """

    def __init__(self) -> None:
        self.words = ""
        self.leavings: set[Path] = set()
        self._mark = secrets.token_hex(8)
        self._stopped = False

    def install(self) -> None:
        """Take the signals, and mark what will be started; call it before anything is."""
        os.environ.update(marked(os.environ, self._mark))
        self.words = f"again: {typed()}"
        for number in _SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:  # under nohup, or in a script's background
                signal.signal(number, self._stop)

    def _stop(self, number: int, _: FrameType | None) -> None:
        if self._stopped:  # asked twice
            end_all(self._started, 0.0)
            os._exit(128 + number)
        self._stopped = True
        out, said = (os.dup(1) if sys.stdout.isatty() else None), os.dup(2)
        silent = os.open(os.devnull, os.O_WRONLY)
        for stream in (1, 2):  # a live display would draw over what is said, and threads complain of their end
            os.dup2(silent, stream)
        if out is not None:
            _write(out, f"{_SHOW_CURSOR}\n")
        _write(said, f"stopped by {signal.Signals(number).name}; {self.words}\n")
        end_all(self._started, _POLITE_SECONDS)
        for folder in self.leavings:
            shutil.rmtree(folder, ignore_errors=True)
        os._exit(128 + number)

    def _started(self) -> set[psutil.Process]:
        """Return what we have started, less what ends by itself with us and cleans up: multiprocessing's tracker."""
        found = bearers(self._mark) | set(psutil.Process().children(recursive=True))
        return {each for each in found if not _is_tracker(each)}


def _is_tracker(process: psutil.Process) -> bool:
    with suppress(psutil.Error):
        return any("multiprocessing.resource_tracker" in word for word in process.cmdline())
    return False


def _write(stream: int, text: str) -> None:
    with suppress(OSError):  # nobody reads it any more
        os.write(stream, text.encode())


STOPPING = Stopping()
