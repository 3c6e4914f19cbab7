"""The nine GLUE tasks as the hub's `nyu-mll/glue` lays them out: columns, classes by label id, official metrics.

Source: Wang et al. 2018, arXiv 1804.07461. The benchmark's test splits carry no labels, so the validation split is the
held-out one, as in the literature; MNLI has two of them.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fedasym.tasks.base import Task
from fedasym.tasks.targets import Classes, Scores
from fedasym.tasks.text import Texts

if TYPE_CHECKING:
    from fedasym.tasks.settings import TaskSettings

HUB = "nyu-mll/glue"
VARIABLE = "FEDASYM_GLUE_DIR"  # of the environment
# Settings that follow from a GLUE task and so may not be set.
DECIDED = ("data", "data_config", "train_split", "test_split", "text_columns", "label_column", "labels")


@dataclass(frozen=True)
class GlueTask:
    """One task of the benchmark.

    Attributes:
        text_columns: one column, or two for sentence pairs.
        class_names: the hub's, by label id; empty for the regression.
        metrics: the official ones, by their names in `fedasym.tasks.metrics`.
        held_out: the split that judges a run.
        extra_splits: further held-out splits by the suffix of their metrics.
    """

    text_columns: tuple[str, ...]
    class_names: tuple[str, ...]
    metrics: tuple[str, ...] = ("accuracy",)
    held_out: str = "validation"
    extra_splits: tuple[tuple[str, str], ...] = ()


_PAIR = ("sentence1", "sentence2")
TABLE = {
    "cola": GlueTask(("sentence",), ("unacceptable", "acceptable"), ("matthews",)),
    "sst2": GlueTask(("sentence",), ("negative", "positive")),
    "mrpc": GlueTask(_PAIR, ("not_equivalent", "equivalent"), ("accuracy", "binary_f1")),
    "stsb": GlueTask(_PAIR, (), ("pearson", "spearman")),
    "qqp": GlueTask(("question1", "question2"), ("not_duplicate", "duplicate"), ("accuracy", "binary_f1")),
    "mnli": GlueTask(
        ("premise", "hypothesis"),
        ("entailment", "neutral", "contradiction"),
        held_out="validation_matched",
        extra_splits=(("mismatched", "validation_mismatched"),),
    ),
    "qnli": GlueTask(("question", "sentence"), ("entailment", "not_entailment")),
    "rte": GlueTask(_PAIR, ("entailment", "not_entailment")),
    "wnli": GlueTask(_PAIR, ("not_entailment", "entailment")),
}


def place(folder: str) -> str:
    """Return where GLUE lies: the folder of the setting ``glue-dir``, else of the environment, else the hub's id.

    A folder has the hub's layout, ``TASK/SPLIT-00000-of-00001.parquet``.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    chosen = folder or os.environ.get(VARIABLE, "")
    if not chosen:
        return HUB
    found = Path(chosen).expanduser()
    if not found.is_dir():
        raise FileNotFoundError(f"{'glue-dir' if folder else VARIABLE}={chosen!r}: there is no such folder")
    return str(found)


def _task(settings: "TaskSettings") -> Task:
    row = TABLE[settings.task]
    ids = tuple(map(str, range(len(row.class_names))))
    target = Classes("label", ids, "GLUE's test splits are unlabelled") if ids else Scores("label")
    reads = {
        "text-columns": ",".join(row.text_columns),
        "label-column": "label",
        "labels": ",".join(ids),
        "train-split": "train",
    }
    return Task(
        settings.task, Texts(row.text_columns), target, row.metrics, place(settings.glue_dir), settings.task, "train",
        row.held_out, row.extra_splits, row.class_names, reads, f"give the folder GLUE's layout, that of {HUB}",
    )  # fmt: skip


TASKS = dict.fromkeys(TABLE, _task)
