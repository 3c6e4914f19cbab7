"""Images in folders as a table: DomainBed's ``DOMAIN/CLASS/NAME.png``, and ``[SPLIT/]CLASS/NAME.png``.

The table's columns are ``image`` (the file's absolute `Path`), ``label`` (the class), ``name`` (the file's name without
its ending) and, of domains, ``domain``; its rows are in the order of the paths.

Where the folder does not hold a folder for each split, ``split.json`` in it says which name is in which split:
``{"train": [names], "validation": [names]}``. A name has one split, whatever the domain and the class, so that drawings
of one thing never stand on both sides. Without that file all images are for training, and ``validation-cut`` cuts names
off (`cut_names`). Hidden files and folders (``.name``) are left out; whatever else does not fit the layout is an error.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

from fedasym.ops import extras
from fedasym.rng import generator
from fedasym.tasks.base import Task
from fedasym.tasks.columns import row_at
from fedasym.tasks.images import domain_names

FOLDERS = ("domains", "classes")  # the layouts that are read here
DIVISION = "split.json"
ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm")
_SPLIT = (
    f"give each split a folder, or put a {DIVISION} there ({{split: [names]}}), or cut names off the training images "
    "by validation-cut"
)


def read_images(task: Task, folder: Path, split: str) -> Any:
    """Read one split of a folder of images as a pandas DataFrame.

    Args:
        task: has the layout, ``domains`` or ``classes``, the names of its splits, and the domain that is held out.
        folder: as laid out.
        split: its name; of domains ``SPLIT/DOMAIN`` is that of one domain. Otherwise the training split is of all but
            the domain that is held out, and any other of that domain alone; if none is held out, both of all domains.

    Raises:
        ValueError: something in the folder does not fit the layout, or leads out of it; names it.
        FileNotFoundError: no such split or domain; names those that are there.
    """
    with extras.named():
        import pandas as pd

    name, _, domain = split.partition("/") if task.layout == "domains" else (split, "", "")
    if task.layout == "domains":
        rows = _domains(task, folder, domain, name == task.train_split)
        division = folder
    else:
        division = folder if _divided(folder) else _folder_of(task, folder, name)
        rows = _classes(division, folder)
    if division == folder:
        rows = _of_split(rows, folder, name, task.train_split)
    columns = ["image", "label", "name", *(["domain"] if task.layout == "domains" else [])]
    return pd.DataFrame({column: [row[column] for row in rows] for column in columns}, columns=columns)


def cut_names(frame: Any, count: int, seed: int) -> set[str]:
    """Draw the names that ``validation-cut`` takes off the training images, so many of them, by the seed.

    Raises:
        ValueError: no name is left.
    """
    names = sorted(set(frame["name"]))
    if count >= len(names):
        raise ValueError(
            f"validation-cut={count} counts names in a folder of images, and leaves nothing of its {len(names)}"
        )
    return {names[place] for place in generator(seed, "validation-cut").permutation(len(names))[:count]}


def with_files(frame: Any, column: str, folder: Path, split: str) -> Any:
    """Return a local table with absolute `Path`s in place of the texts of its image column, relative to its folder.

    Raises:
        ValueError: a path that leads out of the folder; names its file and row.
        FileNotFoundError: there is no such file; names its file and row.
    """
    if column not in frame.columns:
        return frame  # which the task's own check names
    cells = frame[column].tolist()
    for place, cell in enumerate(cells):
        path = cell.get("path") if isinstance(cell, dict) and cell.get("bytes") is None else cell
        if isinstance(path, str):
            found = folder / path
            if not _inside(found, folder):
                raise ValueError(
                    f"{row_at(frame, place, split)}, column {column!r}: {path!r} leads out of {folder}, and paths are "
                    "relative to the table's folder; put the image there"
                )
            if not found.is_file():
                raise FileNotFoundError(
                    f"{row_at(frame, place, split)}, column {column!r}: there is no file {found}; put it there"
                )
            cells[place] = found.absolute()
    return frame.assign(**{column: np.fromiter(cells, object, len(cells))})


def _domains(task: Task, folder: Path, domain: str, training: bool) -> list[dict[str, Any]]:
    there = domain_names(folder)
    wanted = domain or ("" if training else task.hold_out)
    if wanted and wanted not in there:
        setting = "" if domain else "hold-out-domain="
        raise FileNotFoundError(f"{setting}{wanted!r} is none of the domains in {folder}: {', '.join(there) or 'none'}")
    chosen = [wanted] if wanted else [name for name in there if not training or name != task.hold_out]
    if not chosen:
        raise FileNotFoundError(f"{folder} holds no domain to train on, but for hold-out-domain={task.hold_out!r}")
    return [row | {"domain": name} for name in chosen for row in _classes(folder / name, folder)]


def _classes(folder: Path, whole: Path) -> list[dict[str, Any]]:
    """Return the images of ``CLASS/NAME.png`` in the order of their paths; none may lead out of the whole folder."""
    found = []
    for kind in _entries(folder):
        if not kind.is_dir():
            if folder == whole:
                continue  # a README and the like
            raise ValueError(f"{kind}: a file stands where the layout has a folder of a class; move it")
        for path in _entries(kind):
            if path.is_dir() or path.suffix.lower() not in ENDINGS:
                what = "a folder" if path.is_dir() else "no image by its name"
                raise ValueError(f"{path}: is {what}; a class holds images ({', '.join(ENDINGS)}) alone; move it")
            if not _inside(path, whole):
                raise ValueError(f"{path}: leads out of {whole}; put the image there itself")
            found.append({"image": path.absolute(), "label": kind.name, "name": path.stem})
    if not found:
        raise FileNotFoundError(f"{folder} holds no images CLASS/NAME.png")
    return found


def _folder_of(task: Task, folder: Path, split: str) -> Path:
    """Return where a split's classes are: a folder of its name that holds folders, or, of the training images, all."""
    own = folder / split
    holds = {path.is_dir() for path in _entries(own)} if own.is_dir() else set()
    if len(holds) > 1:
        raise ValueError(f"{own}: holds files and folders, so it may be a split or a class; move one kind")
    if holds == {True}:
        return own
    others = [path for path in _entries(folder) if path.is_dir()]
    if split == task.train_split and any(path.suffix.lower() in ENDINGS for each in others for path in _entries(each)):
        return folder
    there = ", ".join(path.name for path in others) or "none"
    raise FileNotFoundError(f"{folder} has no folder of the split {split!r}; its folders: {there}; {_SPLIT}")


