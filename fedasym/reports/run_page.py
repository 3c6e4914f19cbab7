"""What stands on the page about one run, or several side by side; `fedasym.reports.run_page_template` lays it out."""

import dataclasses
import json
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from fedasym.reports.comparison import Run, human_bytes, mismatch_entry, percent, rows_of
from fedasym.reports.html_page import render
from fedasym.reports.run_page_template import RUN_PAGE
from fedasym.reports.table import Entry, Sheet
from fedasym.runs.record import EXAMPLES, read_json
from fedasym.settings import RESOLVED, Settings, judged_at_clients

_LISTED = 50  # rejections, and warnings, on the page; all are in rounds.jsonl
ABOUT = {field.name.replace("_", "-"): str(field.metadata["about"]) for field in dataclasses.fields(Settings)}


def run_command(settings: Mapping[str, Any]) -> str:
    """Return the shell command that runs resolved settings again, naming only what differs from the defaults.

    Args:
        settings: as in config.json, with ``_`` in the keys. ``out`` is left out: that folder
            holds this run already.
    """
    plain = dataclasses.asdict(Settings())
    given = {key: value for key, value in settings.items() if key in plain and key not in RESOLVED}
    chosen = dataclasses.asdict(Settings(**given).resolved())
    defaults = plain | {key: chosen[key] for key in RESOLVED}
    changed = {key: value for key, value in settings.items() if key != "out" and value != defaults.get(key)}
    return command_with(changed)


def command_with(settings: Mapping[str, Any]) -> str:
    """Return the shell command that runs with these settings and the defaults of all others."""
    if not settings:
        return "flwr run ."
    pairs = " ".join(f"{key.replace('_', '-')}={_toml(value)}" for key, value in settings.items())
    return f"flwr run . --run-config {shlex.quote(pairs)}"


def _toml(value: Any) -> str:
    if isinstance(value, str) and '"' in value:
        return f"'{value}'"
    return json.dumps(value, ensure_ascii=False)


def render_page(runs: Sequence[Run], figures: Mapping[str, tuple[str, bytes]]) -> str:
    """Return the page of one run, or of several side by side; figures are (caption, PNG) by name."""
    first = runs[0]
    settings = [{key.replace("_", "-"): value for key, value in run.settings.items()} for run in runs]
    rounds = [(run.name, row) for run in runs for row in run.rounds]
    return render(
        RUN_PAGE,
        title=f"{first.settings['task']}: {first.name}" if len(runs) == 1 else f"{len(runs)} runs side by side",
        names=[run.name for run in runs],
        lead=_lead(runs),
        comparison=_comparison(rows_of(runs)),
        asked=sum(row["clients_asked"] for _, row in rounds),
        rejections=[(name, row["round"], *each) for name, row in rounds for each in row["rejections"].items()],
        warnings=[(name, row["round"], text) for name, row in rounds for text in row.get("warnings", [])],
        listed=_LISTED,
        drawn=figures,
        examples=[(run.name, found) for run in runs if (found := _examples(run))],
        commands=[(run.name, run_command(run.settings)) for run in runs],
        about=ABOUT if len(runs) <= 2 else {},
        settings=_facts(settings),
        origins=_facts([_origin(run) for run in runs]),
    )


def _examples(run: Run) -> list[dict[str, str]]:
    """Return the held-out examples that a run left with their answers; none if it left none."""
    path = run.folder / EXAMPLES
    entries: list[dict[str, str]] = read_json(path) if path.exists() else []
    return entries


def _lead(runs: Sequence[Run]) -> str:
    said = []
    for run in runs:
        s, count = run.settings, len(run.rounds)
        whose = f"sites {s['sites']}" if s.get("sites") else f"split {s['split']}"
        judges = f"{run.config['held_out_examples']:,} held-out examples"
        if judged_at_clients(s["method"], s["head"], s.get("choices_data") or s["data"]):
            judges = "the examples that the clients keep out"
        said.append(
            f"{count} round{'s' if count > 1 else ''} on task {s['task']} with model {s['model']} and "
            f"{s['num_clients']} clients ({whose}), judged by {run.metric} on {judges}."
        )
    return said[0] if len(set(said)) == 1 else "They differ in more than the method; see the settings below."


def _comparison(rows: Sequence[Mapping[str, Any]]) -> Sheet:
    metrics = {str(row["metric"]) for row in rows}
    columns = (
        "run", f"final {metrics.pop()}" if len(metrics) == 1 else "final metric", "best",
        "up per client and round", "down per client and round", "whole run",
        "saving", "saving, adapters only", "mismatch",
    )  # fmt: skip
    body = [
        [
            Entry(row["name"]),
            Entry(f"{row['final']:.4f}"),
            Entry(f"{row['best']:.4f}"),
            *(_bytes(row[f"payload_{way}_per_client_round"]) for way in ("up", "down")),
            _bytes(row["payload_total"], f"\nmessages {_exact(row['message_total'])}"),
            Entry(percent(row["saving"])),
            Entry(percent(row["saving_adapter"])),
            mismatch_entry(row["method"], row["mismatch"]),
        ]
        for row in rows
    ]
    return Sheet("", columns, body, _NOTE)


def _bytes(count: float, more: str = "") -> Entry:
    return Entry(human_bytes(count), _exact(count) + more)


def _exact(count: float) -> str:
    return f"{count:,.0f} B" if float(count).is_integer() else f"{count:,.1f} B"


def _origin(run: Run) -> dict[str, Any]:
    return {
        "run folder": run.folder.absolute().name,
        "contract hash": run.config["contract_hash"],
        "partition digest": run.config["partition"]["digest"],
        "final digest": run.summary["digest"],
        "values that train": f"{run.config['trainable_values']:,}",
        "of them output layer": f"{run.config['head_values']:,}",
        "seconds": run.summary["seconds"],
        **run.config["versions"],
    }


def _facts(columns: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[str]]]:
    """Return by name each run's value, or the one that all runs share."""
    facts = []
    for key in dict.fromkeys(key for column in columns for key in column):
        values = [str(column.get(key, "–")) or "(empty)" for column in columns]
        facts.append((key, values if len(set(values)) > 1 else values[:1]))
    return facts


_NOTE = (
    "Bytes are payload: float32 values, 4 B each; 1 kB = 10³ B, 1 MB = 10⁶ B. Messages are the whole run's "
    "bytes as serialised. Saving is 1 − bytes / bytes of standard LoRA, per client and round, as measured; "
    "adapters only leaves out the output layer. Mismatch is how far what is broadcast is from the mean of "
    "the clients' updates, relative to that mean, as measured in the worst round (before the server's optimizer, if "
    "any): where only one factor trains, what float32's rounding of the mean loses. Exact by construction: every "
    "client's factors are relayed, and nothing is averaged that could be measured. –: no common model, or a rule of "
    "averaging that is not the mean."
)
