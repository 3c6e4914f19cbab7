"""One cell of a grid: task, split, method, seed and further settings of its own; its run and its result line."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clients.app import app as client_app
from fedasym.fields import Value
from fedasym.methods import METHODS
from fedasym.settings import Settings, from_run_config
from server.app import only_user, opened, train
from server.reporter import Reporter
from simulations.engines.grid import InProcessGrid
from simulations.study.results import result_lines

_PLACES = ("out", "glue_dir", "device")  # settings that say where things lie, not what is done


@dataclass(frozen=True)
class Cell:
    """What tells one run of a grid from another.

    Attributes:
        task, split, method, seed: as in the settings.
        overrides: further settings of its own as a run config, e.g. the rates; none means the grid's, or the method's.
    """

    task: str
    split: str
    method: str
    seed: int
    overrides: tuple[tuple[str, Value], ...] = ()

    @property
    def name(self) -> str:
        """A folder's name."""
        parts = (self.task, self.split, self.method, self.seed, *(value for _, value in self.overrides))
        return "-".join(str(part).replace(":", "") for part in parts)


def cell_settings(cell: Cell, base: Mapping[str, Any], out: Path) -> Settings:
    """Return a cell's resolved settings: the grid's, and what the cell itself says.

    ``central`` trains on as many examples as the whole federation does, all in one place.

    Raises:
        ValueError: as `fedasym.settings.from_run_config`.
    """
    own = {"task": cell.task, "split": cell.split, "seed": cell.seed, **dict(cell.overrides), "out": str(out)}
    shared = from_run_config({**base, **own})
    if cell.method == "central":
        own |= {"split": "iid", "num-clients": 1, "clients-per-round": 0, "min-valid": 1}
        own["local-steps"] = shared.local_steps * (shared.clients_per_round or shared.num_clients)
    return from_run_config({**base, **own, "method": cell.method}).resolved()


def comparable(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that a result depends on, with ``_`` in the keys."""
    plain = {key.replace("-", "_"): value for key, value in settings.items()}
    return {key: value for key, value in plain.items() if key not in _PLACES}


def run_cell(cell: Cell, base: Mapping[str, Any], work: Path) -> dict[str, Any]:
    """Run a cell, or go on with it, in this process; return its result line. Its run folder stays.

    The line is that of `simulations.study.results.result_lines` and says whether the method is personal. Where all data
    lie in one place nothing travels: its bytes are 0 and it has no mismatch.
    """
    logging.getLogger("fedasym").addHandler(logging.NullHandler())
    folder = work / cell.name
    settings = cell_settings(cell, base, folder)
    config = settings.run_config()
    reporter = Reporter(folder, settings.num_rounds)
    with only_user(folder), reporter, InProcessGrid(client_app, config, settings.num_clients) as grid:
        train(grid, opened(settings, folder), folder, reporter)
    line = result_lines([folder])[0]
    line |= {"personal": METHODS[cell.method].personal, "settings": comparable(line["settings"])}
    if cell.method == "central":
        line |= {key: 0 for key in line if key.startswith(("payload_", "message_")) and key != "payload_by_round"}
        line |= {"payload_by_round": [0] * line["rounds"], "head_bytes": 0, "mismatch": None}
        line |= {"mismatch_by_round": [None] * line["rounds"]}
    return line
