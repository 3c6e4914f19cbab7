"""Run folders in, one page out: numbers, figures, settings and how to run it again.

The page is one HTML file without scripts or outside resources; its figures are inside and, as PNG, beside it.
The same folders give the same bytes. Whatever comes from a run's files is escaped. The file is long because
the page's markup and style sheet are part of it.
"""

import base64
import dataclasses
import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import accumulate
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from fedasym.checkpoint import write_atomic
from fedasym.methods import METHODS
from fedasym.plots import Line, draw_clients, draw_lines
from fedasym.record import read_json, read_rounds, summarise
from fedasym.settings import Settings

_REJECTIONS = 50  # listed on the page; all are in rounds.jsonl
_NAMING = ("seed", "rank", "split", "head", "num_rounds", "kind", "lr")  # tell runs of one method apart
_ABOUT = {knob.name.replace("_", "-"): str(knob.metadata["about"]) for knob in dataclasses.fields(Settings)}


@dataclass(frozen=True)
class _Run:
    folder: Path
    config: dict[str, Any]
    rounds: list[dict[str, Any]]
    summary: dict[str, Any]
    name: str

    @property
    def label(self) -> str:
        return METHODS[self.summary["method"]].label

    @property
    def metric(self) -> str:
        return str(self.summary["metric"])

    @property
    def settings(self) -> dict[str, Any]:
        return {key: value for key, value in self.config["settings"].items() if key != "out"}


def comparison_rows(folders: Sequence[Path]) -> list[dict[str, Any]]:
    """Return the side-by-side table, one row a run in the given order.

    The savings compare bytes per client and round, up and down, with a run of standard LoRA (``lora``) on the
    same model, of the same rank if there is one: ``1 − bytes / bytes of standard LoRA``. ``saving`` is as
    measured, with the output layer where it travels; ``saving_adapter`` counts the adapters' float32 values
    alone. Both are None without such a run.

    Raises:
        ValueError: a folder has no finished round.
    """
    return _rows(_read_runs(folders))


