"""What a run's model says to new inputs: read, checked, asked, printed."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from fedasym.data.image_folder import with_files
from fedasym.data.table_files import is_table, read_table
from fedasym.runs.trained_model import TrainedModel
from fedasym.tasks.base import Answer, Examples, Inputs
from fedasym.tasks.columns import placed, require_cells, rows_of
from fedasym.training.loop import ask
from fedasym.wire.records import clean


def typed_inputs(inputs: Inputs, words: Sequence[str], images: Sequence[Path]) -> Any:
    """Return a table of what stands on the command line: one input of some texts, or one for each image.

    Args:
        inputs: the task's, as `Inputs.asked`.
        words: texts, one for each column.
        images: files.

    Raises:
        ValueError: texts for a model of images or the other way round, or another number of texts than the model reads.
    """
    if bool(images) != (inputs.processor_class == "AutoImageProcessor"):
        raise ValueError("the model reads text; give it in quotes" if images else "the model reads images; use --image")
    rows = [inputs.row([str(image)]) for image in images] if images else [inputs.row(words)]
    return placed(pd.DataFrame(rows), "command line", first=1)


def read_questions(inputs: Inputs, file: Path) -> Any:
    """Read a table with the columns of a question, or a file of text with one input a line, of images their paths.

    Raises:
        ValueError: a file that is no table or no text, or a line of text where the model reads several.
        FileNotFoundError: no such file, or an image of it is not there; names its row.
    """
    images = inputs.processor_class == "AutoImageProcessor"
    if is_table(file):
        frame = read_table(file)
    else:
        try:
            with file.open(encoding="utf-8-sig") as text:  # a line ends where a file's does, not at a form feed
                lines = [line.removesuffix("\n") for line in text]
        except UnicodeDecodeError as error:
            raise ValueError(f"{file} is no text in UTF-8 ({error}); rewrite it, or give a table") from None
        if len(inputs.columns) != 1:
            raise ValueError(
                f"{file} holds one text a line, and the model reads {', '.join(inputs.columns)}; give a .csv, .tsv, "
                ".jsonl or .parquet file with these columns"
            )
        rows = [{inputs.columns[0]: line} if images else inputs.row([line]) for line in lines]
        frame = placed(pd.DataFrame(rows), str(file), first=1)
    return with_files(frame, inputs.columns[0], file.parent, "") if images else frame


def answers_to(trained: TrainedModel, frame: Any, length: int = 0) -> list[Answer]:
    """Return what a trained model says to each row of a table of questions.

    Args:
        trained: the model.
        frame: a pandas DataFrame with the columns of `Inputs.asked`.
        length: tokens of what is written at most; 0: the task's own.

    Raises:
        ValueError: a column is missing, a cell is empty or cannot be read, or the model's answer is not finite; names
            file and row.
        DeviceMemoryError: the device's memory is too small for it.
    """
    inputs, built, settings = trained.task.inputs.asked, trained.built, trained.settings
    require_cells(frame, inputs.columns, "", "name the columns so")
    for column in inputs.columns:
        for row, cell in zip(rows_of(frame, ""), frame[column].tolist(), strict=True):
            if isinstance(cell, str) and not cell.strip():
                raise ValueError(f"{row}: column {column!r} is empty; fill it or drop the row")
    examples = Examples(inputs.read(frame, ""), np.zeros(len(frame), np.int64), trained.classes)
    encoded = inputs.encode(built.processor, examples, settings.max_length, settings.pooling)
    try:
        return ask(built.model, built.processor, encoded, trained.task, trained.classes, length)
    except FloatingPointError as error:
        raise ValueError(f"after round {trained.rounds}: {error}") from error


def as_json(answer: Answer, top: int = 0) -> str:
    r"""Return an answer as one line of JSON in ASCII; of classes the likeliest ``top`` of them, 0: all.

    >>> as_json({"no": 0.25, "yes": 0.75}, 1), as_json(0.5), as_json("é")
    ('{"class": "yes", "probabilities": {"yes": 0.75}}', '{"score": 0.5}', '{"text": "\\u00e9"}')
    """
    if isinstance(answer, dict):
        ranked = _ranked(answer, top)
        return json.dumps({"class": ranked[0][0], "probabilities": dict(ranked)})
    return json.dumps({"text": answer} if isinstance(answer, str) else {"score": answer})


def as_lines(answer: Answer, top: int = 0) -> Iterator[str]:
    r"""Yield the lines that show an answer on a terminal, without what a terminal would obey.

    >>> list(as_lines("one\n\x1b[2Jtwo"))
    ['one', ' [2Jtwo']
    """
    if isinstance(answer, dict):
        ranked = [(_shown(name), share) for name, share in _ranked(answer, top)]
        width = max(len(name) for name, _ in ranked)
        yield from (f"{name:<{width}}  {share:.4f}" for name, share in ranked)
    elif isinstance(answer, str):
        yield from map(_shown, answer.splitlines() or [""])
    else:
        yield f"{answer:.4f}"


def _ranked(answer: dict[str, float], top: int) -> list[tuple[str, float]]:
    return sorted(answer.items(), key=lambda one: -one[1])[: top or None]


def _shown(text: str) -> str:
    return clean(text, max(1, len(text)))
