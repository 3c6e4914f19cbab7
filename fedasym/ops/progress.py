"""How far a run is, said while it goes on: small files in its folder, and the words that are made of them.

Engines run the server and the clients in other processes than the display, so whoever works writes and whoever shows
reads. The files are for the eye alone: they lie in a folder of their own that is removed when the run ends, and one
that cannot be written or read changes nothing.
"""

import json
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

FOLDER = "progress"  # in the run folder
EVERY_SECONDS = 15.0  # between two plain lines; with a slow look between them still under 20 s
LOOK_SECONDS = 0.5  # between two looks, and between two writings
_FILE = "run.json"
_SOON = 3.0  # seconds of a phase before which its pace says nothing

Tell = Callable[[int, int], None]  # called with what is done so far and what there is in all


@dataclass(frozen=True)
class Progress:
    """What a run is doing.

    Attributes:
        doing: in words.
        began: since when, in seconds of `time.time`, in which the processes of a machine agree.
        counted: what ``done`` and ``total`` count, a plural; "" where nothing is counted.
        done, total: so far, and in all.
        round, rounds: the round it belongs to, from 1, and how many the run has; 0 before the first.
        steps_each: local steps of every client of the round; 0 where that differs (local-epochs).
        last: seconds that the run's last round took; 0 if there is none.
        steps, steps_total: local steps of all clients of the round; a total of 0 is not known.
        under_way: what the steps of clients that have not replied come to, in clients.
    """

    doing: str
    began: float
    counted: str = ""
    done: int = 0
    total: int = 0
    round: int = 0
    rounds: int = 0
    steps_each: int = 0
    last: float = 0.0
    steps: int = 0
    steps_total: int = 0
    under_way: float = 0.0

    @property
    def fraction(self) -> float:
        """How much of what is counted is done, from 0 to 1."""
        return min((self.done + self.under_way) / self.total, 1.0) if self.total else 0.0

    @property
    def run_fraction(self) -> float:
        """How much of the run's rounds is done, from 0 to 1."""
        share = self.fraction if self.counted == "clients" else 0.0
        return (self.round - 1 + share) / self.rounds if self.rounds else 0.0


def to_nobody(done: int, total: int) -> None:
    """Tell nobody."""


def note(folder: Path, progress: Progress) -> None:
    """Write down what a run is doing; where that is not possible, leave it."""
    _write(folder / FOLDER / _FILE, asdict(progress))


def begin(folder: Path, doing: str) -> None:
    """Write down what is done for a run before its server lives, making the folder if need be."""
    with suppress(OSError):  # the run itself says what is wrong with its folder
        (folder / FOLDER).mkdir(parents=True, exist_ok=True)
    note(folder, Progress(doing, time.time()))


def look(folder: Path) -> Progress | None:
    """Return what the run in a folder is doing, with its clients' steps; None where nothing is written down."""
    try:
        progress = Progress(**json.loads((folder / FOLDER / _FILE).read_text()))
        return _with_steps(progress, folder) if progress.counted == "clients" else progress
    except (OSError, ValueError, TypeError):  # gone meanwhile, or of another version: nothing hangs on it
        return None


def client_tell(folder: Path, number: int, client: int, clock: Callable[[], float] = time.monotonic) -> Tell:
    """Return what writes down how many of its local steps a client has done.

    It writes twice a second at most, and nothing for a client that is done within that time, so steps of a millisecond
    cost a look at the clock.

    Args:
        folder: of the run; where it holds no folder of this kind, as on another machine, nothing is written.
        number: of the round.
        client: its number.
        clock: in seconds.
    """
    path, due, wrote = folder / FOLDER / f"{_prefix(number)}{client}.json", clock() + LOOK_SECONDS, False

    def tell(done: int, total: int) -> None:
        nonlocal due, wrote
        now = clock()
        if now >= due or (wrote and done == total):
            due, wrote = now + LOOK_SECONDS, True
            _write(path, [done, total])

    return tell


def clear_rounds_before(folder: Path, number: int) -> None:
    """Remove what clients wrote down in other rounds than this one."""
    for path in (folder / FOLDER).glob(f"{_prefix('*')}*.json"):
        if not path.name.startswith(_prefix(number)):
            with suppress(OSError):  # for the eye alone
                path.unlink()


