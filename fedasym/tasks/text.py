"""Classification and regression of texts over columns of one's own, and the demo's reviews."""

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fedasym.tasks.base import Task

if TYPE_CHECKING:
    from torch import Tensor

    from fedasym.tasks.settings import TaskSettings


def cross_entropy(logits: "Tensor", labels: "Tensor") -> "Tensor":
    """Return the mean cross-entropy of class ids, in float32."""
    from torch.nn import functional as F

    return F.cross_entropy(logits.float(), labels)


def squared_error(logits: "Tensor", labels: "Tensor") -> "Tensor":
    """Return the mean squared error of scores, in float32."""
    from torch.nn import functional as F

    return F.mse_loss(logits.float().squeeze(-1), labels)


def most_likely(logits: NDArray[np.float32]) -> NDArray[Any]:
    """Return the class of the largest logit."""
    return np.asarray(logits.argmax(-1))


def score(logits: NDArray[np.float32]) -> NDArray[Any]:
    """Return the one output."""
    return logits[:, 0]


def classification(settings: "TaskSettings") -> Task:
    """Return the classification of texts in the columns that the settings name.

    Raises:
        ValueError: neither one nor two text columns.
    """
    return Task(
        settings.task, _columns(settings), settings.label_column, False, cross_entropy, most_likely,
        ("accuracy", "f1"), settings.data, settings.data_config, settings.train_split, settings.test_split,
        label_names=settings.label_names, class_values=settings.label_names,
    )  # fmt: skip


def regression(settings: "TaskSettings") -> Task:
    """Return the regression of a score on texts.

    Raises:
        ValueError: neither one nor two text columns.
    """
    return Task(
        settings.task, _columns(settings), settings.label_column, True, squared_error, score,
        ("pearson", "spearman"), settings.data, settings.data_config, settings.train_split, settings.test_split,
        label_names=settings.label_names, class_values=settings.label_names,
    )  # fmt: skip


def _columns(settings: "TaskSettings") -> tuple[str, ...]:
    columns = settings.text_column_names
    if len(columns) not in (1, 2):
        raise ValueError(f"text-columns={settings.text_columns!r} names {len(columns)} columns; name one or two")
    return columns


TASKS = {"reviews": classification, "classification": classification, "regression": regression}
