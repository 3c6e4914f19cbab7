"""The examples of a run: read, checked cell by cell, capped and cut."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedasym.data.image_folder import FOLDERS, cut_names
from fedasym.data.settings import DataSettings
from fedasym.data.sources import read_split
from fedasym.fields import names_in
from fedasym.rng import generator
from fedasym.tasks import task_of
from fedasym.tasks.base import Examples, Task
from fedasym.tasks.columns import class_name, class_names_in, require_cells

log = logging.getLogger("fedasym")


def load_examples(settings: DataSettings, order: tuple[str, ...] = ()) -> tuple[Examples, Examples]:
    """Load the training and the held-out examples that the settings name.

    With ``validation-cut`` the held-out examples are cut off the training data (by the seed) and the test split is
    not read, so that tuning never sees it. ``train-cap`` comes before that cut; the examples it leaves are the same
    for every seed, and so are those of ``test-cap``. Of images in folders the cut comes first and counts names, all of
    whose images are cut off together; those of the domain that is held out, if there is one, are the held-out examples.

    Args:
        settings: where they are.
        order: the classes of the checkpoint's own output layer, by id (`Task.ordered`); empty: it has none.

    Returns:
        Training examples and held-out examples, with common class names.

    Raises:
        ValueError: a missing column, an empty cell, a label that is no number where a score is wanted, fewer
            than two classes, or a cut that leaves no training data.
        FileNotFoundError: a local folder without the wanted file.
        ConnectionError: the hub cannot be reached.
        ModuleNotFoundError: the demo's packages are not installed.
    """
    task = task_of(settings).ordered(order)
    train, held = _rows(task, settings, task.train_split), None
    if settings.validation_cut and task.layout in FOLDERS:
        cut = cut_names(train, settings.validation_cut, settings.seed)
        held = _rows(task, settings, f"{task.train_split}/{task.hold_out}") if task.hold_out else train
        held, train = held[held["name"].isin(cut)], train[~train["name"].isin(cut)]
    train = _capped(train, settings.train_cap, "train-cap")
    if settings.validation_cut and held is None:
        if settings.validation_cut >= len(train):
            raise ValueError(f"validation-cut={settings.validation_cut} leaves nothing of {len(train)} examples")
        drawn = generator(settings.seed, "validation-cut").permutation(len(train))
        held = train.iloc[drawn[: settings.validation_cut]]
        train = train.iloc[np.sort(drawn[settings.validation_cut :])]
    task.require(train, task.train_split)
    if held is not None:
        task.require(held, task.train_split)
    names = task.classes(train)
    examples = task.examples(train, names, task.train_split)
    column, _ = settings.dealt_column
    if column:
        examples = replace(examples, groups=_groups(train, column, task.train_split))
    if held is not None:
        return examples, task.examples(held, names, task.train_split)
    return examples, load_held_out(settings, names, order)


def load_held_out(settings: DataSettings, names: tuple[str, ...], order: tuple[str, ...] = ()) -> Examples:
    """Load what judges a run alone: the test split of the task, or of what judges it, capped by ``test-cap``.

    Args:
        settings: where it is.
        names: the classes by id; empty for a regression.
        order: as in `load_examples`.

    Raises:
        ValueError, FileNotFoundError, ConnectionError: as `load_examples`.
    """
    task = task_of(settings).ordered(order).judge
    if task.shown:
        task = replace(task, inputs=task.shown(_rows(task, settings, task.train_split)))
    held = _capped(_rows(task, settings, task.test_split), settings.test_cap, "test-cap")
    task.require(held, task.test_split)
    return task.examples(held, names, task.test_split)


def load_own_examples(settings: DataSettings, folder: Path, order: tuple[str, ...] = ()) -> Examples:
    """Load the training examples of a site from its own folder, ``TRAIN_SPLIT.parquet``, .csv, .tsv or .jsonl.

    The classes are those that the settings name, whether or not the site has examples of each.

    Raises:
        ValueError: a missing column, an empty cell, a label that is none of the run's, or fewer than ``min-examples``.
        FileNotFoundError: no such folder, or no such file in it.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no data folder {folder}")
    task = replace(task_of(settings).ordered(order), data=str(folder.absolute()), data_config="")
    frame = _capped(_rows(task, settings, task.train_split), settings.train_cap, "train-cap")
    task.require(frame, task.train_split)
    if len(frame) < settings.min_examples:
        raise ValueError(f"{folder} holds {len(frame)} examples, fewer than min-examples={settings.min_examples}")
    return task.examples(frame, task.class_names, task.train_split)


def load_extra_examples(
    settings: DataSettings, names: tuple[str, ...] = (), order: tuple[str, ...] = ()
) -> dict[str, Examples]:
    """Load the task's further held-out splits (MNLI's mismatched one), capped like the first by ``test-cap``.

    Args:
        settings: where they are.
        names: the classes by id, where the task itself does not know them.
        order: as in `load_examples`.

    Returns:
        Examples by the suffix of their metrics' names. With ``validation-cut`` none, since no test split is read; but
        of domains those that are cut off.

    Raises:
        ValueError, FileNotFoundError, ConnectionError: as `load_examples`.
    """
    task = task_of(settings).ordered(order)
    frames = {}
    if not settings.validation_cut:
        frames = {
            name: _capped(_rows(task, settings, split), settings.test_cap, "test-cap")
            for name, split in task.extra_splits
        }
    elif task.layout == "domains":
        train = _rows(task, settings, task.train_split)
        cut = train[train["name"].isin(cut_names(train, settings.validation_cut, settings.seed))]
        frames = {domain: cut[cut["domain"] == domain] for domain, _ in task.extra_splits}
    extra = {}
    for suffix, split in task.extra_splits:
        if suffix in frames:
            task.require(frames[suffix], split)
            extra[suffix] = task.examples(frames[suffix], task.class_names or names, split)
    return extra


def _rows(task: Task, settings: DataSettings, split: str) -> Any:
    """Read a split, less the rows whose label is one of ``drop-labels``."""
    frame, dropped = read_split(task, split), names_in(settings.drop_labels)
    columns = task.target.columns if task.target.classified else ()
    if not dropped or not columns or columns[0] not in frame.columns:
        return frame
    kept = [isinstance(cell, list) or class_name(cell) not in dropped for cell in frame[columns[0]].tolist()]
    if not all(kept):
        log.info("split %r: %d of %d rows are left out, labelled %s", split, kept.count(False), len(kept), dropped)
    return frame[kept]


def _capped(frame: Any, cap: int, purpose: str) -> Any:
    """Draw at most ``cap`` rows (0: all), in file order; the seed is fixed, so that all runs see the same rows."""
    if not 0 < cap < len(frame):
        return frame
    return frame.iloc[np.sort(generator(0, purpose).permutation(len(frame))[:cap])]


def _groups(frame: Any, column: str, split: str) -> NDArray[np.int64]:
    """Return each row's value in a column as an id, in the order of the values."""
    require_cells(frame, (column,), split, "set split to another column")
    ids = {name: i for i, name in enumerate(class_names_in(frame[column]))}
    return np.asarray([ids[class_name(value)] for value in frame[column].tolist()], np.int64)
