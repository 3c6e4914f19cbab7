"""The settings of what is learned: where its examples are, and their columns."""

from dataclasses import dataclass

from fedasym.fields import Checked, names_in, require_named, setting
from fedasym.tasks import glue, task_names
from fedasym.tasks.images import LAYOUTS


@dataclass(frozen=True)
class TaskSettings(Checked):
    """Task, source, splits and columns."""

    task: str = setting("reviews", "what is learned", choices=task_names)
    data: str = setting("demo", "'demo', a dataset's hub id, a local folder, or with sites 'none'")
    data_config: str = setting("", "the hub dataset's configuration, or a subfolder of the local folder")
    glue_dir: str = setting("", f"folder of the GLUE tasks; empty: that of {glue.VARIABLE}, else the hub")
    train_split: str = setting("train", "name of the training split or file")
    test_split: str = setting("test", "name of the held-out split or file")
    text_columns: str = setting("text", "text column, or two joined by a comma for sentence pairs")
    label_column: str = setting("label", "label column")
    labels: str = setting("", "the classes in the order of their ids, by commas, as in the label column; empty: found")

    image_layout: str = setting(
        "table",
        "how images lie: in a table's column, as DOMAIN/CLASS/NAME.png, or [SPLIT/]CLASS/NAME.png",
        choices=LAYOUTS,
    )
    image_column: str = setting("image", "column of images: bytes, or paths relative to the table's folder")
    hold_out_domain: str = setting("", "domain of images that judges a run and is not trained on; empty: none")

    def _check(self) -> None:
        super()._check()
        require_named(self, "text_columns", "label_column", "image_column", "data")
        self._check_images()
        if self.label_column in self.text_column_names:
            raise ValueError(
                f"text-columns={self.text_columns!r} holds label-column={self.label_column!r}: the label would be read "
                "as text; set one of them to another column"
            )
        if self.task not in glue.TABLE:
            if self.glue_dir:
                raise ValueError(f"glue-dir={self.glue_dir!r} does nothing with task={self.task!r}; leave it empty")
            return
        for name in glue.DECIDED:
            value, default = getattr(self, name), type(self).__dataclass_fields__[name].default
            if value != default:
                raise ValueError(
                    f"{name.replace('_', '-')}={value!r} contradicts task={self.task!r}, which has its own data, "
                    f"splits and columns; leave it at {default!r}, or set task to classification or regression"
                )

    def _check_images(self) -> None:
        idle = [] if self.task == "images" else ["image_layout", "image_column", "hold_out_domain"]
        if self.task == "images":
            idle = ["text_columns", *([] if self.image_layout == "domains" else ["hold_out_domain"])]
            idle += [] if self.image_layout == "table" else ["image_column", "label_column"]
        for name in idle:
            value, default = getattr(self, name), type(self).__dataclass_fields__[name].default
            if value != default:
                raise ValueError(
                    f"{name.replace('_', '-')}={value!r} does nothing with task={self.task!r} and image-layout="
                    f"{self.image_layout!r}; leave it at {default!r}"
                )

    @property
    def label_names(self) -> tuple[str, ...]:
        """The classes in ``labels``, by id."""
        return names_in(self.labels)

    @property
    def text_column_names(self) -> tuple[str, ...]:
        """The text columns, one or two."""
        return names_in(self.text_columns)
