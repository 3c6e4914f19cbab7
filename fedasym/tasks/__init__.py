"""What is learned: columns, labels, loss and metrics, one file per family.

A family's file has a dictionary ``TASKS`` of what makes each of its tasks from the settings; a new file is a new
family.
"""

from typing import TYPE_CHECKING

from fedasym.plugins import plugins_of

if TYPE_CHECKING:
    from fedasym.tasks.base import Task
    from fedasym.tasks.settings import TaskSettings


def task_names() -> tuple[str, ...]:
    """Return what the setting ``task`` may be."""
    return tuple(name for tasks in plugins_of("fedasym.tasks", "TASKS").values() for name in tasks)


def task_of(settings: "TaskSettings") -> "Task":
    """Return the task that the settings name.

    Raises:
        ValueError: neither one nor two text columns.
        FileNotFoundError: GLUE's folder is set and not there.
    """
    makers = {name: make for tasks in plugins_of("fedasym.tasks", "TASKS").values() for name, make in tasks.items()}
    task: Task = makers[settings.task](settings)
    return task
