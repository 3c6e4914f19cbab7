"""What is seen where no single run is followed: while something loads or starts, and while many cells run.

On a terminal it stays in its place; elsewhere a plain line comes at once, and another after some seconds of silence.
"""

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

from rich.console import Console, RenderableType
from rich.progress import MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars
from rich.text import Text

from fedasym.ops.progress import (
    EVERY_SECONDS,
    FOLDER,
    LOOK_SECONDS,
    Pace,
    Progress,
    clocked,
    duration,
    look,
    words,
)

LONG = ("run", "demo", "federation", "compare", "tune", "sockets")  # commands that load at once
LOADING = "loading PyTorch, transformers and Flower"
_HEAVY = ("torch", "transformers", "server.lifecycle", "clients.message_handler")


def load(console: Console) -> None:
    """Import the large libraries, which takes seconds, and say so before the first of them."""
    with waiting(LOADING, console):
        for name in _HEAVY:
            import_module(name)


@contextmanager
def waiting(what: str, console: Console, every: float = EVERY_SECONDS) -> Iterator[None]:
    """Show what is being done until it is.

    Args:
        what: in words.
        console: where to show it.
        every: seconds of silence after which, off a terminal, a line is printed again.
    """
    since = time.monotonic()
    if console.is_terminal:
        with console.status(what) as status, _looking(lambda: status.update(clocked(time.monotonic() - since, what))):
            yield
        return
    console.print(what, markup=False, soft_wrap=True)
    pace = Pace(since, every)
    with _looking(lambda: _print_due(pace, lambda: what, console)):
        yield


@contextmanager
def cells_shown(
    total: int, work: Path, console: Console, every: float = EVERY_SECONDS
) -> Iterator[Callable[[int, str], None]]:
    """Show how far cells are that run in other processes.

    Args:
        total: how many there are.
        work: folder of their run folders.
        console: where to show it.
        every: seconds of silence after which, off a terminal, a line is printed.

    Yields:
        What is to be called with the number of cells that are done and a line about them.
    """
    began, since, done = time.time(), time.monotonic(), 0
    pace = Pace(since, every)

    def running() -> str:
        found = {path.parent.name: look(path.parent) for path in sorted(work.glob(f"*/{FOLDER}"))}
        at_work = {name: each for name, each in found.items() if each and each.began >= began}
        return cells_words(done, total, at_work, time.monotonic() - since, time.time())

    def advance(count: int, line: str) -> None:
        nonlocal done
        done += count
        bars.update(bar, completed=done)
        console.print(f"{done}/{total}  {line}", markup=False, soft_wrap=True)
        pace.said(time.monotonic())

    columns = (TextColumn("{task.description}"), MofNCompleteColumn(), TextColumn("cells"), TimeElapsedColumn())
    bars = _Bars(*columns, console=console, disable=not console.is_terminal)
    bar = bars.add_task("running", total=total)
    if not console.is_terminal and total:
        console.print(f"{total} cells: starting the processes that run them", markup=False, soft_wrap=True)
    act = (lambda: bars.say(running())) if console.is_terminal else (lambda: _print_due(pace, running, console))
    with bars:
        with _looking(act):
            yield advance
        bars.say("")


def cells_words(done: int, total: int, at_work: Mapping[str, Progress], elapsed: float, now: float) -> str:
    """Say how many cells are done, about how long the others take, and what each that runs is doing.

    Args:
        done: how many, since the start.
        total: how many there were to do.
        at_work: what those that run are doing, by name.
        elapsed: seconds since the start.
        now: in seconds of `time.time`.
    """
    worth = done + sum(each.run_fraction for each in at_work.values())
    left = elapsed * (total - worth) / worth if done else 0.0  # of the first ones, loading is most of the time
    lines = [f"{done} of {total} cells done" + (f"; about {duration(left)} left" if left >= 1 else "")]
    lines += [f"{name}: {words(each, now)}" for name, each in at_work.items()]
    return "\n           ".join(lines if at_work or done else [*lines, "the processes start"])


class _Bars(Bars):
    """A bar with lines of text below it."""

    _text = ""

    def say(self, text: str) -> None:
        self._text = text

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from super().get_renderables()
        yield Text(self._text)


def _print_due(pace: Pace, text: Callable[[], str], console: Console) -> None:
    if line := pace.line(time.monotonic(), text):
        console.print(line, markup=False, soft_wrap=True)


@contextmanager
def _looking(act: Callable[[], None]) -> Iterator[None]:
    """Do something twice a second, from a thread that ends with the block."""
    stop = threading.Event()

    def look_on() -> None:
        while not stop.wait(LOOK_SECONDS):
            act()

    thread = threading.Thread(target=look_on, name="waiting", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
