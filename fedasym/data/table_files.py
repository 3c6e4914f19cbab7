"""One file of a table, read as it is written or refused by name: .parquet, .csv, .tsv, .jsonl.

Text stays as it is written: no word becomes a number, a date or a missing value. A ``.csv`` or ``.tsv`` is what
spreadsheets and pandas write: cells with a comma (a tab), a quote or a line end stand in quotes, a quote in them twice;
an empty cell is missing. A ``.jsonl`` holds one object a line. Both are UTF-8.
"""

import csv
import io
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from fedasym.ops import extras
from fedasym.tasks.columns import placed

_SURROGATE = "\\ud"  # how JSON writes the half of a character


class _Twice(ValueError):
    """Columns of one name; the text says which."""


def is_table(file: Path) -> bool:
    """Say whether a file is a table, by the end of its name: .parquet, .csv, .tsv or .jsonl."""
    return file.suffix in _READERS


def read_table(file: Path) -> Any:
    """Read one table as a pandas DataFrame, its rows named by file and number.

    Raises:
        ValueError: it is none of its format, or has two meanings; names file and, of text, line.
        FileNotFoundError: there is no such file.
        ModuleNotFoundError: the data's libraries are not installed; the text names the extra.
    """
    with extras.named():
        import pandas as pd  # noqa: F401 (a want of it is named here)
        import pyarrow  # noqa: F401
    if not file.is_file():
        raise FileNotFoundError(f"there is no file {file}")
    return placed(_READERS[file.suffix](file), str(file))


def _parquet(file: Path) -> Any:
    from pyarrow import parquet

    try:
        table = parquet.read_table(file)
        table.validate(full=True)  # the bytes of texts are looked at nowhere else before they are used
        frame = table.to_pandas()
    except Exception as error:  # of a damaged file the libraries raise whatever it makes of their code
        raise ValueError(f"{file}: cannot be read as parquet ({error}); mend it, or write it anew") from None
    _require_different(f"{file}", [str(name) for name in frame.columns])
    return frame


def _delimited(file: Path, delimiter: str) -> Any:
    import pandas as pd

    csv.field_size_limit(sys.maxsize)
    reader = csv.reader(io.StringIO(_text(file), newline=""), delimiter=delimiter, strict=True)
    try:
        rows = [(reader.line_num, row) for row in reader if row]
    except csv.Error as error:
        raise ValueError(
            f"{file}: line {reader.line_num} cannot be read ({error}); a cell that begins with a quote ends with one, "
            "and a quote in it stands twice: mend it, or write the file anew as .jsonl"
        ) from None
    if not rows:
        raise ValueError(f"{file}: is empty; its first line must name the columns")
    _, names = rows.pop(0)
    _require_different(f"{file}: line 1", names)
    for line, row in rows:
        if len(row) != len(names):
            raise ValueError(
                f"{file}: line {line} has {len(row)} fields, expected {len(names)} ({', '.join(names)}); put a cell "
                "that "
                f"holds {'a comma' if delimiter == ',' else 'a tab'} in quotes, and drop one that stands at the end "
                "alone"
            )
    cells = [[cell or None for cell in row] for _, row in rows]
    return pd.DataFrame(cells, columns=names, dtype=object)


def _lines(file: Path) -> Any:
    import pandas as pd

    rows = [_object(file, number, line) for number, line in _numbered(_text(file))]
    return pd.DataFrame(rows, dtype=object)


def _numbered(text: str) -> Iterator[tuple[int, str]]:
    return ((number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip())


def _object(file: Path, number: int, line: str) -> dict[str, Any]:
    """Read one line.

    Raises:
        ValueError: it is no object, or says something twice.
    """

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        _require_different(f"{file}: line {number}", [name for name, _ in pairs])
        return dict(pairs)

    try:
        found = json.loads(line, object_pairs_hook=once)
        if _SURROGATE in line.lower():
            json.dumps(found, ensure_ascii=False).encode()
    except _Twice:
        raise
    except (ValueError, RecursionError) as error:  # a number of thousands of digits and half of a character, too
        raise ValueError(
            f"{file}: line {number} is no JSON ({error!s:.200}); write one object a line, such as "
            '{"text": "good", "label": "yes"}'
        ) from None
    if not isinstance(found, dict):
        raise ValueError(
            f"{file}: line {number} holds a {type(found).__name__}, expected an object; write one row a line, such as "
            '{"text": "good", "label": "yes"}'
        )
    return found


def _text(file: Path) -> str:
    """Return a file's text.

    Raises:
        ValueError: it is not UTF-8; names line and byte.
    """
    raw = file.read_bytes()
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{file}: line {line} is not UTF-8 (byte 0x{raw[error.start]:02x} at {error.start}); write the file anew "
            f"in UTF-8, e.g. iconv -f latin1 -t utf-8 {file.name}, if that is what it is"
        ) from None


def _require_different(where: str, names: list[str]) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise _Twice(f"{where} names {', '.join(map(repr, twice))} more than once; give each column its own name")


_READERS: dict[str, Callable[[Path], Any]] = {
    ".parquet": _parquet,
    ".csv": lambda file: _delimited(file, ","),
    ".tsv": lambda file: _delimited(file, "\t"),
    ".jsonl": _lines,
}
