"""What all pages share: one HTML document without scripts or outside resources, its style, its tables and figures.

A page is a Jinja2 template that extends ``layout``. Templates are strings in Python files: Flower's app bundle takes no
files of HTML. Every value is escaped and none is marked as safe: what comes from a run's files stays text.
"""

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import DictLoader, Environment, StrictUndefined

from fedasym.files import write_atomic, writing

LAYOUT = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
body { font: 15px/1.5 system-ui, "Segoe UI", "Helvetica Neue", Arial, "DejaVu Sans", sans-serif;
  color: #1a1a1a; background: #fff; max-width: 980px; margin: 0 auto; padding: 24px 16px 48px; }
h1 { font-size: 26px; line-height: 1.2; margin: 0 0 4px; }
h2 { font-size: 18px; margin: 32px 0 8px; break-after: avoid; }
.lead { font-size: 16px; margin: 0 0 20px; color: #333; }
.note, figcaption { font-size: 13px; color: #4a4a4a; margin: 8px 0; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 13.5px; }
th, td { padding: 5px 8px; text-align: left; vertical-align: top; border-bottom: 1px solid #ddd; }
thead th { border-bottom: 2px solid #1a1a1a; vertical-align: bottom; line-height: 1.25; }
tr, .sheet { break-inside: avoid; }
h3 { font-size: 15px; margin: 22px 0 4px; break-after: avoid; }
.numbers td, .numbers thead th + th { text-align: right; font-variant-numeric: tabular-nums; }
.numbers td { white-space: nowrap; }
.sheet .numbers th[scope=row] { font-weight: 400; white-space: nowrap; }
.sheet .numbers td, .sheet .numbers thead th + th { padding-right: 10px; }
.sign { position: absolute; padding-left: 3px; }
.block th { font-weight: 400; font-style: italic; color: #4a4a4a; padding-top: 12px; }
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
.examples td { overflow-wrap: anywhere; }
.examples td.short { white-space: nowrap; }
.examples img { width: 64px; margin-top: 4px; image-rendering: pixelated; }
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
  .sheet .numbers td, .sheet .numbers thead th + th { padding-right: 11px; }
  img { max-height: 240mm; object-fit: contain; }
}
</style>
</head>
<body>
<h1>{{ title }}</h1>
{% block body required %}{% endblock %}
</body>
</html>
"""

MACROS = """{# A table and its note; kind is the class that styles it. #}
{% macro table(sheet, kind="numbers") %}
<div class="scroll"><table class="{{ kind }}">
<thead><tr>
{% for name in sheet.columns %}
  <th scope="col">{% for line in name.splitlines() %}{{ line }}{% if not loop.last %}<br>{% endif %}{% endfor %}</th>
{% endfor %}
</tr></thead>
<tbody>
{% for row in sheet.rows %}
{% if row | length == 1 %}
<tr class="block"><th colspan="{{ sheet.columns | length }}">{{ _entry(row[0]) }}</th></tr>
{% else %}
<tr><th scope="row">{{ _entry(row[0]) }}</th>
  {% for entry in row[1:] %}<td>{{ _entry(entry) }}</td>{% endfor %}
</tr>
{% endif %}
{% endfor %}
</tbody></table></div>
{% if sheet.note %}<p class="note">{{ sheet.note }}</p>{% endif %}
{% endmacro %}

{% macro _entry(entry) %}
{% if entry.strong %}<strong>{{ entry.text }}</strong>{% else %}{{ entry.text }}{% endif %}
{% if entry.sign %}<span class="sign">{{ entry.sign }}</span>{% endif %}
{% for line in entry.small.splitlines() %}<small>{{ line }}</small>{% endfor %}
{% endmacro %}

{# A table under its title. #}
{% macro section(sheet, kind="numbers") %}
<section class="sheet">
{% if sheet.title %}<h3>{{ sheet.title }}</h3>{% endif %}
{{ table(sheet, kind) }}
</section>
{% endmacro %}

{# Figures; the page's width for names that begin with wide (a text, or any of a tuple), half of it for others. #}
{% macro figures(drawn, wide) %}
<div class="figures">
{% for name, (caption, png) in drawn.items() %}
<figure class="{{ "wide" if name.startswith(wide) else "half" }}">
  <img alt="{{ name }}" src="data:image/png;base64,{{ png | base64 }}">
  {% if caption %}<figcaption>{{ caption }}</figcaption>{% endif %}
</figure>
{% endfor %}
</div>
{% endmacro %}
"""

_ENVIRONMENT = Environment(
    loader=DictLoader({"layout": LAYOUT, "macros": MACROS}),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
_ENVIRONMENT.filters["base64"] = lambda data: base64.b64encode(data).decode()


def render(template: str, **values: Any) -> str:
    """Return what a template makes of values.

    Args:
        template: its text; a page's begins with ``{% extends "layout" %}``, needs a ``title`` and fills ``body``.
        values: by name; each is escaped where it stands.

    Raises:
        jinja2.UndefinedError: the template names a value that is not given.
    """
    return _ENVIRONMENT.from_string(template).render(values)


def write_page(out: Path, page: str, figures: Mapping[str, tuple[str, bytes]]) -> None:
    """Write a page, and its figures as PNG to ``plots/`` beside it.

    Args:
        out: the HTML file.
        page: its text.
        figures: (caption, PNG) by name.
    """
    plots = out.parent / "plots"
    with writing(plots):
        plots.mkdir(parents=True, exist_ok=True)
    for name, (_, png) in figures.items():
        write_atomic(plots / f"{name}.png", png)
    write_atomic(out, page.encode())
