"""What a task is: its columns, its labels and the metrics that judge it."""

from dataclasses import dataclass

from fedasym.settings import Settings


@dataclass(frozen=True)
class Task:
    """A supervised task over texts.

    Attributes:
        name: as in the setting ``task``.
        text_columns: one column, or two for sentence pairs.
        label_column: holds class names or ids, or a score.
        regression: whether the label is a score.
        metrics: names from `fedasym.metrics`; the first is the task's own.
    """

    name: str
    text_columns: tuple[str, ...]
    label_column: str
    regression: bool
    metrics: tuple[str, ...]

    @property
    def metric(self) -> str:
        """The metric a run is judged by."""
        return self.metrics[0]


def task_of(settings: Settings) -> Task:
    """Return the task that the settings name.

    ``reviews`` is the demo's (sentence, negative or positive). ``classification`` and ``regression`` take
    their columns from the settings.

    Raises:
        ValueError: neither one nor two text columns.
    """
    columns = settings.text_column_names
    if len(columns) not in (1, 2):
        raise ValueError(f"text-columns={settings.text_columns!r} names {len(columns)} columns; name one or two")
    if settings.task == "regression":
        return Task("regression", columns, settings.label_column, True, ("pearson", "spearman"))
    return Task(settings.task, columns, settings.label_column, False, ("accuracy", "f1"))
