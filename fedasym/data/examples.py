"""Examples of a task: texts and labels, checked cell by cell, capped and cut."""

import math
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedasym.data.settings import DataSettings
from fedasym.data.sources import read_split
from fedasym.rng import generator
from fedasym.tasks import glue, task_of
from fedasym.tasks.base import Task


@dataclass(frozen=True)
class Examples:
    """Texts and labels in file order.

    Attributes:
        texts: one list per text column, each of n strings.
        labels: ``(n,)``: class ids int64, or scores float32.
        class_names: names of the classes by id; empty for regression.
        groups: ``(n,)`` int64, the id of each one's value in the column that ``split="column:NAME"`` names; ids are in
            the order of the values. None with every other split.
    """

    texts: tuple[list[str], ...]
    labels: NDArray[Any]
    class_names: tuple[str, ...]
    groups: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: NDArray[np.int64]) -> "Examples":
        """Return the examples at the given places, in that order."""
        texts = tuple([column[i] for i in indices] for column in self.texts)
        groups = None if self.groups is None else self.groups[indices]
        return Examples(texts, self.labels[indices], self.class_names, groups)


def load_examples(settings: DataSettings) -> tuple[Examples, Examples]:
    """Load the training and the held-out examples that the settings name.

    With ``validation-cut`` the held-out examples are cut off the training data (by the seed) and the test split is
    not read, so that tuning never sees it. ``train-cap`` comes before that cut; the examples it leaves are the same
    for every seed, and so are those of ``test-cap``.

    Returns:
        Training examples and held-out examples, with common class names.

    Raises:
        ValueError: a missing column, an empty cell, a label that is no number where a score is wanted, fewer
            than two classes, or a cut that leaves no training data.
        FileNotFoundError: a local folder without the wanted file.
        ConnectionError: the hub cannot be reached.
        ModuleNotFoundError: the demo's packages are not installed.
    """
    task = task_of(settings)
    train = _capped(read_split(task, task.train_split), settings.train_cap, "train-cap")
    held = None
    if settings.validation_cut:
        if settings.validation_cut >= len(train):
            raise ValueError(f"validation-cut={settings.validation_cut} leaves nothing of {len(train)} examples")
        order = generator(settings.seed, "validation-cut").permutation(len(train))
        held = train.iloc[order[: settings.validation_cut]]
        train = train.iloc[np.sort(order[settings.validation_cut :])]
    _require_cells(train, task, task.train_split)
    if held is not None:
        _require_cells(held, task, task.train_split)
    names = task.label_names
    if not names and not task.regression:
        names = _class_names(train[task.label_column])
        if len(names) < 2:
            raise ValueError(f"column {task.label_column!r} of {task.data!r} holds {len(names)} classes; need 2")
    examples = _examples(train, task, names, task.train_split)
    kind, _, column = settings.split.partition(":")
    if kind == "column" and column:
        examples = replace(examples, groups=_groups(train, column, task.train_split))
    if held is not None:
        return examples, _examples(held, task, names, task.train_split)
    return examples, load_held_out(settings, names)


def load_held_out(settings: DataSettings, names: tuple[str, ...]) -> Examples:
    """Load the test split alone, capped by ``test-cap``.

    Args:
        settings: where it is.
        names: the classes by id; empty for a regression.

    Raises:
        ValueError, FileNotFoundError, ConnectionError: as `load_examples`.
    """
    task = task_of(settings)
    held = _capped(read_split(task, task.test_split), settings.test_cap, "test-cap")
    _require_cells(held, task, task.test_split)
    return _examples(held, task, names, task.test_split)


