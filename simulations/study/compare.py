"""Methods on one split, initial W, head and budget: ``python -m simulations compare``."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fedasym.fields import Value
from fedasym.methods import METHODS
from simulations.study.cells import Cell, parts_of, require_method
from simulations.study.runner import Study

Rates = Mapping[tuple[str, str], Mapping[str, Value]]

HOLDOUT = 0.2  # share of a client's examples kept out, for all methods, where one of them has no common model


@dataclass(frozen=True)
class Comparison:
    """What is compared.

    Attributes:
        tasks, splits: as in the settings.
        methods: as in the setting, or with a kind of A after a colon: ``lora:orthonormal``.
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

    def study(self) -> Study:
        """Return the grid, one seed after the other, so that a part of it is a whole grid of fewer seeds.

        All data in one place have no split: such a cell is there once for a task and seed.

        Raises:
            ValueError: an unknown method, or kind of A.
        """
        for method in self.methods:
            require_method(method)
        cells = [
            Cell(
                task,
                "iid" if method == "central" else split,
                method,
                seed,
                tuple(sorted(self._rates(method, task).items())),
            )
            for seed in self.seeds
            for split in self.splits
            for task in self.tasks
            for method in self.methods
        ]
        return Study([*dict.fromkeys(cells)], self.shared(), _key, dict)

    def _rates(self, method: str, task: str) -> Mapping[str, Value]:
        return self.rates.get((method, task)) or self.rates.get((method, ""), {})

    def shared(self) -> dict[str, Any]:
        """Return the cells' run config; all clients keep examples out where a compared method is personal."""
        personal = any(METHODS[parts_of(method)[0]].personal for method in self.methods)
        return {"client-holdout": HOLDOUT, **self.base} if personal else dict(self.base)


def _key(cell: Cell) -> dict[str, Any]:
    return {"task": cell.task, "split": cell.split, "method": cell.method, "seed": cell.seed}
