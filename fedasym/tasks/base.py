"""What a task is: where its examples are, its columns, its labels and the metrics that judge it."""

from dataclasses import dataclass

from fedasym.tasks import glue
from fedasym.tasks.settings import TaskSettings


@dataclass(frozen=True)
class Task:
    """A supervised task over texts.

    Attributes:
        name: as in the setting ``task``.
        text_columns: one column, or two for sentence pairs.
        label_column: holds class names or ids, or a score.
        regression: whether the label is a score.
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


def task_of(settings: TaskSettings) -> Task:
    """Return the task that the settings name.

    ``reviews`` is the demo's (sentence, negative or positive). ``classification`` and ``regression`` take data, splits
    and columns from the settings; a GLUE task brings its own.

    Raises:
        ValueError: neither one nor two text columns.
        FileNotFoundError: GLUE's folder is set and not there.
    """
    if settings.task in glue.TASKS:
        row = glue.TASKS[settings.task]
        return Task(
            settings.task, row.text_columns, "label", not row.class_names, row.metrics,
            glue.place(settings.glue_dir), settings.task, "train", row.held_out, row.extra_splits, row.class_names,
            tuple(map(str, range(len(row.class_names)))),
        )  # fmt: skip
    columns = settings.text_column_names
    if len(columns) not in (1, 2):
        raise ValueError(f"text-columns={settings.text_columns!r} names {len(columns)} columns; name one or two")
    regression = settings.task == "regression"
    metrics = ("pearson", "spearman") if regression else ("accuracy", "f1")
    return Task(
        settings.task, columns, settings.label_column, regression, metrics,
        settings.data, settings.data_config, settings.train_split, settings.test_split,
        label_names=settings.label_names, class_values=settings.label_names,
    )  # fmt: skip
