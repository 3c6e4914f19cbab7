"""Run the cells of a grid that have no line yet, side by side in processes of one core each.

Each finished cell is a line of the results file, so a grid that was interrupted goes on where it stopped: finished
cells are skipped, a half-done one continues after its last round. A cell whose split is impossible for its data has a
line too, of the reason (``impossible``): the others run, and it is tried again only when asked, or with other settings.
"""

import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any

from rich.console import Console

from fedasym.data.skewed_splits import SplitError
from fedasym.fields import difference
from fedasym.files import append_line, read_lines
from fedasym.ops.processes import held_alone
from fedasym.settings import of_any_version
from server.failure import FederationError
from simulations.cli.waiting import cells_shown
from simulations.interrupts import interrupts_held
from simulations.study.cells import Cell, cell_settings, comparable, run_cell

Line = dict[str, Any]


@dataclass(frozen=True)
class Study:
    """A grid of cells, and what is kept of each.

    Attributes:
        cells: of the grid, in the order in which they are begun.
        base: the run config that they share.
        key: makes what a cell's line holds that no other cell's does.
        values: makes what else it holds, out of a result line of `simulations.study.cells.run_cell`.
        failed: makes the same out of why training failed; None: such a cell has no line, and is tried again.
    """

    cells: Sequence[Cell]
    base: Mapping[str, Any]
    key: Callable[[Cell], Line]
    values: Callable[[Line], Line]
    failed: Callable[[str], Line] | None = None


def run_study(
    study: Study, results: Path, work: Path, jobs: int, console: Console, *, retry: bool = False
) -> list[Line]:
    """Run the cells that have no line yet.

    Args:
        study: what to run.
        results: file of the lines; new ones are appended. Its folder is held alone.
        work: folder of the runs; a finished cell's is removed.
        jobs: processes at the same time, one core each.
        console: where to show it.
        retry: try those again whose split was impossible.

    Returns:
        The lines of the study's cells, in the order of the cells; those with ``impossible`` hold nothing but settings.

    Raises:
        BlockingIOError: another process holds the folder of the results.
        ValueError: the file holds a cell of other settings, or a setting is bad.
        FederationError: cells failed; names each with its reason, after all others are done.
    """
    results.parent.mkdir(parents=True, exist_ok=True)
    with held_alone(results.parent, "wait for it or end it"):
        kept, keys = read_lines(results), {cell: study.key(cell) for cell in study.cells}
        done = {cell: line for line in kept for cell, key in keys.items() if key.items() <= line.items()}
        for cell in study.cells:
            if is_impossible(done.get(cell)) and (retry or changed_settings(cell, study.base, done[cell])):
                del done[cell]
            require_same(cell, study.base, done.get(cell), results)
        _say_impossible([(cell, done[cell]) for cell in study.cells if is_impossible(done.get(cell))], console)
        for cell in done:
            shutil.rmtree(work / cell.name, ignore_errors=True)  # of one that was killed after its line was written
        failed = []
        missing = [cell for cell in study.cells if cell not in done]
        for cell, found in _run(missing, study.base, work, jobs, console):
            if isinstance(found, SplitError):
                settings = cell_settings(cell, study.base, Path("."))
                values = {"impossible": str(found), "settings": comparable(settings.run_config())}
            elif not isinstance(found, FederationError):
                values = study.values(found)
            elif study.failed is not None:
                values = study.failed(str(found))
            else:
                failed.append(f"{cell.name}: {found}")
                continue
            done[cell] = {**keys[cell], **values} | keys[cell]
            append_line(results, done[cell])
    if failed:
        raise FederationError(
            f"{len(failed)} of {len(study.cells)} cells failed; the others are done, and the same command tries these "
            f"again. {' | '.join(failed)}"
        )
    return [done[cell] for cell in study.cells]


def require_same(cell: Cell, base: Mapping[str, Any], line: Mapping[str, Any] | None, results: Path) -> None:
    """Check a cell's settings, also against those of its line, if it has one.

    A setting that a line does not have did not exist when it was written, and counts as its default.

    Raises:
        ValueError: a setting is bad, or the line in ``results`` is of other settings.
    """
    lines = changed_settings(cell, base, line)
    if lines:
        raise ValueError(
            f"{results} holds {cell.name} of other settings ({'; '.join(lines)}); choose another file or remove it"
        )


def changed_settings(cell: Cell, base: Mapping[str, Any], line: Mapping[str, Any] | None) -> list[str]:
    """Return the settings in which a cell differs from its line, in words; none without a line that has settings.

    Raises:
        ValueError: a setting is bad.
    """
    settings = cell_settings(cell, base, Path("."))
    if line is None or "settings" not in line:
        return []
    here = comparable(settings.run_config())
    then = comparable(of_any_version({key.replace("_", "-"): value for key, value in line["settings"].items()}))
    return difference(then, here)


def is_impossible(line: Mapping[str, Any] | None) -> bool:
    """Say whether a line is of a cell whose split its data do not allow."""
    return line is not None and "impossible" in line


def _say_impossible(found: Sequence[tuple[Cell, Line]], console: Console) -> None:
    """Say which cells are left out, and why."""
    if found:
        console.print(
            f"{len(found)} cells have a split that their data do not allow, and are left out; --retry tries them again",
            markup=False, soft_wrap=True,
        )  # fmt: skip
    for cell, line in found:
        console.print(f"  {cell.name}: {line['impossible']}", markup=False, soft_wrap=True)


def _run(
    cells: Sequence[Cell], base: Mapping[str, Any], work: Path, jobs: int, console: Console
) -> Iterator[tuple[Cell, Line | FederationError | SplitError]]:
    """Yield each cell with its result line as it is done, or with why it failed, and show how far it is.

    A run folder is removed when its line is taken, or when its split is impossible.
    """
    with _pool(jobs) as pool, cells_shown(len(cells), work, console) as advance:
        with interrupts_held():
            waiting: dict[Future[Line], Cell] = {
                pool.submit(run_cell, cell, base, work.absolute()): cell for cell in cells
            }
        try:
            while waiting:
                finished, _ = wait(waiting, return_when=FIRST_COMPLETED)
                for future in finished:
                    cell, error = waiting.pop(future), future.exception()
                    if isinstance(error, FederationError | SplitError):
                        yield cell, error
                        told = str(error)
                    else:
                        line = future.result()
                        yield cell, line
                        told = f"{line['metric']} {line['final']:.4f}"
                    if not isinstance(error, FederationError):
                        shutil.rmtree(work / cell.name)
                    advance(1, f"{cell.name}: {told}")
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
    """End this process when its parent is gone, so that a killed command leaves nothing that holds its folders."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)
