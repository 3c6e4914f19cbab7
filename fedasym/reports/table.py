"""A table as plain data; pages lay it out (`fedasym.reports.html_page`), `to_markdown` writes it as text."""

from collections.abc import Sequence
from typing import NamedTuple


class Entry(NamedTuple):
    """One entry: its text, the small lines beneath it, whether it is set bold, and a sign that follows it."""

    text: str
    small: str = ""
    strong: bool = False
    sign: str = ""


DASH = Entry("–")


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
