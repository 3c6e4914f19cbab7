"""A table as plain data, written as Markdown or as HTML."""

from collections.abc import Sequence
from html import escape
from typing import NamedTuple


class Entry(NamedTuple):
    """One entry: its text, what stands small beneath it, whether it is set bold, and a sign that follows it."""

    text: str
    small: str = ""
    strong: bool = False
    sign: str = ""


class Sheet(NamedTuple):
    """A table: the first entry of a row names it; a row of one entry is a heading across all columns."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Entry]]
    note: str = ""


def to_markdown(sheet: Sheet) -> str:
    """Write the table as Markdown, its note below; what stands small is in parentheses."""

    def write(entry: Entry) -> str:
        text = f"**{entry.text}**" if entry.strong and entry.text else entry.text
        text += f" {entry.sign}" if entry.sign else ""
        return (text + (f" ({entry.small})" if entry.small else "")).replace("|", "\\|").replace("\n", " ")

    width = len(sheet.columns)
    lines = [" | ".join(name.replace("\n", " ") for name in sheet.columns), " | ".join(["---"] * width)]
    for row in sheet.rows:
        cells = [f"*{row[0].text}*"] + [""] * (width - 1) if len(row) == 1 else [write(entry) for entry in row]
        lines.append(" | ".join(cells))
    table = "\n".join(f"| {line} |" for line in lines)
    return table + (f"\n\n{sheet.note}" if sheet.note else "")


def to_html(sheet: Sheet, kind: str = "numbers") -> str:
    """Write the table as HTML under its title, its note below; ``kind`` is the class that styles it."""
    body = ""
    for name, *entries in sheet.rows:
        small = f"<small>{escape(name.small)}</small>" if name.small else ""
        if not entries:
            body += f'<tr class="block"><th colspan="{len(sheet.columns)}">{escape(name.text)}{small}</th></tr>\n'
            continue
        cells = "".join(_html(entry) for entry in entries)
        body += f'<tr><th scope="row">{escape(name.text)}{small}</th>{cells}</tr>\n'
    heads = "".join(f'<th scope="col">{escape(name).replace(chr(10), "<br>")}</th>' for name in sheet.columns)
    title = f"<h3>{escape(sheet.title)}</h3>\n" if sheet.title else ""
    note = f'\n<p class="note">{escape(sheet.note)}</p>' if sheet.note else ""
    return f"""<section class="sheet">{title}<div class="scroll"><table class="{kind}">
<thead><tr>{heads}</tr></thead>
<tbody>
{body}</tbody></table></div>{note}</section>"""


def _html(entry: Entry) -> str:
    text = f"<strong>{escape(entry.text)}</strong>" if entry.strong else escape(entry.text)
    text += f'<span class="sign">{escape(entry.sign)}</span>' if entry.sign else ""
    return f"<td>{text}{f'<small>{escape(entry.small)}</small>' if entry.small else ''}</td>"
