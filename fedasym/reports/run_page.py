"""The report's HTML: one page without scripts or outside resources; whatever comes from a run's files is escaped."""

import dataclasses
import json
import shlex
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from fedasym.reports.comparison import Run, human_bytes, percent, rows_of, scientific
from fedasym.reports.html_page import document, figures_html
from fedasym.settings import RESOLVED, Settings, judged_at_clients

_REJECTIONS = 50  # listed on the page; all are in rounds.jsonl
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
    title = f"{first.settings['task']}: {first.name}" if len(runs) == 1 else f"{len(runs)} runs side by side"
    commands = "\n".join(
        (f"<p>{escape(run.name)}:</p>" if len(runs) > 1 else "") + f"<pre>{escape(run_command(run.settings))}</pre>"
        for run in runs
    )
    settings = [{key.replace("_", "-"): value for key, value in run.settings.items()} for run in runs]
    body = f"""<p class="lead">{escape(_sentence(runs))}</p>
{_comparison_html(rows_of(runs))}
{_rejections_html(runs)}
{_warnings_html(runs)}
<h2>Curves and clients</h2>
{figures_html(figures, wide=("clients",))}
<h2>Run it again</h2>
{commands}
<h2>Settings</h2>
{_facts_html(runs, settings, ABOUT)}
<h2>Where the numbers come from</h2>
{_facts_html(runs, [_origin(run) for run in runs], {})}"""
    return document(title, body)


def _sentence(runs: Sequence[Run]) -> str:
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


def _comparison_html(rows: Sequence[Mapping[str, Any]]) -> str:
    metrics = {str(row["metric"]) for row in rows}
    heads = (
        "run", f"final {metrics.pop()}" if len(metrics) == 1 else "final metric", "best",
        "up per client and round", "down per client and round", "whole run",
        "saving", "saving, adapters only", "mismatch",
    )  # fmt: skip
    body = ""
    for row in rows:
        cells = (
            f"{row['final']:.4f}",
            f"{row['best']:.4f}",
            _bytes_html(row["payload_up_per_client_round"]),
            _bytes_html(row["payload_down_per_client_round"]),
            _bytes_html(row["payload_total"]) + f"<small>messages {_exact(row['message_total'])}</small>",
            percent(row["saving"]),
            percent(row["saving_adapter"]),
            scientific(row["mismatch"]),
        )
        body += f'<tr><th scope="row">{escape(row["name"])}</th><td>{"</td><td>".join(cells)}</td></tr>\n'
    heading = "".join(f'<th scope="col">{escape(head)}</th>' for head in heads)
    return f"""<div class="scroll"><table class="numbers">
<thead><tr>{heading}</tr></thead>
<tbody>
{body}</tbody></table></div>
<p class="note">{escape(_NOTE)}</p>"""


def _bytes_html(count: float) -> str:
    return f"{human_bytes(count)}<small>{_exact(count)}</small>"


def _exact(count: float) -> str:
    return f"{count:,.0f} B" if float(count).is_integer() else f"{count:,.1f} B"


def _rejections_html(runs: Sequence[Run]) -> str:
    rounds = [(run.name, row) for run in runs for row in run.rounds]
    asked = sum(row["clients_asked"] for _, row in rounds)
    found = [
        (name, str(row["round"]), client, reason)
        for name, row in rounds
        for client, reason in row["rejections"].items()
    ]
    if not found:
        return f'<p class="note">Every reply asked for came and was valid: {asked:,} of {asked:,}.</p>'
    body = ""
    for line in found[:_REJECTIONS]:
        body += f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in line)}</tr>\n"
    more = len(found) - _REJECTIONS
    rest = f"<p>and {more:,} more, in rounds.jsonl</p>" if more > 0 else ""
    return f"""<section class="warning"><h2>{len(found):,} of {asked:,} replies did not count</h2>
<table><thead><tr><th>run</th><th>round</th><th>client</th><th>reason</th></tr></thead><tbody>
{body}</tbody></table>{rest}</section>"""


def _warnings_html(runs: Sequence[Run]) -> str:
    found = [(run.name, row["round"], text) for run in runs for row in run.rounds for text in row.get("warnings", [])]
    if not found:
        return ""
    lines = [f"<li>{escape(name)}, round {number}: {escape(text)}</li>" for name, number, text in found[:_REJECTIONS]]
    more = len(found) - _REJECTIONS
    rest = f"<p>and {more:,} more, in rounds.jsonl</p>" if more > 0 else ""
    return f"<h2>Warnings</h2>\n<ul>{''.join(lines)}</ul>{rest}"


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


def _facts_html(runs: Sequence[Run], columns: Sequence[Mapping[str, Any]], about: Mapping[str, str]) -> str:
    """Lay out one column per run; a value that all runs share spans them, others are marked."""
    explained = about if len(runs) <= 2 else {}
    body = ""
    for key in dict.fromkeys(key for column in columns for key in column):
        values = [str(column.get(key, "–")) or "(empty)" for column in columns]
        differs = len(set(values)) > 1
        cells = "".join(f"<td>{escape(value)}</td>" for value in values)
        if not differs:
            cells = f'<td colspan="{len(runs)}">{escape(values[0])}</td>'
        if explained:
            cells += f'<td class="about">{escape(explained.get(key, ""))}</td>'
        mark, kind = (" ≠", ' class="differs"') if differs else ("", "")
        body += f'<tr{kind}><th scope="row">{escape(key)}{mark}</th>{cells}</tr>\n'
    names = "".join(f'<th scope="col">{escape(run.name)}</th>' for run in runs)
    names += "<th></th>" if explained else ""
    head = f"<thead><tr><th></th>{names}</tr></thead>" if len(runs) > 1 else ""
    return f'<div class="scroll"><table class="facts">{head}<tbody>\n{body}</tbody></table></div>'


_NOTE = (
    "Bytes are payload: float32 values, 4 B each; 1 kB = 10³ B, 1 MB = 10⁶ B. Messages are the whole run's "
    "bytes as serialised. Saving is 1 − bytes / bytes of standard LoRA, per client and round, as measured; "
    "adapters only leaves out the output layer. Mismatch is how far what is broadcast is from the mean of "
    "the clients' updates, relative to that mean, in the worst round (before the server's optimizer, if any)."
)
