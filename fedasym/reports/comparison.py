"""Run folders side by side: what each cost and reached, and what it saves against standard LoRA."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from fedasym.methods import METHODS
from fedasym.reports.table import Entry
from fedasym.runs.record import read_json, read_rounds, summarise

# What a relay reads on the exactness meter where it was compared with itself: float64's rounding, and nothing measured.
RELAYED = 1e-12
_NAMING = ("seed", "rank", "split", "head", "num_rounds", "kind", "lr")  # tell runs of one method apart


@dataclass(frozen=True)
class Run:
    """A run folder as read: its config, rounds and summary, and a name that tells it from the runs beside it."""

    folder: Path
    config: dict[str, Any]
    rounds: list[dict[str, Any]]
    summary: dict[str, Any]
    name: str

    @property
    def label(self) -> str:
        """The method's label."""
        return METHODS[self.summary["method"]].label

    @property
    def metric(self) -> str:
        """The name of the metric the run is judged by."""
        return str(self.summary["metric"])

    @property
    def settings(self) -> dict[str, Any]:
        """The resolved settings without the run folder."""
        return {key: value for key, value in self.config["settings"].items() if key != "out"}


def comparison_rows(folders: Sequence[Path]) -> list[dict[str, Any]]:
    """Return the side-by-side table, one row per run in the given order.

    The savings compare bytes per client and round, up and down, with a run of standard LoRA (``lora``) on the
    same model, of the same rank if there is one: ``1 − bytes / bytes of standard LoRA``. ``saving`` is as
    measured, with the output layer where it travels; ``saving_adapter`` leaves it out (None where there are
    no adapters). Both are None without such a run.

    Raises:
        ValueError: a folder has no finished round.
    """
    return rows_of(read_runs(folders))


def comparison_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Lay out the rows of `comparison_rows` for a terminal of 80 columns."""
    table = Table(
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 0, 0, 1),
        show_edge=False,
        caption="Bytes are payload (float32 values), up and down per client and round; 1 MB = 10⁶ B. "
        "Saving against standard LoRA, per client and round.",
        caption_justify="left",
    )
    metrics = {row["metric"] for row in rows}
    table.add_column("run", overflow="fold", min_width=min(24, max(len(row["name"]) for row in rows)))
    metric = metrics.pop() if len(metrics) == 1 else "metric"
    for heading in (metric, "up", "down", "total", "saved", "saved,\nno head", "mismatch"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        mismatch = measured_mismatch(row["method"], row["mismatch"])
        relayed = mismatch is None and relays(row["method"])
        table.add_row(
            Text(row["name"]),
            f"{row['final']:.4f}",
            human_bytes(row["payload_up_per_client_round"]),
            human_bytes(row["payload_down_per_client_round"]),
            human_bytes(row["payload_total"]),
            percent(row["saving"]),
            percent(row["saving_adapter"]),
            "exact by\nconstruction" if relayed else scientific(mismatch, 1),
        )
    return table


def relays(method: str) -> bool:
    """Say whether the server relays every client's factors, so that the sum of the updates is exact by construction."""
    found = METHODS.get(method.partition(":")[0])
    return found is not None and found.fold is not None


def measured_mismatch(method: str, value: float | None) -> float | None:
    """Return a mismatch that was measured, None where a relay was compared with itself.

    >>> measured_mismatch("asymmetric", 2.6e-8), measured_mismatch("fedex", 4.7e-16)
    (2.6e-08, None)
    """
    return None if value is not None and value <= RELAYED and relays(method) else value


def mismatch_entry(method: str, value: float | None, digits: int = 2) -> Entry:
    """Write a mismatch, or that it is exact by construction where a relay has nothing to measure."""
    found = measured_mismatch(method, value)
    return Entry("exact", "by\nconstruction") if found is None and relays(method) else Entry(scientific(found, digits))


def human_bytes(count: float) -> str:
    """Write bytes with three digits in powers of 1000.

    >>> human_bytes(666632), human_bytes(999), human_bytes(1.5e9)
    ('667 kB', '999 B', '1.50 GB')
    """
    value = float(count)
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if value < 999.5 or unit == "TB":
            break
        value /= 1000.0
    digits = 0 if unit == "B" or value >= 99.95 else 1 if value >= 9.995 else 2
    return f"{value:.{digits}f} {unit}"


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """Read run folders and name them.

    Raises:
        ValueError: no folder, or one without a finished round.
    """
    if not folders:
        raise ValueError("there is no run folder to report on; name at least one")
    runs = []
    for folder in folders:
        rounds = read_rounds(folder)
        if not rounds:
            raise ValueError(f"{folder} has no finished round in rounds.jsonl; report after its first round")
        config = read_json(folder / "config.json")
        path = folder / "summary.json"
        summary = read_json(path) if path.exists() else summarise(config, rounds)
        runs.append(Run(folder, config, rounds, summary, ""))
    return [dataclasses.replace(run, name=_name(run, runs)) for run in runs]


def _name(run: Run, runs: Sequence[Run]) -> str:
    """Return the method's label, and what tells the run apart from others of the same method."""
    alike = [other for other in runs if other.label == run.label and other is not run]
    said = []
    for key in _NAMING:
        if any(other.settings.get(key) != run.settings.get(key) for other in alike):
            said.append(f"{key.replace('_', '-')} {run.settings.get(key)}")
            alike = [other for other in alike if other.settings.get(key) == run.settings.get(key)]
    if alike:
        said.append(run.folder.absolute().name)
    return ", ".join([run.label, *said])


def rows_of(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Return the rows of `comparison_rows` for runs that are read already."""
    copied = (
        "method", "metric", "final", "best", "payload_up_per_client_round", "payload_down_per_client_round",
        "payload_total", "message_total", "mismatch",
    )  # fmt: skip
    rows = []
    for run in runs:
        lora = _reference(run, runs)
        rows.append(
            {
                "name": run.name,
                **{key: run.summary[key] for key in copied},
                "saving": 1.0 - _traffic(run) / _traffic(lora) if lora else None,
                "saving_adapter": _saving_adapter(run, lora),
            }
        )
    return rows


def _reference(run: Run, runs: Sequence[Run]) -> Run | None:
    """Return the run of standard LoRA on the same model, of the same rank if there is one."""
    of_lora = [other for other in runs if other.settings["method"] == "lora"]
    same = [other for other in of_lora if other.settings["model"] == run.settings["model"]]
    equal = [other for other in same if other.settings["rank"] == run.settings["rank"]]
    return next(iter(equal + same), None)


def _traffic(run: Run) -> float:
    """Payload bytes per client and round, both ways."""
    return float(run.summary["payload_up_per_client_round"] + run.summary["payload_down_per_client_round"])


def _saving_adapter(run: Run, lora: Run | None) -> float | None:
    """Return the saving without the output layer; None without a reference, or where there are no adapters."""
    if lora is None or METHODS[run.settings["method"]].factors == "W":
        return None
    adapters, reference = (_traffic(each) - 2 * each.summary["head_bytes"] for each in (run, lora))
    return 1.0 - float(adapters) / float(reference)


def scientific(value: float | None, digits: int = 2) -> str:
    """Write a small number with its exponent, a dash for None."""
    return "–" if value is None else f"{value:.{digits}e}"


def percent(share: float | None) -> str:
    """Write a share as a percentage with one decimal, a dash for None."""
    return "–" if share is None else f"{100 * share:.1f} %".replace("-", "−")
