"""Compare methods on one split, initial W, head and budget: ``python -m simulations compare``.

Cells run side by side in processes of one core each. Each finished one is a line of the results file, so a
comparison that was interrupted goes on where it stopped: finished cells are skipped, a half-done one continues after
its last round.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from fedasym.methods import METHODS
from fedasym.settings import Value, difference
from simulations.cells import HOLDOUT, Cell, cell_settings, comparable, run_cell
from simulations.results import read_lines


@dataclass(frozen=True)
class Comparison:
    """What is compared.

    Attributes:
        tasks, splits, methods: as in the settings.
        seeds: of A, split, batches and sampling.
        base: the run config that all cells share.
        rates: a method's tuned optimizer and rates; those not named take the method's own.
    """

    tasks: tuple[str, ...]
    splits: tuple[str, ...]
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    base: Mapping[str, Any]
    rates: Mapping[str, Mapping[str, Value]]

    def cells(self) -> list[Cell]:
        """Return all cells, one seed after the other, so that a part of the grid is a whole grid of fewer seeds.

        Raises:
            ValueError: an unknown method.
        """
        unknown = [method for method in self.methods if method not in METHODS]
        if unknown:
            raise ValueError(f"methods {', '.join(unknown)} are unknown; use {', '.join(METHODS)}")
        return [
            Cell(task, split, method, seed, tuple(sorted(self.rates.get(method, {}).items())))
            for seed in self.seeds
            for split in self.splits
            for task in self.tasks
            for method in self.methods
        ]

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
    """
    cells, base = comparison.cells(), comparison.shared()
    done = {_key(line): line for line in read_lines(results)}
    for cell in cells:
        _require_same(cell, base, done, results)
    results.parent.mkdir(parents=True, exist_ok=True)
    for line in run_cells([cell for cell in cells if _key_of(cell) not in done], base, work, jobs, console):
        done[_key(line)] = line
        with results.open("a") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
    return [done[_key_of(cell)] for cell in cells]


def run_cells(
    cells: Sequence[Cell], base: Mapping[str, Any], work: Path, jobs: int, console: Console
) -> Iterator[dict[str, Any]]:
    """Yield the cells' result lines as they are done, with a display.

    All data in one place do not depend on the split: such a cell runs once for a task and seed, and stands in a line
    for each split.
    """
    once: dict[tuple[object, ...], list[Cell]] = {}
    for cell in cells:
        place = "" if cell.method == "central" else cell.split
        once.setdefault((cell.task, place, cell.method, cell.seed, cell.rates), []).append(cell)
    columns = (
        TextColumn("{task.description}"), MofNCompleteColumn(), TextColumn("cells"), TimeElapsedColumn(),
        TextColumn("left"), TimeRemainingColumn(),
    )  # fmt: skip
    with _pool(jobs) as pool, Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task("comparing", total=len(cells))
        waiting: dict[Future[dict[str, Any]], list[Cell]] = {
            pool.submit(run_cell, alike[0], base, work.absolute()): alike for alike in once.values()
        }
        try:
            while waiting:
                finished, _ = wait(waiting, return_when=FIRST_COMPLETED)
                for future in finished:
                    alike = waiting.pop(future)
                    line = future.result()
                    for cell in alike:
                        yield {**line, "split": cell.split}
                    progress.advance(bar, len(alike))
                    done, name = progress.tasks[bar].completed, alike[0].name
                    console.print(f"{done:.0f}/{len(cells)}  {name}: {line['metric']} {line['final']:.4f}")
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _pool(jobs: int) -> ProcessPoolExecutor:
    """Return processes that each keep to a core of their own."""
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


def _require_same(
    cell: Cell, base: Mapping[str, Any], done: Mapping[tuple[object, ...], Mapping[str, Any]], results: Path
) -> None:
    """Check a cell's settings, also against those of its line, if it has one."""
    settings = cell_settings(cell, base, Path("."))
    line = done.get(_key_of(cell))
    if line is None:
        return
    here = comparable({key.replace("-", "_"): value for key, value in settings.run_config().items()})
    lines = difference(line["settings"], {**here, "split": line["settings"]["split"]})
    if lines:
        raise ValueError(
            f"{results} holds {cell.name} of other settings ({'; '.join(lines)}); choose another file or remove it"
        )


def _key(line: Mapping[str, Any]) -> tuple[object, ...]:
    return (line["task"], line["split"], line["method"], line["seed"])


def _key_of(cell: Cell) -> tuple[object, ...]:
    return (cell.task, cell.split, cell.method, cell.seed)
