"""What is seen while a run goes on: a live table on a terminal, plain lines elsewhere.

It reads the run folder's rounds.jsonl, which every engine writes alike, and what the server and the clients write down
of how far they are.
"""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from fedasym.ops.progress import EVERY_SECONDS, Pace, Progress, clocked, look, words
from fedasym.reports.table import Sheet
from fedasym.runs.record import NODES, read_json, read_rounds

REFRESH_SECONDS = 0.5


class Follower:
    """Follows a run folder from a thread until it is closed; what goes wrong with the display is said then."""

    def __init__(self, title: str, folder: Path, rounds: int, console: Console, every: float = EVERY_SECONDS) -> None:
        self._title, self._folder, self._rounds, self._console = title, folder, rounds, console
        self._stop = threading.Event()
        self._started, self._began, self._every = time.monotonic(), time.time(), every
        self._thread = threading.Thread(target=self._attempt, args=(self._follow,), daemon=True)
        self._seen: list[dict[str, Any]] = []
        self._error: Exception | None = None

    def __enter__(self) -> "Follower":
        self._attempt(self._look_back)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        if self._error is not None:
            text = f"the display ended early ({type(self._error).__name__}: {self._error}); the run did not"
            self._console.print(
                f"{text}: see {self._folder / 'rounds.jsonl'}", markup=False, highlight=False, soft_wrap=True
            )

    def _attempt(self, act: Callable[[], None]) -> None:
        """Do a part of the display; the first error is kept for the end, since the run must go on."""
        try:
            if self._error is None:
                act()
        except Exception as error:
            self._error = error

    def _look_back(self) -> None:
        """Note what an earlier start has recorded, before the run can add to it."""
        self._seen = read_rounds(self._folder)

    def _follow(self) -> None:
        if not self._console.is_terminal:
            state = f"continuing; rounds up to {self._seen[-1]['round']} are recorded" if self._seen else "starting"
            self._console.print(f"{self._title}: {state}", markup=False)
            pace = Pace(self._started, self._every)
            computing = ""
            for rows in self._news():
                if not computing and (computing := self._computing()):
                    self._console.print(computing, markup=False, soft_wrap=True)
                for row in self._unseen(rows):
                    self._console.print(_line(row, self._metric(), self._rounds), markup=False, soft_wrap=True)
                    pace.said(time.monotonic())
                if line := pace.line(time.monotonic(), lambda: self._words(self._look(), self._seen)):
                    self._console.print(line, markup=False, soft_wrap=True)
            return
        with Live(self._table([]), console=self._console, refresh_per_second=4) as live:
            for rows in self._news():
                progress = None if self._stop.is_set() else self._look()
                live.update(Group(self._table(rows), self._foot(progress, rows)))
            live.update(self._table(rows))

    def _unseen(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return the rows from the first that is new or differs: a round may be cut off the record and done again."""
        same = 0
        while self._seen[same : same + 1] == rows[same : same + 1] != []:
            same += 1
        self._seen = rows
        return rows[same:]

    def _news(self) -> Iterator[list[dict[str, Any]]]:
        while not self._stop.wait(REFRESH_SECONDS):
            yield read_rounds(self._folder)
        yield read_rounds(self._folder)

    def _metric(self) -> str:
        return str(read_json(self._folder / "config.json")["metric"])

    def _look(self) -> Progress | None:
        """Return what the run is doing; what an earlier start left behind does not count."""
        progress = look(self._folder)
        return progress if progress and progress.began >= self._began else None

    def _words(self, progress: Progress | None, rows: list[dict[str, Any]]) -> str:
        if progress:
            return words(progress, time.time())
        return "finishing" if rows and rows[-1]["round"] >= self._rounds else "starting"

    def _foot(self, progress: Progress | None, rows: list[dict[str, Any]]) -> RenderableType:
        """Return a bar of what is being done, if it is counted, and the words and the time passed."""
        grid = Table.grid(padding=(0, 1))
        text = clocked(time.monotonic() - self._started, self._words(progress, rows))
        bar = ProgressBar(1.0, progress.fraction, width=24) if progress and progress.total else ""
        grid.add_row(bar, Text(text.strip()))
        return grid

    def _computing(self) -> str:
        """Say what the nodes compute with, once they have agreed and said so; "" before."""
        path = self._folder / NODES
        if not path.exists() or path.stat().st_mtime < self._began:
            return ""
        groups = [(len(group["nodes"]), note) for group in read_json(path) for note in group["notes"]]
        return "\n".join(f"{count} node{'s' if count > 1 else ''} on {note}" for count, note in groups)

    def _table(self, rows: list[dict[str, Any]]) -> Table:
        table = Table(title=Text(self._title), title_justify="left")
        metric = self._metric() if rows else "metric"
        for name in ("round", metric, "train loss", "valid clients", "up, bytes", "down, bytes", "seconds"):
            table.add_column(name, justify="right")
        for row in rows[-12:]:
            table.add_row(*_cells(row, metric))
        said = [f"round {row['round']}: {text}" for row in rows for text in _remarks(row)]
        lines = [Text(self._computing()), Text("\n".join(said[-6:]), style="red")]
        table.caption = Text("\n", justify="left").join(line for line in lines if line.plain)
        return table


def show_sheets(sheets: Sequence[Sheet], console: Console) -> None:
    """Print tables; what is bold in a report is bold here."""
    for sheet in sheets:
        title, note = Text(sheet.title), Text(sheet.note)
        table = Table(title=title, caption=note, title_justify="left", caption_justify="left")
        for name in sheet.columns:
            table.add_column(Text(name), overflow="fold")
        for row in sheet.rows:
            texts = [Text(" ".join(filter(None, (e.text, e.sign, e.small))), "bold" if e.strong else "") for e in row]
            table.add_row(*texts)
        console.print(table)


def _cells(row: dict[str, Any], metric: str) -> list[str]:
    return [
        str(row["round"]),
        "–" if row["metrics"][metric] is None else f"{row['metrics'][metric]:.4f}",
        f"{row['train_loss']:.4f}",
        f"{row['clients_valid']}/{row['clients_asked']}",
        f"{row['payload_up']:,}",
        f"{row['payload_down']:,}",
        f"{row['seconds']:.1f}",
    ]


def _line(row: dict[str, Any], metric: str, rounds: int) -> str:
    number, value, loss, clients, up, down, seconds = _cells(row, metric)
    text = f"round {number}/{rounds}  {metric} {value}  loss {loss}  clients {clients}"
    text += f"  up {up} B  down {down} B  {seconds} s"
    return "\n  ".join([text, *_remarks(row)])


def _remarks(row: dict[str, Any]) -> list[str]:
    """Say which replies of a round were rejected, and what else was left out."""
    rejected = [f"client {client} rejected: {reason}" for client, reason in row["rejections"].items()]
    return [*rejected, *row["warnings"]]


@contextmanager
def quiet_log() -> Iterator[None]:
    """Keep the server's own round lines off the screen while a `Follower` shows the same rows."""
    import logging

    log = logging.getLogger("fedasym")
    handler = logging.NullHandler()
    log.addHandler(handler)
    log.propagate = False
    try:
        yield
    finally:
        log.removeHandler(handler)
