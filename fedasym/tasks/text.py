"""Classification and regression of texts over columns of one's own, and the demo's reviews."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fedasym.tasks.base import Encoded, Examples, Inputs, Target, Task, Told
from fedasym.tasks.columns import one_row, row_at, texts_in
from fedasym.tasks.targets import Classes, Scores

if TYPE_CHECKING:
    from torch import Tensor

    from fedasym.tasks.settings import TaskSettings

_PROBE = (1, 2, 4)  # words of the rows of a fixed input, so that two of them are padded
_SECOND = "second_"  # inputs of a pair's second text, where the two stand apart


@dataclass(frozen=True)
class Texts:
    """One text, or a pair of them.

    Attributes:
        columns: one, or two for pairs.
    """

    columns: tuple[str, ...]
    model_class = "AutoModelForSequenceClassification"
    processor_class = "AutoTokenizer"

    @property
    def pooling(self) -> str:
        """The mean of a text's token vectors; of pairs each text's."""
        return "pair" if len(self.columns) == 2 else "mean"

    @property
    def asked(self) -> Inputs:
        """The object itself."""
        return self

    def row(self, words: Sequence[str]) -> dict[str, Any]:
        """Return a text for each column."""
        return {**one_row(self.columns, words)}

    def told(self, examples: Examples) -> list[Told]:
        """Return the texts, a pair's below each other."""
        return [Told("\n".join(texts)) for texts in zip(*examples.inputs, strict=True)]

    def read(self, frame: Any, split: str) -> tuple[list[str], ...]:
        """Return the texts; of a pair one may be blank.

        Raises:
            ValueError: a cell is no text, or there is nothing to read in a row.
        """
        pairs = len(self.columns) == 2
        found = tuple(texts_in(frame, column, split, blank=pairs) for column in self.columns)
        for place, texts in enumerate(zip(*found, strict=True)):
            if not any(text.strip() for text in texts):
                row = row_at(frame, place, split)
                raise ValueError(f"{row}: columns {' and '.join(map(repr, self.columns))} are blank; fill or drop it")
        return found

    def probe(self, processor: Any) -> tuple[list[str], ...]:
        """Return some rows of words of the tokenizer's own vocabulary."""
        vocabulary, special = processor.get_vocab(), {*processor.all_special_ids}
        words = sorted((word for word, i in vocabulary.items() if i not in special), key=vocabulary.__getitem__)
        spread = [words[place * (len(words) - 1) // sum(_PROBE)] for place in range(sum(_PROBE))]
        ends = np.cumsum(_PROBE)
        column = [" ".join(spread[end - size : end]) for end, size in zip(ends, _PROBE, strict=True)]
        return (column, [*column[1:], column[0]])[: len(self.columns)]

    def encode(self, processor: Any, examples: Examples, max_length: int, pooling: str = "model") -> Encoded:
        """Tokenise without padding, cut at ``max_length`` tokens; pairs together, or apart for ``pooling="pair"``.

        Raises:
            ValueError: ``pooling="pair"`` for examples that are no pairs.
        """
        if pooling == "pair":
            if len(examples.inputs) != 2:
                raise ValueError(f"pooling='pair' needs two text columns; there are {len(examples.inputs)}")
            first, second = (_tokenized(processor, [column], max_length) for column in examples.inputs)
            items = [
                {**one, **{f"{_SECOND}{key}": value for key, value in two.items()}}
                for one, two in zip(first, second, strict=True)
            ]
        else:
            items = _tokenized(processor, examples.inputs, max_length)
        lengths = [len(item["input_ids"]) + len(item.get(f"{_SECOND}input_ids", ())) for item in items]
        return Encoded(items, np.asarray(lengths, np.int64), examples.labels, np.ones(len(items), np.int64))

    def positions(self, processor: Any, max_length: int) -> tuple[int, int]:
        """Return ``max_length`` twice: where there is a decoder, it reads the text once more."""
        return max_length, max_length

    def collate(self, processor: Any, encoded: Encoded, places: Sequence[int]) -> "tuple[dict[str, Tensor], Tensor]":
        """Pad the chosen examples to the longest of them; second texts that stand apart by themselves."""
        import torch

        items = [encoded.items[i] for i in places]
        inputs = dict(processor.pad([_part(item, second=False) for item in items], return_tensors="pt"))
        if any(key.startswith(_SECOND) for key in items[0]):
            padded = processor.pad([_part(item, second=True) for item in items], return_tensors="pt")
            inputs |= {f"{_SECOND}{key}": value for key, value in padded.items()}
        return inputs, torch.from_numpy(encoded.labels[np.asarray(places)])


def _tokenized(tokenizer: Any, texts: Sequence[list[str]], max_length: int) -> list[dict[str, list[int]]]:
    # What stands in a text is text: "[SEP]" or "</s>" in it is no end of it.
    columns = tokenizer(*texts, truncation=True, max_length=max_length, split_special_tokens=True)
    keys = list(columns.keys())
    return [dict(zip(keys, row, strict=True)) for row in zip(*(columns[key] for key in keys), strict=True)]


def _part(item: Mapping[str, list[int]], *, second: bool) -> dict[str, list[int]]:
    """Return the inputs of an example's first or second text, by the names that a tokenizer pads."""
    return {key.removeprefix(_SECOND): value for key, value in item.items() if key.startswith(_SECOND) == second}


def classification(settings: "TaskSettings") -> Task:
    """Return the classification of texts in the columns that the settings name.

    Raises:
        ValueError: neither one nor two text columns.
    """
    return _task(settings, Classes(settings.label_column, settings.label_names), ("accuracy", "f1"))


def regression(settings: "TaskSettings") -> Task:
    """Return the regression of a score on texts.

    Raises:
        ValueError: neither one nor two text columns, or classes.
    """
    if settings.label_names:
        raise ValueError(f"labels={settings.labels!r} does nothing with task='regression'; leave it out")
    return _task(settings, Scores(settings.label_column), ("pearson", "spearman"))


def _task(settings: "TaskSettings", target: Target, metrics: tuple[str, ...]) -> Task:
    columns = settings.text_column_names
    if len(columns) not in (1, 2):
        raise ValueError(f"text-columns={settings.text_columns!r} names {len(columns)} columns; name one or two")
    reads = {
        "text-columns": ",".join(columns),
        "label-column": settings.label_column,
        "labels": ",".join(settings.label_names),
        "train-split": settings.train_split,
    }
    return Task(
        settings.task, Texts(columns), target, metrics, settings.data, settings.data_config, settings.train_split,
        settings.test_split, class_names=settings.label_names, reads=reads,
        advice="set text-columns and label-column",
    )  # fmt: skip


TASKS = {"reviews": classification, "classification": classification, "regression": regression}