def words(progress: Progress, now: float) -> str:
    """Say what a run is doing and, where the pace is known, about how long it still takes.

    Args:
        progress: of the run.
        now: in seconds of `time.time`.

    >>> words(Progress("training", 0.0, "clients", 4, 10, round=2, rounds=5, steps=37, steps_total=100), 4.0)
    'round 2/5: training, 4 of 10 clients, 37 of 100 steps; about 6 s left, 36 s in all'
    """
    text = f"round {progress.round}/{progress.rounds}: " if progress.round else ""
    text += progress.doing
    if progress.counted:
        text += f", {progress.done:,} of {progress.total:,} {progress.counted}"
    if progress.steps_total:
        text += f", {progress.steps:,} of {progress.steps_total:,} steps"
    elif progress.steps:
        text += f", {progress.steps:,} steps"
    here, whole = seconds_left(progress, now)
    if here is not None and here >= 1.0:
        text += f"; about {duration(here)} left"
        if whole is not None and progress.round < progress.rounds:
            text += f", {duration(whole)} in all"
    return text


def seconds_left(progress: Progress, now: float) -> tuple[float | None, float | None]:
    """Estimate how long what is done now, and the run, still take, in seconds; None where nothing tells.

    The pace is that of this phase, and that of the last round where this one has done nothing yet. The rounds to come
    are taken to last as long as the last one, or as this one.
    """
    elapsed, fraction, training = max(now - progress.began, 0.0), progress.fraction, progress.counted == "clients"
    here = None
    if fraction and elapsed >= _SOON:
        here = elapsed * (1 - fraction) / fraction
    elif training and progress.last > elapsed:
        here = progress.last - elapsed
    a_round = progress.last or (elapsed + here if training and here is not None else 0.0)
    if here is None or not progress.round or not a_round:
        return here, None
    return here, here + (progress.rounds - progress.round) * a_round


def duration(seconds: float) -> str:
    """Say a length of time in one unit: ``40 s``, ``12 min`` or ``2.5 h``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def clocked(seconds: float, text: str) -> str:
    """Put the time that has passed before a line, which tells such a line from a result.

    >>> clocked(83.0, "handshake")
    '   1:23  handshake'
    """
    minutes, rest = divmod(int(seconds), 60)
    time_ = f"{minutes // 60}:{minutes % 60:02}:{rest:02}" if minutes >= 60 else f"{minutes}:{rest:02}"
    return f"{time_:>7}  {text}"


class Pace:
    """Tells when a plain line is due, so that nobody waits long without one.

    Args:
        now: seconds of any clock.
        every: seconds of silence after which one is due.
    """

    def __init__(self, now: float, every: float = EVERY_SECONDS) -> None:
        self._start = self._last = now
        self._every = every

    def line(self, now: float, text: Callable[[], str]) -> str | None:
        """Return a line with the time since the start, if one is due; that counts as said."""
        if now - self._last < self._every:
            return None
        self._last = now
        return clocked(now - self._start, text())

    def said(self, now: float) -> None:
        """Note that something else was printed."""
        self._last = now


def _prefix(number: int | str) -> str:
    return f"round-{number}-client-"


def _with_steps(progress: Progress, folder: Path) -> Progress:
    """Add what the clients of the round have written down."""
    found: list[tuple[int, int]] = []
    for path in (folder / FOLDER).glob(f"{_prefix(progress.round)}*.json"):
        done, total = json.loads(path.read_text())
        found.append((int(done), int(total)))
    whole = sum(done == total for done, total in found)
    # Who has replied has written that all steps are done, if anything, and is counted once.
    under_way = max(whole - progress.done, 0) + sum(done / total for done, total in found if 0 < done < total)
    if progress.steps_each:
        total = progress.steps_each * progress.total
        steps = min(round(progress.steps_each * (progress.done + under_way)), total)
    else:
        total = sum(total for _, total in found) if len(found) >= progress.total else 0
        steps = sum(done for done, _ in found)
    return replace(progress, under_way=under_way, steps=steps, steps_total=total)


def _write(path: Path, value: Any) -> None:
    """Write a small file at once or not at all; it need not outlive a crash, so nothing is flushed to the disk."""
    temporary = path.with_name(path.name + ".new")
    with suppress(OSError):  # a full disk or a folder that is not there: the run itself must go on
        temporary.write_text(json.dumps(value))
        temporary.replace(path)
