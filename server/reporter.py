"""What the server says while it works: where it is, to the run folder's readers and, now and then, to its log."""

import logging
import shutil
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from fedasym.ops.progress import (
    EVERY_SECONDS,
    FOLDER,
    LOOK_SECONDS,
    Pace,
    Progress,
    clear_rounds_before,
    look,
    note,
    words,
)

log = logging.getLogger("fedasym")


class Reporter:
    """Keeps a run folder's word of what the run is doing up to date, and says a line after some time of silence.

    The run's own thread only changes a value; a thread of this object's own does all writing, twice a second at most,
    so that no disk and no display can disturb the run. It ends with the ``with`` block, and what it wrote is removed.

    Args:
        folder: of the run, held alone.
        rounds: how many the run has.
        say: takes a line of text.
        every: seconds of silence after which a line is said.
    """

    def __init__(
        self, folder: Path, rounds: int, say: Callable[[str], object] = log.info, every: float = EVERY_SECONDS
    ) -> None:
        self._folder, self._say = folder, say
        self._progress = Progress("loading model and data", time.time(), rounds=rounds)
        self._written: Progress | None = None
        self._pace = Pace(time.monotonic(), every)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="progress", daemon=True)

    def __enter__(self) -> "Reporter":
        self._remove()  # what a killed run has left
        with suppress(OSError):  # then nobody sees how far the run is; it goes on
            (self._folder / FOLDER).mkdir()
        self._keep()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._remove()

    def begin(self, doing: str, counted: str = "", total: int = 0, **more: Any) -> None:
        """Say what is done from now on.

        Args:
            doing: in words.
            counted: what is counted of it, a plural.
            total: how many there are.
            **more: other fields of `Progress` that change: ``round``, ``steps_each``.
        """
        self._progress = replace(
            self._progress, doing=doing, began=time.time(), counted=counted, done=0, total=total, **more
        )

    def tell(self, done: int, total: int) -> None:
        """Say how much of it is done."""
        self._progress = replace(self._progress, done=done, total=total)

    def end_round(self, seconds: float) -> None:
        """Note how long a round took; its own line has just been said."""
        self._progress = replace(self._progress, last=seconds)
        self._pace.said(time.monotonic())

    def _watch(self) -> None:
        while not self._stop.wait(LOOK_SECONDS):
            self._keep()
            if line := self._pace.line(time.monotonic(), self._words):
                self._say(line)

    def _keep(self) -> None:
        progress = self._progress
        if progress == self._written:
            return
        if self._written is None or progress.round != self._written.round:
            clear_rounds_before(self._folder, progress.round)
        note(self._folder, progress)
        self._written = progress

    def _words(self) -> str:
        return words(look(self._folder) or self._progress, time.time())

    def _remove(self) -> None:
        shutil.rmtree(self._folder / FOLDER, ignore_errors=True)


def show_log() -> None:
    """Print our lines to standard output unless the program that imports us has set up logging itself."""
    if not log.handlers:
        handler = logging.StreamHandler(sys.stdout)
        handler.setFormatter(logging.Formatter("%(message)s"))
        log.addHandler(handler)
        log.setLevel(logging.INFO)
        log.propagate = False