def comparison_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Lay out the rows of `comparison_rows` for a terminal of 100 columns."""
    table = Table(
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        caption="Bytes are payload (float32 values), up and down per client and round; 1 MB = 10⁶ B. "
        "Saving against standard LoRA, per client and round.",
        caption_justify="left",
    )
    metrics = {row["metric"] for row in rows}
    table.add_column("run", overflow="fold")
    metric = metrics.pop() if len(metrics) == 1 else "metric"
    for heading in (metric, "best", "up", "down", "total", "saving", "adapters\nonly", "mismatch"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            Text(row["name"]),
            f"{row['final']:.4f}",
            f"{row['best']:.4f}",
            human_bytes(row["payload_up_per_client_round"]),
            human_bytes(row["payload_down_per_client_round"]),
            human_bytes(row["payload_total"]),
            _percent(row["saving"]),
            _percent(row["saving_adapter"]),
            f"{row['mismatch']:.1e}",
        )
    return table


def write_report(folders: Sequence[Path], out: Path) -> None:
    """Write one self-contained HTML page about one run, or several side by side.

    Args:
        folders: run folders, in the page's order.
        out: the HTML file; its figures are written to ``plots/`` beside it too.

    Raises:
        ValueError: no folder, or one without a finished round.
    """
    runs = _read_runs(folders)
    figures = _figures(runs)
    plots = out.parent / "plots"
    plots.mkdir(parents=True, exist_ok=True)
    for name, (_, png) in figures.items():
        write_atomic(plots / f"{name}.png", png)
    write_atomic(out, _page(runs, figures).encode())


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


def run_command(settings: Mapping[str, Any]) -> str:
    """Return the shell command that runs resolved settings again, naming only what differs from the defaults.

    Args:
        settings: as in config.json, with ``_`` in the keys. ``out`` is left out: that folder
            holds this run already.
    """
    changed = {key: settings[key] for key in ("method", "model") if settings[key] != getattr(Settings(), key)}
    defaults = dataclasses.asdict(Settings(**changed).resolved())
    changed |= {key: value for key, value in settings.items() if key != "out" and value != defaults.get(key)}
    if not changed:
        return "flwr run ."
    pairs = " ".join(f"{key.replace('_', '-')}={_toml(value)}" for key, value in changed.items())
    return f"flwr run . --run-config {shlex.quote(pairs)}"


def _toml(value: Any) -> str:
    if isinstance(value, str) and '"' in value:
        return f"'{value}'"
    return json.dumps(value, ensure_ascii=False)


def _read_runs(folders: Sequence[Path]) -> list[_Run]:
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
        runs.append(_Run(folder, config, rounds, summary, ""))
    return [dataclasses.replace(run, name=_name(run, runs)) for run in runs]


def _name(run: _Run, runs: Sequence[_Run]) -> str:
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


def _rows(runs: Sequence[_Run]) -> list[dict[str, Any]]:
    copied = (
        "metric", "final", "best", "rounds", "payload_up_per_client_round", "payload_down_per_client_round",
        "payload_total", "message_total", "mismatch",
    )  # fmt: skip
    rows = []
    for run in runs:
        lora = _reference(run, runs)
        rows.append(
            {
                "name": run.name,
                "method": run.label,
                **{key: run.summary[key] for key in copied},
                "adapter_values": _adapter_values(run),
                "head_values": run.config["head_values"],
                "saving": 1.0 - _traffic(run) / _traffic(lora) if lora else None,
                "saving_adapter": 1.0 - _adapter_values(run) / _adapter_values(lora) if lora else None,
            }
        )
    return rows


def _reference(run: _Run, runs: Sequence[_Run]) -> _Run | None:
    """Return the run of standard LoRA on the same model, of the same rank if there is one."""
    of_lora = [other for other in runs if other.settings["method"] == "lora"]
    same = [other for other in of_lora if other.settings["model"] == run.settings["model"]]
    equal = [other for other in same if other.settings["rank"] == run.settings["rank"]]
    return next(iter(equal + same), None)


def _traffic(run: _Run) -> float:
    """Payload bytes per client and round, both ways."""
    return float(run.summary["payload_up_per_client_round"] + run.summary["payload_down_per_client_round"])


def _adapter_values(run: _Run) -> int:
    return int(run.config["trainable_values"] - run.config["head_values"])


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f} %".replace("-", "−")


def _figures(runs: Sequence[_Run]) -> dict[str, tuple[str, bytes]]:
    """Return caption and PNG by file name: the runs' lines, then one figure a partition."""

    def draw(y_label: str, value: Callable[[_Run, Any], float | None], y_log: bool = False) -> bytes:
        lines = []
        for run in runs:
            points = [(row["round"], value(run, row)) for row in run.rounds]
            known = [(x, y) for x, y in points if y is not None]
            lines.append(Line(run.name, run.label, [x for x, _ in known], [y for _, y in known]))
        return draw_lines(lines, f"{y_label[0].upper()}{y_label[1:]} by round", "round", y_label, y_log=y_log)

    metric = " / ".join(dict.fromkeys(run.metric for run in runs))
    figures = {"metric": ("", draw(metric, lambda run, row: row["metrics"][run.metric]))}
    spent = []
    for run in runs:
        sent = list(accumulate(row["payload_up"] + row["payload_down"] for row in run.rounds))
        spent.append(Line(run.name, run.label, sent, [row["metrics"][run.metric] for row in run.rounds]))
    title, below = f"{metric[0].upper()}{metric[1:]} by bytes sent", "payload so far, all clients, up + down"
    figures["metric-by-bytes"] = ("", draw_lines(spent, title, below, metric, x_bytes=True))
    figures["train-loss"] = ("", draw("training loss", lambda run, row: row["train_loss"]))
    if any(row["mismatch"] > 0 for run in runs for row in run.rounds):
        figures["mismatch"] = ("", draw("mismatch", lambda run, row: row["mismatch"], y_log=True))
    if any(f"{run.metric}_after" in row["client_metrics"] for run in runs for row in run.rounds):
        figures["metric-at-clients"] = (
            "After local training, on the examples that the clients keep out.",
            draw(f"{metric} at clients", lambda run, row: row["client_metrics"].get(f"{run.metric}_after")),
        )
    partitions: dict[str, list[_Run]] = {}
    for run in runs:
        partitions.setdefault(run.config["partition"]["digest"], []).append(run)
    for place, (digest, sharing) in enumerate(partitions.items()):
        part = sharing[0].config["partition"]
        caption = f"Split {sharing[0].settings['split']}, partition digest {digest[:12]}"
        if len(partitions) > 1:
            caption += f"; of {'; '.join(run.name for run in sharing)}"
        name = "clients" if len(partitions) == 1 else f"clients-{place + 1}"
        figures[name] = (caption, draw_clients(part["sizes"], part["classes"], part["label_counts"]))
    return figures


def _page(runs: Sequence[_Run], figures: Mapping[str, tuple[str, bytes]]) -> str:
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
{_comparison_html(_rows(runs))}
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


def _sentence(runs: Sequence[_Run]) -> str:
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
            _percent(row["saving"]),
            _percent(row["saving_adapter"]),
            f"{row['mismatch']:.2e}",
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


def _rejections_html(runs: Sequence[_Run]) -> str:
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


def _origin(run: _Run) -> dict[str, Any]:
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


def _facts_html(runs: Sequence[_Run], columns: Sequence[Mapping[str, Any]], about: Mapping[str, str]) -> str:
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
