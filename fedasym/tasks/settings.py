"""The settings of what is learned: where its examples are, and their columns."""

from collections.abc import Iterable
from dataclasses import dataclass

from fedasym.fields import Checked, names_in, require_named, setting
from fedasym.tasks import choices, glue, instruct, task_names
from fedasym.tasks.images import LAYOUTS

WRITTEN = ("summarize", "summarize-causal")  # the tasks of models that write an answer, and the settings of those alone
ANSWER = ("answer_column", "answer_length", "prompt", "beams")


@dataclass(frozen=True)
class TaskSettings(Checked):
    """Task, source, splits and columns."""

    task: str = setting("reviews", "what is learned", choices=task_names)
    data: str = setting(
        "demo", "'demo' or 'reviews' (packaged), a dataset's hub id, a local folder, or with sites 'none'"
    )
    data_config: str = setting("", "the hub dataset's configuration, or a subfolder of the local folder")
    glue_dir: str = setting("", f"folder of the GLUE tasks; empty: that of {glue.VARIABLE}, else the hub")
    train_split: str = setting("train", "name of the training split or file")
    test_split: str = setting("test", "name of the held-out split or file")
    text_columns: str = setting("text", "text column, or two joined by a comma for sentence pairs")
    label_column: str = setting("label", "label column")
    labels: str = setting("", "the classes in the order of their ids, by commas, as in the label column; empty: found")
    drop_labels: str = setting("", "labels whose rows are left out, by commas, e.g. -1 for rows without one")
    instruct_format: str = setting(
        "alpaca",
        "with task=instruct, the columns: instruction, input and output, messages of a chat, or plain text",
        choices=instruct.FORMATS,
    )
    choices_data: str = setting(
        "", "multiple choice by which a model that writes is judged, a hub id or a folder in MMLU's layout; empty: none"
    )
    choices_config: str = setting("", "the hub dataset's configuration, or a subfolder of the local folder")
    choices_split: str = setting("test", "name of the questions' split or file")
    choices_shots: int = setting(5, "answered questions of the same subject, from split dev, before each", least=0)
    choices_score: str = setting(
        "letter", "what is scored after the question: a choice's letter, or its text", choices=choices.SCORES
    )
    answer_column: str = setting("summary", "column of what is to be written")
    answer_length: int = setting(64, "tokens of what is written; longer ones are cut", least=1)
    prompt: str = setting("", "words before the text, or around it where it is {document}")
    beams: int = setting(1, "beams of the search for what is written; 1: greedy", least=1)

    image_layout: str = setting(
        "table",
        "how images lie: in a table's column, as DOMAIN/CLASS/NAME.png, or [SPLIT/]CLASS/NAME.png",
        choices=LAYOUTS,
    )
    image_column: str = setting("image", "column of images: bytes, or paths relative to the table's folder")
    hold_out_domain: str = setting("", "domain of images that judges a run and is not trained on; empty: none")

    def _check(self) -> None:
        super()._check()
        require_named(self, "text_columns", "label_column", "answer_column", "image_column", "data")
        if self.task not in WRITTEN:
            self._require_unset(ANSWER, f"with task={self.task!r}")
        self._check_images()
        if self.label_column in self.text_column_names:
            raise ValueError(
                f"text-columns={self.text_columns!r} holds label-column={self.label_column!r}: the label would be read "
                "as text; set one of them to another column"
            )
        self._check_instruct()
        if self.task in ("instruct", "regression", *WRITTEN):
            self._require_unset(("drop_labels",), f"with task={self.task!r}, which has no classes")
        if both := {*names_in(self.drop_labels)} & {*self.label_names}:
            raise ValueError(
                f"drop-labels={self.drop_labels!r} and labels both name {', '.join(sorted(both))}; take one out"
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

    def _check_instruct(self) -> None:
        """Check the settings that are of ``task="instruct"`` alone, or not of it."""
        if self.task == "instruct":
            self._require_unset(("label_column", "labels"), "with task='instruct'")
            if self.instruct_format != "text":
                self._require_unset(("text_columns",), f"with instruct-format={self.instruct_format!r}")
        else:
            self._require_unset(("instruct_format", "choices_data"), f"with task={self.task!r}")
        if not self.choices_data:
            names = ("choices_config", "choices_split", "choices_shots", "choices_score")
            self._require_unset(names, "without choices-data")
        elif self.choices_split == choices.SHOTS_SPLIT and self.choices_shots:
            raise ValueError(
                f"choices-split={self.choices_split!r} is where the shots come from, so questions would be shown with "
                "their answers; set it to another, or choices-shots=0"
            )

    def _require_unset(self, names: Iterable[str], why: str) -> None:
        for name in names:
            value, default = getattr(self, name), type(self).__dataclass_fields__[name].default
            if value != default:
                raise ValueError(f"{name.replace('_', '-')}={value!r} does nothing {why}; leave it at {default!r}")

    @property
    def judging_data(self) -> str:
        """Where the server's held-out examples are."""
        return self.choices_data or self.data

    def _check_images(self) -> None:
        """Check the settings that are of ``task="images"`` alone, or not of its layout."""
        idle = ["image_layout", "image_column", "hold_out_domain"]
        if self.task == "images":
            idle = ["text_columns", *([] if self.image_layout == "domains" else ["hold_out_domain"])]
            idle += [] if self.image_layout == "table" else ["image_column", "label_column"]
        self._require_unset(idle, f"with task={self.task!r} and image-layout={self.image_layout!r}")

    @property
    def label_names(self) -> tuple[str, ...]:
        """The classes in ``labels``, by id."""
        return names_in(self.labels)

    @property
    def text_column_names(self) -> tuple[str, ...]:
        """The text columns, one or two."""
        return names_in(self.text_columns)