def _divided(folder: Path) -> bool:
    return (folder / DIVISION).is_file()


def _of_split(rows: list[dict[str, Any]], folder: Path, split: str, training: str) -> list[dict[str, Any]]:
    """Return the rows of a split, by `DIVISION`; without one all, which are for training."""
    if not _divided(folder):
        if split != training:
            raise FileNotFoundError(f"{folder} has no split {split!r} beside {training!r}; {_SPLIT}")
        return rows
    file = folder / DIVISION
    try:
        said = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file}: is no JSON ({error}); mend it") from None
    if not isinstance(said, dict) or not all(
        isinstance(names, list) and all(isinstance(name, str) for name in names) for names in said.values()
    ):
        raise ValueError(f'{file}: should hold {{"train": [names], "validation": [names]}}')
    if split not in said:
        raise FileNotFoundError(f"{file} has no split {split!r}, it has {', '.join(said)}; set train-split, test-split")
    owner: dict[str, str] = {}
    for which, names in said.items():
        for name in names:
            if owner.setdefault(name, which) != which:
                raise ValueError(f"{file}: {name!r} is in {owner[name]!r} and in {which!r}; leave it in one")
    for row in rows:
        if row["name"] not in owner:
            raise ValueError(
                f"{file}: {row['name']!r} is in no split, and {row['image']} is there; add the name, without the ending"
            )
    found = [row for row in rows if owner[row["name"]] == split]
    if not found:
        raise ValueError(f"{file}: no image in {folder} has a name of the split {split!r}")
    return found


def _entries(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _inside(path: Path, folder: Path) -> bool:
    """Say whether a path, with every link followed, lies in a folder."""
    return path.resolve().is_relative_to(folder.resolve())
