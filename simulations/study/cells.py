"""One cell of a grid: task, split, method, seed and further settings of its own; its run and its result line."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clients.app import app as client_app
from fedasym.adapters.projection import KINDS
from fedasym.fields import Value
from fedasym.methods import METHODS
from fedasym.reports.study.result_lines import REFERENCES
from fedasym.settings import Settings, from_run_config
from server.app import only_user
from server.lifecycle import opened, train
from server.reporter import Reporter
from simulations.engines.grid import InProcessGrid
from simulations.study.results import result_lines

_PLACES = ("out", "glue_dir", "device")  # settings that say where things lie, not what is done


@dataclass(frozen=True)
class Cell:
    """What tells one run of a grid from another.

    Attributes:
        task, split, seed: as in the settings.
        method: as in the setting, or with another kind of A than its own after a colon: ``lora:orthonormal``.
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
    method, kind = parts_of(cell.method)
    own |= {"kind": kind} if kind else {}
    return from_run_config({**base, **own, "method": method}).resolved()


def parts_of(method: str) -> tuple[str, str]:
    """Return a cell's method and its kind of A, "" for the method's own.

    >>> parts_of("lora:orthonormal"), parts_of("lora")
    (('lora', 'orthonormal'), ('lora', ''))
    """
    name, _, kind = method.partition(":")
    return name, kind


def require_method(method: str) -> None:
    """Require a method, and a kind of A where one is named.

    Raises:
        ValueError: either is unknown, or the kind is that which the method has anyway, or the method is a reference.
    """
    name, kind = parts_of(method)
    if name not in METHODS:
        raise ValueError(f"methods {name} are unknown; use {', '.join(METHODS)}")
    if ":" not in method:
        return
    if name in REFERENCES or METHODS[name].factors == "W":
        raise ValueError(f"method {method!r}: {name} is not compared by kinds of A; name it without one")
    if kind not in KINDS or kind == METHODS[name].kind:
        others = ", ".join(f"{name}:{other}" for other in KINDS if other != METHODS[name].kind)
        raise ValueError(f"method {method!r} names no other kind of A than {name}'s own; use {name}, or {others}")


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
    method, kind = parts_of(cell.method)
    line |= {"method": cell.method, "label": METHODS[method].label + (f", {kind} A" if kind else "")}
    line |= {"personal": METHODS[method].personal, "settings": comparable(line["settings"])}
    if cell.method == "central":
        line |= {key: 0 for key in line if key.startswith(("payload_", "message_")) and key != "payload_by_round"}
        line |= {"payload_by_round": [0] * line["rounds"], "head_bytes": 0, "mismatch": None}
        line |= {"mismatch_by_round": [None] * line["rounds"]}
    return line
