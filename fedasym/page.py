"""The report's HTML: one page without scripts or outside resources; whatever comes from a run's files is escaped.

The file is mostly markup and its style sheet.
"""

import base64
import dataclasses
import json
import shlex
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from fedasym.comparison import Run, human_bytes, percent, rows_of, scientific
from fedasym.settings import RESOLVED, Settings

_REJECTIONS = 50  # listed on the page; all are in rounds.jsonl
_ABOUT = {knob.name.replace("_", "-"): str(knob.metadata["about"]) for knob in dataclasses.fields(Settings)}


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
    if not changed:
        return "flwr run ."
    pairs = " ".join(f"{key.replace('_', '-')}={_toml(value)}" for key, value in changed.items())
    return f"flwr run . --run-config {shlex.quote(pairs)}"


def _toml(value: Any) -> str:
    if isinstance(value, str) and '"' in value:
        return f"'{value}'"
    return json.dumps(value, ensure_ascii=False)


def render_page(runs: Sequence[Run], figures: Mapping[str, tuple[str, bytes]]) -> str:
    """Return the page of one run, or of several side by side; figures are (caption, PNG) by name."""
    first = runs[0]
    title = f"{first.settings['task']}: {first.name}" if len(runs) == 1 else f"{len(runs)} runs side by side"
    images = "\n".join(
        f'<figure class="{"wide" if name.startswith("clients") else "half"}">'
        f'<img alt="{escape(name)}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'
        + (f"<figcaption>{escape(caption)}</figcaption>" if caption else "")
        + "</figure>"
        for name, (caption, png) in figures.items()
    )
    commands = "\n".join(
        (f"<p>{escape(run.name)}:</p>" if len(runs) > 1 else "") + f"<pre>{escape(run_command(run.settings))}</pre>"
        for run in runs
    )
    settings = [{key.replace("_", "-"): value for key, value in run.settings.items()} for run in runs]
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{_STYLE}</style>
</head>
<body>
<h1>{escape(title)}</h1>
<p class="lead">{escape(_sentence(runs))}</p>
{_comparison_html(rows_of(runs))}
{_rejections_html(runs)}
<h2>Curves and clients</h2>
<div class="figures">
{images}
</div>
<h2>Run it again</h2>
{commands}
<h2>Settings</h2>
{_facts_html(runs, settings, _ABOUT)}
<h2>Where the numbers come from</h2>
{_facts_html(runs, [_origin(run) for run in runs], {})}
</body>
</html>
"""


def _sentence(runs: Sequence[Run]) -> str:
    said = []
    for run in runs:
        s, count = run.settings, len(run.rounds)
        judges = f"{run.config['held_out_examples']:,} held-out examples"
        if s["head"] == "local":
            judges = "the examples that the clients keep out"
        said.append(
            f"{count} round{'s' if count > 1 else ''} on task {s['task']} with model {s['model']} and "
            f"{s['num_clients']} clients (split {s['split']}), judged by {run.metric} on {judges}."
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


def _origin(run: Run) -> dict[str, Any]:
    return {
        "run folder": run.folder.absolute().name,
        "contract hash": run.config["contract_hash"],
        "partition digest": run.config["partition"]["digest"],
        "final digest": run.summary["digest"],
        "values that travel": f"{run.config['trainable_values']:,}",
        "of them output layer": f"{run.config['head_values']:,}",
        "seconds": run.summary["seconds"],
        **run.config["versions"],
    }


def _facts_html(runs: Sequence[Run], columns: Sequence[Mapping[str, Any]], about: Mapping[str, str]) -> str:
    """Lay out one column a run; a value that all runs share spans them, others are marked."""
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
    "the clients' updates, relative to that mean, in the worst round."
)

_STYLE = """
body { font: 15px/1.5 system-ui, "Segoe UI", "Helvetica Neue", Arial, "DejaVu Sans", sans-serif;
  color: #1a1a1a; background: #fff; max-width: 900px; margin: 0 auto; padding: 24px 16px 48px; }
h1 { font-size: 26px; line-height: 1.2; margin: 0 0 4px; }
h2 { font-size: 18px; margin: 32px 0 8px; break-after: avoid; }
.lead { font-size: 16px; margin: 0 0 20px; color: #333; }
.note, figcaption { font-size: 13px; color: #4a4a4a; margin: 8px 0; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 13.5px; }
th, td { padding: 5px 8px; text-align: left; vertical-align: top; border-bottom: 1px solid #ddd; }
thead th { border-bottom: 2px solid #1a1a1a; vertical-align: bottom; line-height: 1.25; }
tr { break-inside: avoid; }
.numbers td, .numbers thead th + th { text-align: right; font-variant-numeric: tabular-nums; }
.numbers td { white-space: nowrap; }
small { display: block; font-size: 11px; color: #555; }
.facts { font-size: 13px; }
.facts th, .facts td { padding: 3px 8px; }
.facts th[scope=row] { font-weight: 400; color: #444; white-space: nowrap; width: 1%; padding-right: 16px; }
.facts td { font-family: ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; font-size: 12px;
  overflow-wrap: anywhere; }
.facts td.about { font: inherit; color: #5a5a5a; }
.differs > * { background: #fff3d6; }
.differs th[scope=row], .differs td:not(.about) { font-weight: 700; color: #1a1a1a; }
.warning { border: 2px solid #b33a00; border-radius: 4px; padding: 4px 16px 12px; margin: 20px 0;
  background: #fff6f0; }
.warning h2 { color: #8f2e00; margin-top: 10px; }
.warning td { overflow-wrap: anywhere; }
.figures { display: flex; flex-wrap: wrap; gap: 16px 20px; }
figure { margin: 0; break-inside: avoid; }
.half { width: calc(50% - 10px); }
.wide { width: 100%; }
img { width: 100%; display: block; }
pre { background: #f4f4f4; border: 1px solid #ddd; border-radius: 4px; padding: 10px 12px; font-size: 12.5px;
  white-space: pre-wrap; overflow-wrap: anywhere; margin: 4px 0 12px; }
@media (max-width: 620px) { .half { width: 100%; } }
@media print {
  @page { size: A4; margin: 15mm; }
  body { max-width: none; padding: 0; font-size: 10pt; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  .scroll { overflow: visible; }
  table { font-size: 8.5pt; } .facts, .facts td { font-size: 8pt; } small { font-size: 7pt; }
  .numbers th, .numbers td { padding: 3px 4px; }
  img { max-height: 240mm; object-fit: contain; }
}
"""
