"""Compare methods on one split, initial W, head and budget: ``python -m simulations compare``.

Cells run side by side in processes of one core each. Each finished one is a line of the results file, so a
comparison that was interrupted goes on where it stopped: finished cells are skipped, a half-done one continues after
its last round.
"""

import os
import shutil
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any

from rich.console import Console

from fedasym.fields import Value, difference
from fedasym.methods import METHODS
from fedasym.settings import Settings
from server.round.run import FederationError
from simulations.cli.waiting import cells_shown
from simulations.stopping import interrupts_held
from simulations.study.cells import HOLDOUT, Cell, cell_settings, comparable, run_cell
from simulations.study.results import append_line, read_lines

Rates = Mapping[tuple[str, str], Mapping[str, Value]]


@dataclass(frozen=True)
class Comparison:
    """What is compared.

    Attributes:
        tasks, splits, methods: as in the settings.
        seeds: of A, split, batches and sampling.
        base: the run config that all cells share.
        rates: tuned optimizer and rates by (method, task), or (method, "") for all other tasks; a method without any
            takes its own.
    """

    tasks: tuple[str, ...]
    splits: tuple[str, ...]
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    base: Mapping[str, Any]
    rates: Rates

    def cells(self) -> list[Cell]:
        """Return all cells, one seed after the other, so that a part of the grid is a whole grid of fewer seeds.

        Raises:
            ValueError: an unknown method.
        """
        unknown = [method for method in self.methods if method not in METHODS]
        if unknown:
            raise ValueError(f"methods {', '.join(unknown)} are unknown; use {', '.join(METHODS)}")
        return [
            Cell(task, split, method, seed, tuple(sorted(self._rates(method, task).items())))
            for seed in self.seeds
            for split in self.splits
            for task in self.tasks
            for method in self.methods
        ]

    def _rates(self, method: str, task: str) -> Mapping[str, Value]:
        return self.rates.get((method, task)) or self.rates.get((method, ""), {})

    def shared(self) -> dict[str, Any]:
        """Return the cells' run config; all clients keep examples out where a compared method is personal."""
        personal = any(METHODS[method].personal for method in self.methods)
        return {"client-holdout": HOLDOUT, **self.base} if personal else dict(self.base)


def compare(comparison: Comparison, results: Path, work: Path, jobs: int, console: Console) -> list[dict[str, Any]]:
    """Run the cells that have no line yet.

    Args:
        comparison: what to compare.
        results: file of result lines; new ones are appended.
        work: folder of the runs; a finished cell's is removed.
        jobs: processes at the same time, one core each.
        console: where to show it.

    Returns:
        The lines of this comparison's cells, in the order of the cells.

    Raises:
        ValueError: the file holds a cell of other settings, or a setting is bad.
        FederationError: cells failed; names each with its reason, after all others are done.
    """
    cells, base = comparison.cells(), comparison.shared()
    done = {_key(line): line for line in read_lines(results)}
    for cell in cells:
        require_same(cell, base, done.get(_key_of(cell)), results)
        if _key_of(cell) in done:
            shutil.rmtree(work / cell.name, ignore_errors=True)  # killed after its line was written
    failed = []
    for cell, line in run_cells([cell for cell in cells if _key_of(cell) not in done], base, work, jobs, console):
        if isinstance(line, str):
            failed.append(f"{cell.name}: {line}")
        else:
            done[_key_of(cell)] = line
            append_line(results, line)
    if failed:
        raise FederationError(
            f"{len(failed)} of {len(cells)} cells failed; the others are done, and the same command tries these again. "
            + " | ".join(failed)
        )
    return [done[_key_of(cell)] for cell in cells]


def run_cells(
    cells: Sequence[Cell], base: Mapping[str, Any], work: Path, jobs: int, console: Console
) -> Iterator[tuple[Cell, dict[str, Any] | str]]:
    """Yield each cell with its result line as it is done, or with why it failed, and show how far it is.

    A run folder is removed when its lines are taken.

    All data in one place do not depend on the split: such a cell runs once for a task and seed, and stands in a line
    for each split.
    """
    once: dict[tuple[object, ...], list[Cell]] = {}
    for cell in cells:
        place = "" if cell.method == "central" else cell.split
        once.setdefault((cell.task, place, cell.method, cell.seed, cell.rates), []).append(cell)
    with _pool(jobs) as pool, cells_shown(len(cells), work, console) as advance:
        with interrupts_held():
            waiting: dict[Future[dict[str, Any]], list[Cell]] = {
                pool.submit(run_cell, alike[0], base, work.absolute()): alike for alike in once.values()
            }
        try:
            while waiting:
                finished, _ = wait(waiting, return_when=FIRST_COMPLETED)
                for future in finished:
                    alike = waiting.pop(future)
                    error = future.exception()
                    if error and not isinstance(error, FederationError):
                        raise error
                    line = {} if error else future.result()
                    for cell in alike:
                        yield cell, str(error) if error else {**line, "split": cell.split}
                    if not error:
                        shutil.rmtree(work / alike[0].name)
                    told = error or f"{line['metric']} {line['final']:.4f}"
                    advance(len(alike), f"{alike[0].name}: {told}")
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _pool(jobs: int) -> ProcessPoolExecutor:
    """Return processes of one thread each, pinned to a core of their own, that do not outlive this one."""
    sys.warnoptions.append("ignore:resource_tracker:UserWarning")  # if we are stopped, it clears up; that is no news
    os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}  # for the processes
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    context = get_context("spawn")
    places: Queue[int] = context.Queue()
    for job in range(jobs):
        places.put(cores[job % len(cores)] if cores else -1)
    return ProcessPoolExecutor(jobs, mp_context=context, initializer=_settle, initargs=(places,))


def _settle(places: "Queue[int]") -> None:
    core = places.get()
    if core >= 0:
        os.sched_setaffinity(0, {core})
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()


def _end_with(parent: int) -> None:
    """End this process when its parent is gone, so that a killed comparison leaves nothing that holds its folders."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


def require_same(cell: Cell, base: Mapping[str, Any], line: Mapping[str, Any] | None, results: Path) -> None:
    """Check a cell's settings, also against those of its line, if it has one.

    A setting that a line does not have did not exist when it was written, and counts as its default.

    Raises:
        ValueError: a setting is bad, or the line in ``results`` is of other settings.
    """
    settings = cell_settings(cell, base, Path("."))
    if line is None or "settings" not in line:
        return
    here = comparable({key.replace("-", "_"): value for key, value in settings.run_config().items()})
    then = {**comparable(asdict(Settings())), **line["settings"]}
    lines = difference(then, {**here, "split": line["settings"]["split"]})
    if lines:
        raise ValueError(
            f"{results} holds {cell.name} of other settings ({'; '.join(lines)}); choose another file or remove it"
        )


def _key(line: Mapping[str, Any]) -> tuple[object, ...]:
    return (line["task"], line["split"], line["method"], line["seed"])


def _key_of(cell: Cell) -> tuple[object, ...]:
    return (cell.task, cell.split, cell.method, cell.seed)
