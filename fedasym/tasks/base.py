"""What a task is: where its examples are, its columns, its labels, its loss and the metrics that judge it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

Loss = Callable[["Tensor", "Tensor"], "Tensor"]
Predict = Callable[[NDArray[np.float32]], NDArray[Any]]


@dataclass(frozen=True)
class Task:
    """A supervised task over texts.

    Attributes:
        name: as in the setting ``task``.
        text_columns: one column, or two for sentence pairs.
        label_column: holds class names or ids, or a score.
        regression: whether the label is a score.
        loss: of logits ``(n, outputs)``, in the model's dtype, and labels ``(n,)``: the mean over the examples.
        predict: what is judged, ``(n,)``, of logits ``(n, outputs)`` float32.
        metrics: names from `fedasym.tasks.metrics`; the first is the task's own.
        data: ``demo``, a dataset's hub id, or a local folder.
        data_config: the hub dataset's configuration, or a subfolder.
        train_split: name of the training split.
        test_split: name of the held-out split that judges a run.
        extra_splits: further held-out splits, by the suffix of their metrics' names.
        label_names: the classes by id, where they are known beforehand. Empty: found in the data.
        class_values: what stands for them in the label column, by id: GLUE's ids, or the names themselves.
    """

    name: str
    text_columns: tuple[str, ...]
    label_column: str
    regression: bool
    loss: Loss
    predict: Predict
    metrics: tuple[str, ...]
    data: str
    data_config: str
    train_split: str
    test_split: str
    extra_splits: tuple[tuple[str, str], ...] = ()
    label_names: tuple[str, ...] = ()
    class_values: tuple[str, ...] = ()

    @property
    def metric(self) -> str:
        """The metric a run is judged by."""
        return self.metrics[0]

    @property
    def reads(self) -> dict[str, str]:
        """What of a folder's training data the task reads, by the setting that says it."""
        return {
            "text-columns": ",".join(self.text_columns),
            "label-column": self.label_column,
            "labels": ",".join(self.class_values),
            "train-split": self.train_split,
        }