def load_own_examples(settings: DataSettings, folder: Path) -> Examples:
    """Load the training examples of a site from its own folder, ``TRAIN_SPLIT.parquet``, .csv, .tsv or .jsonl.

    The classes are those that the settings name, whether or not the site has examples of each.

    Raises:
        ValueError: a missing column, an empty cell, a label that is none of the run's, or fewer than ``min-examples``.
        FileNotFoundError: no such folder, or no such file in it.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no data folder {folder}")
    task = replace(task_of(settings), data=str(folder.absolute()), data_config="")
    frame = _capped(read_split(task, task.train_split), settings.train_cap, "train-cap")
    _require_cells(frame, task, task.train_split)
    if len(frame) < settings.min_examples:
        raise ValueError(f"{folder} holds {len(frame)} examples, fewer than min-examples={settings.min_examples}")
    return _examples(frame, task, task.label_names, task.train_split)


def load_extra_examples(settings: DataSettings) -> dict[str, Examples]:
    """Load the task's further held-out splits (MNLI's mismatched one), capped like the first by ``test-cap``.

    Returns:
        Examples by the suffix of their metrics' names. With ``validation-cut`` none: no test split is read.

    Raises:
        ValueError, FileNotFoundError, ConnectionError: as `load_examples`.
    """
    task = task_of(settings)
    extra = {}
    for suffix, split in () if settings.validation_cut else task.extra_splits:
        frame = _capped(read_split(task, split), settings.test_cap, "test-cap")
        _require_cells(frame, task, split)
        extra[suffix] = _examples(frame, task, task.label_names, split)
    return extra


def _capped(frame: Any, cap: int, purpose: str) -> Any:
    """Draw at most ``cap`` rows (0: all), in file order; the seed is fixed, so that all runs see the same rows."""
    if not 0 < cap < len(frame):
        return frame
    return frame.iloc[np.sort(generator(0, purpose).permutation(len(frame))[:cap])]


def _groups(frame: Any, column: str, split: str) -> NDArray[np.int64]:
    """Return each row's value in a column as an id, in the order of the values."""
    _require_columns(frame, (column,), split, "set split to another column")
    ids = {name: i for i, name in enumerate(_class_names(frame[column]))}
    return np.asarray([ids[_class_name(value)] for value in frame[column].tolist()], np.int64)


def _class_names(column: Any) -> tuple[str, ...]:
    """Return the class names of a label column: numbers in the order of numbers, else words in the order of words.

    Words they are too where one of them is read as a number without an order, such as ``nan``, or without an end.
    """
    names = {_class_name(value) for value in column.tolist()}
    try:
        numbers = {name: float(name) for name in names}
    except ValueError:
        return tuple(sorted(names))
    if not all(map(math.isfinite, numbers.values())):
        return tuple(sorted(names))
    return tuple(sorted(names, key=lambda name: (numbers[name], name)))


def _class_name(value: Any) -> str:
    """Write a label as text: 1, 1.0 and True are one class; the words v1 and v1.0 are two."""
    if isinstance(value, bool):
        return str(int(value))
    text = str(value)
    return text.partition(".")[0] if re.fullmatch(r"[+-]?[0-9]+\.0+", text) else text


def _require_cells(frame: Any, task: Task, split: str) -> None:
    """Require at least one row, and the task's columns without an empty cell."""
    advice = "set text-columns and label-column"
    if task.name in glue.TABLE:
        advice = f"give the folder GLUE's layout, that of {glue.HUB}"
    _require_columns(frame, (*task.text_columns, task.label_column), split, advice)


def _require_columns(frame: Any, columns: tuple[str, ...], split: str, advice: str) -> None:
    if not len(frame):
        raise ValueError(f"split {split!r} holds no examples")
    missing = [name for name in columns if name not in frame.columns]
    if missing:
        raise ValueError(
            f"split {split!r} has no column {', '.join(missing)}; it has {', '.join(map(str, frame.columns))}; {advice}"
        )
    for column in columns:
        empty = np.flatnonzero(frame[column].isna().to_numpy())
        if empty.size:
            row = frame.index[int(empty[0])]
            raise ValueError(f"split {split!r}, row {row}: column {column!r} is empty; fill or drop it")


def _examples(frame: Any, task: Task, names: tuple[str, ...], split: str) -> Examples:
    texts = tuple(frame[column].astype(str).tolist() for column in task.text_columns)
    raw = frame[task.label_column].tolist()
    labels: NDArray[Any]
    if task.regression:
        try:
            labels = np.asarray([float(value) for value in raw], np.float32)
        except (TypeError, ValueError) as error:
            raise ValueError(f"split {split!r}: column {task.label_column!r} must hold numbers ({error})") from None
        if not np.isfinite(labels).all():
            raise ValueError(f"split {split!r}: column {task.label_column!r} holds values that are not finite")
        return Examples(texts, labels, names)
    ids = {value: i for i, value in enumerate(task.class_values or names)}
    unknown = sorted({_class_name(value) for value in raw} - ids.keys())
    if unknown and task.class_values:
        hint = "GLUE's test splits are unlabelled" if task.name in glue.TABLE else "set labels, or mend the data"
        raise ValueError(
            f"split {split!r} holds the labels {', '.join(unknown)}; those of {task.name} are {', '.join(ids)} "
            f"({', '.join(names)}); {hint}"
        )
    if unknown:
        raise ValueError(
            f"split {split!r} holds the classes {', '.join(unknown)}, which the training data do not have "
            f"({', '.join(names)}); a hub's test split may be unlabelled: set test-split, e.g. to 'validation'"
        )
    return Examples(texts, np.asarray([ids[_class_name(value)] for value in raw], np.int64), names)
