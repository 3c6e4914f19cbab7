"""The cells of a table: which must be there, where one stands, and what a label is written as."""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True, slots=True)
class Row:
    """Where an example stands, written as errors name it; its ``bytes`` are none, for it is no part of the example.

    Attributes:
        file: the file, or the hub's data set; "": the table says none.
        number: the row of that file, from 0.
        split: the split; "": it is of none.
    """

    file: str
    number: int
    split: str

    def __str__(self) -> str:
        return f"{self.file and f'{self.file}: '}{self.split and f'split {self.split!r}, '}row {self.number}"

    def __bytes__(self) -> bytes:
        return b""


def rows_of(frame: Any, split: str) -> list[Row]:
    """Name every row of a pandas DataFrame, by the label that it has there: ``(file, row)``, or the row."""
    labels = frame.index.tolist()
    pairs = [label if isinstance(label, tuple) else ("", label) for label in labels]
    return [Row(file, number, split) for file, number in pairs]


def row_at(frame: Any, place: int, split: str) -> Row:
    """Name the row at a place, as `rows_of`."""
    return rows_of(frame.iloc[[place]], split)[0]


def split_at(frame: Any, split: str) -> str:
    """Name a split with its file, the first where there are several, as `rows_of` names a row."""
    files = frame.index.levels[0].tolist() if frame.index.nlevels == 2 else []
    more = f" and {len(files) - 1} more" if len(files) > 1 else ""
    named = [f"{files[0]}{more}"] if files else []
    return ": ".join([*named, *([f"split {split!r}"] if split else [])])


def placed(frame: Any, file: str, first: int = 0) -> Any:
    """Give each row of a DataFrame the label ``(file, row)``, by which errors name it; return the same frame."""
    import pandas as pd

    frame.index = pd.MultiIndex.from_product([[file], range(first, first + len(frame))])
    return frame


def require_cells(frame: Any, columns: tuple[str, ...], split: str, advice: str) -> None:
    """Require at least one row, and the given columns without an empty cell.

    Args:
        frame: a pandas DataFrame.
        columns: their names.
        split: what the table is called in errors.
        advice: what to do where a column is missing.

    Raises:
        ValueError: names file, split, column and row.
    """
    if not len(frame):
        raise ValueError(f"{split_at(frame, split)} holds no examples")
    missing = [name for name in columns if name not in frame.columns]
    if missing:
        raise ValueError(
            f"{split_at(frame, split)} has no column {', '.join(missing)}; it has "
            f"{', '.join(map(str, frame.columns))}; {advice}"
        )
    for column in columns:
        if (frame.columns == column).sum() > 1:
            raise ValueError(f"{split_at(frame, split)} has {column!r} more than once; give each column its own name")
        empty = np.flatnonzero(frame[column].isna().to_numpy())
        if empty.size:
            raise ValueError(f"{row_at(frame, int(empty[0]), split)}: column {column!r} is empty; fill or drop it")


def texts_in(frame: Any, column: str, split: str, *, blank: bool = False) -> list[str]:
    """Return the texts of a column; a number is the text that it is written as.

    Args:
        frame: a pandas DataFrame.
        column: its name.
        split: what the table is called in errors.
        blank: whether a text may be blank.

    Raises:
        ValueError: a cell is a list or the like, or blank; names split, row and column.
    """
    cells = frame[column].tolist()
    for place, cell in enumerate(cells):
        if not isinstance(cell, (str, int, float)):
            raise ValueError(
                f"{row_at(frame, place, split)}: column {column!r} holds a {type(cell).__name__}, expected a text; "
                "write it as one"
            )
        if not blank and isinstance(cell, str) and not cell.strip():
            raise ValueError(f"{row_at(frame, place, split)}: column {column!r} is blank; fill or drop it")
    return [str(cell) for cell in cells]


def labels_in(frame: Any, column: str, split: str) -> list[str]:
    """Return the class names of a label column, row by row.

    Raises:
        ValueError: a label is no single value, or begins or ends with a space; names split, row and column.
    """
    cells = frame[column].tolist()
    names = []
    for place, cell in enumerate(cells):
        if not isinstance(cell, (str, bool, int, float)):
            raise ValueError(
                f"{row_at(frame, place, split)}: column {column!r} holds a {type(cell).__name__} ({cell!r:.60}), and a "
                "label is one value; give one class a row"
            )
        names.append(name := class_name(cell))
        if name != name.strip():
            raise ValueError(
                f"{row_at(frame, place, split)}: the label {name!r} in column {column!r} begins or ends with a space; "
                "take it off"
            )
    return names


def one_row(columns: Sequence[str], words: Sequence[str]) -> dict[str, str]:
    """Return a row of texts by column.

    Raises:
        ValueError: not one text for each column.

    >>> one_row(("premise", "hypothesis"), ("It rains.", "It is wet."))
    {'premise': 'It rains.', 'hypothesis': 'It is wet.'}
    """
    if len(words) != len(columns):
        raise ValueError(
            f"{len(words)} given, and the model reads {len(columns)}: {', '.join(columns)}; give each of them, in this "
            "order, in quotes"
        )
    return dict(zip(columns, words, strict=True))


def class_names_in(column: Any) -> tuple[str, ...]:
    """Return the class names of a label column, as `in_order`.

    Words they are too where one of them is read as a number without an order, such as ``nan``, or without an end.
    """
    return in_order({class_name(value) for value in column.tolist()})


def in_order(names: Iterable[str]) -> tuple[str, ...]:
    """Return different class names: numbers in the order of numbers, else words in the order of words.

    >>> in_order(["10", "9"]), in_order(["b", "nan", "a"])
    (('9', '10'), ('a', 'b', 'nan'))
    """
    names = {*names}
    try:
        numbers = {name: float(name) for name in names}
    except ValueError:
        return tuple(sorted(names))
    if not all(map(math.isfinite, numbers.values())):
        return tuple(sorted(names))
    return tuple(sorted(names, key=lambda name: (numbers[name], name)))


def in_order_of(names: Sequence[str], order: Sequence[str]) -> tuple[str, ...]:
    """Return class names in the order of a checkpoint's; case, spaces, ``-`` and ``_`` make no difference.

    Names that are the ids themselves stand for them; of another number of classes the checkpoint has no say.

    Args:
        names: of the data.
        order: the checkpoint's, by id; empty: it has none.

    Raises:
        ValueError: they are not the same names.

    >>> in_order_of(("entailment", "neutral"), ("NEUTRAL", "ENTAILMENT")), in_order_of(("0", "1"), ("no", "yes"))
    (('neutral', 'entailment'), ('0', '1'))
    """
    if len(names) != len(order) or [*names] == [str(number) for number in range(len(names))]:
        return tuple(names)
    ours = {_plain(name): name for name in names}
    if ours.keys() != {_plain(name) for name in order} or len(ours) < len(names):
        raise ValueError(
            f"the data's classes are {', '.join(names)}, and the checkpoint's output layer tells apart "
            f"{', '.join(order)}: which is which would be guessed; name the data's classes so, or set "
            "fresh-head=true to draw an output layer anew"
        )
    return tuple(ours[_plain(name)] for name in order)


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", " ", name).strip().casefold()


def class_name(value: Any) -> str:
    """Write a label as text: 1, 1.0 and True are one class; the words v1 and v1.0 are two.

    >>> class_name(1.0), class_name(True), class_name("v1.0")
    ('1', '1', 'v1.0')
    """
    if isinstance(value, bool):
        return str(int(value))
    text = str(value)
    return text.partition(".")[0] if re.fullmatch(r"[+-]?[0-9]+\.0+", text) else text
