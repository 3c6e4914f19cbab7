"""The shell of every page: one HTML document without scripts or outside resources, its style, its figures.

Mostly the style sheet.
"""

import base64
from collections.abc import Mapping
from html import escape


def document(title: str, body: str) -> str:
    """Return a whole HTML document; the title is escaped, the body is HTML already."""
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{STYLE}</style>
</head>
<body>
<h1>{escape(title)}</h1>
{body}
</body>
</html>
"""


def figures_html(figures: Mapping[str, tuple[str, bytes]], wide: tuple[str, ...]) -> str:
    """Return the figures with their PNG inside them.

    Args:
        figures: (caption, PNG) by name.
        wide: beginnings of the names of figures that take the page's width; the others take half.
    """
    images = "\n".join(
        f'<figure class="{"wide" if name.startswith(wide) else "half"}">'
        f'<img alt="{escape(name)}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'
        + (f"<figcaption>{escape(caption)}</figcaption>" if caption else "")
        + "</figure>"
        for name, (caption, png) in figures.items()
    )
    return f'<div class="figures">\n{images}\n</div>'


STYLE = """
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
"""
