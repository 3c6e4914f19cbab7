"""What a task is: what its model reads (columns, rows to tensors, the model's class), and what is learned of it.

A family of tasks is one `Inputs`, or one `Target`, or both, and a function that makes a `Task` of the settings.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from fedasym.tasks.columns import in_order_of, require_cells

if TYPE_CHECKING:
    from torch import Tensor, nn

    Batch = tuple[Mapping[str, Tensor], Tensor]  # the model's inputs by name, and labels

Answer = dict[str, float] | float | str  # what a model says to one input: probabilities by class, a score, or words


@dataclass(frozen=True)
class Examples:
    """Examples as they stand in their table, checked, in file order.

    Attributes:
        inputs: one list per column that the model reads, each of n cells.
        labels: ``(n,)``: class ids int64, or scores float32.
        class_names: names of the classes by id; empty where the labels are none.
        groups: ``(n,)`` int64, the id of each one's value in the column that the split names; ids are in the order of
            the values. None where it names none.
    """

    inputs: tuple[list[Any], ...]
    labels: NDArray[Any]
    class_names: tuple[str, ...]
    groups: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, places: NDArray[np.int64]) -> "Examples":
        """Return the examples at the given places, in that order."""
        inputs = tuple([column[i] for i in places] for column in self.inputs)
        groups = None if self.groups is None else self.groups[places]
        return Examples(inputs, self.labels[places], self.class_names, groups)


@dataclass(frozen=True)
class Encoded:
    """Examples as their model reads them, not yet padded.

    Attributes:
        items: each example's own inputs; what is in them is between `Inputs.encode` and `Inputs.collate`.
        lengths: ``(n,)`` what batches are grouped by, in tokens where there are tokens.
        labels: ``(n,)``, as in `Examples`.
        terms: ``(n,)`` how many terms of the loss's mean are an example's: 1, or its tokens.
    """

    items: list[Any]
    lengths: NDArray[np.int64]
    labels: NDArray[Any]
    terms: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, places: NDArray[np.int64]) -> "Encoded":
        """Return the examples at the given places, in that order."""
        return Encoded([self.items[i] for i in places], self.lengths[places], self.labels[places], self.terms[places])


@dataclass(frozen=True)
class Told:
    """An example for people to read.

    Attributes:
        question: what the model is given; empty where there is nothing to ask.
        answer: the wanted one, where it is written among the inputs; empty where it is a label.
        picture: a small PNG of what is asked about; empty where that is text.
    """

    question: str
    answer: str = ""
    picture: bytes = b""


class Evaluation(Protocol):
    """An evaluation under way: it takes batches and keeps of each no more than the scores need."""

    def add(self, model: "nn.Module", inputs: Mapping[str, "Tensor"], labels: "Tensor", items: Sequence[Any]) -> None:
        """Judge the model on one batch.

        Args:
            model: in evaluation mode.
            inputs: as `Inputs.collate` made them, on the model's device.
            labels: likewise.
            items: the batch's own of `Encoded`, for what is not a tensor.
        """

    def scores(self) -> dict[str, float]:
        """Return the task's metrics, fractions, and ``loss``, the mean over all that was added.

        Raises:
            FloatingPointError: something that the model said was not finite, of which a metric would make a number.
        """


class Inputs(Protocol):
    """How a family's rows become what its model reads."""

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that a table must have, filled."""

    @property
    def model_class(self) -> str:
        """Which Auto class of transformers builds the model and its head."""

    @property
    def processor_class(self) -> str:
        """Which Auto class of transformers reads the inputs."""

    @property
    def pooling(self) -> str:
        """How an encoder without a head of its own is pooled; ``model``: it is not."""

    @property
    def asked(self) -> "Inputs":
        """The same where nobody has answered yet.

        Its `columns` are those of a question; its `encode` takes examples with answers too and leaves these out, so
        that the labels of its batches begin where the answer would. Where the answer is a label, this is the object
        itself.
        """

    def row(self, words: Sequence[str]) -> dict[str, Any]:
        """Return the row of a table of `asked`, by column, that a person means with one text or some.

        Raises:
            ValueError: too many texts, or too few.
        """

    def told(self, examples: Examples) -> list[Told]:
        """Return examples of `read` as people read them."""

    def read(self, frame: Any, split: str) -> tuple[list[Any], ...]:
        """Return the cells that the model reads, one list per column, of a pandas DataFrame.

        Raises:
            ValueError: a cell that cannot be read; names split, column and row.
        """

    def probe(self, processor: Any) -> tuple[list[Any], ...]:
        """Return a fixed input, of what the processor itself knows: a few examples of different lengths."""

    def encode(self, processor: Any, examples: Examples, max_length: int, pooling: str = "model") -> Encoded:
        """Return examples as the model reads them.

        Args:
            processor: the model's own, of ``processor_class``.
            examples: of `read` or `probe`.
            max_length: tokens of an example at most, where there are tokens.
            pooling: as in the setting.

        Raises:
            ValueError: an example that cannot be read so; names it.
        """

    def positions(self, processor: Any, max_length: int) -> tuple[int, int]:
        """Return how many tokens the model reads of an example at most, and its decoder where it has one beside."""

    def collate(self, processor: Any, encoded: Encoded, places: Sequence[int]) -> "tuple[dict[str, Tensor], Tensor]":
        """Return the chosen examples as one batch: the model's inputs by name, padded, and the labels of the loss."""


class Target(Protocol):
    """What is to be learned of the inputs."""

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that a table must have, filled."""

    @property
    def classified(self) -> bool:
        """Whether there are classes, whose names all parties must know."""

    @property
    def has_head(self) -> bool:
        """Whether an output layer of its own is trained for it; False: the model's own head stays as it is."""

    def classes(self, frame: Any) -> tuple[str, ...]:
        """Return the class names by id that a training table holds; empty where there are none.

        Raises:
            ValueError: fewer than two.
        """

    def read(self, frame: Any, classes: tuple[str, ...], split: str) -> NDArray[Any]:
        """Return the labels ``(n,)`` of a pandas DataFrame: class ids int64, or scores float32.

        Raises:
            ValueError: a label that is none of the classes, or no score; names split and column.
        """

    def split_by(self, examples: Examples, bins: int) -> tuple[NDArray[np.int64], tuple[str, ...]]:
        """Return what a split by label goes by: ``(n,)`` ids, and the names of bins where they are no classes.

        Args:
            examples: all training examples.
            bins: how many bins the split wants where labels are scores; 0: it does not go by labels.

        Raises:
            ValueError: labels that make no such ids.
        """

    def loss(self, logits: "Tensor", labels: "Tensor") -> "Tensor":
        """Return the mean of a batch's terms, of what the model said, in its dtype, and of labels from `collate`."""

    def evaluation(self, metrics: tuple[str, ...], processor: Any) -> Evaluation:
        """Begin an evaluation by these metrics; the processor is the model's own, for what it generates."""

    def answers(
        self, model: "nn.Module", processor: Any, batch: "Batch", classes: tuple[str, ...], length: int = 0
    ) -> list[Answer]:
        """Return what the model says to each example of a batch; nothing is drawn.

        Args:
            model: in evaluation mode.
            processor: its own.
            batch: inputs and labels as `Inputs.asked` collates them, on the model's device; of the labels only where an
                answer begins is read.
            classes: names by id; empty where there are none.
            length: tokens of what is written at most; 0: the target's own.

        Raises:
            FloatingPointError: something that the model said is not finite.
            ValueError: a length for which the model has no positions.
        """


@dataclass(frozen=True)
class Task:
    """A supervised task: where its data are, and what is learned of them.

    Attributes:
        name: as in the setting ``task``.
        inputs: how rows become what the model reads.
        target: what is to be learned.
        metrics: what judges it; the first is the task's own.
        data: ``demo``, a dataset's hub id, or a local folder.
        data_config: the hub dataset's configuration, or a subfolder.
        train_split: name of the training split.
        test_split: name of the held-out split that judges a run.
        extra_splits: further held-out splits, by the suffix of their metrics' names.
        class_names: the classes by id, where they are known beforehand. Empty: there are none, or the data say.
        reads: what of a folder's training data the task reads, by the setting that says it.
        advice: what to do about a table without the wanted columns.
        source: the setting that says where the data are.
        judged: what judges a run on held-out examples, with data of its own; None: the task itself.
        shown: makes the inputs of the training split's table, where its rows stand before every held-out example.
        order: the classes that the checkpoint's own output layer tells apart, by id; empty: none.
        layout: of images: ``table``, or how their folder is laid out, ``domains`` or ``classes``; empty: a table.
        hold_out: the domain that judges and is not trained on; empty: none.
    """

    name: str
    inputs: Inputs
    target: Target
    metrics: tuple[str, ...]
    data: str
    data_config: str
    train_split: str
    test_split: str
    extra_splits: tuple[tuple[str, str], ...] = ()
    class_names: tuple[str, ...] = ()
    reads: Mapping[str, str] = field(default_factory=dict)
    advice: str = "set the columns"
    source: str = "data"
    judged: "Task | None" = None
    shown: Callable[[Any], Inputs] | None = None
    order: tuple[str, ...] = ()
    layout: str = ""
    hold_out: str = ""

    @property
    def judge(self) -> "Task":
        """What judges a run on held-out examples."""
        return self.judged or self

    @property
    def metric(self) -> str:
        """The metric a run is judged by."""
        return self.judge.metrics[0]

    def require(self, frame: Any, split: str) -> None:
        """Require of a pandas DataFrame at least one row, and the task's columns without an empty cell.

        Raises:
            ValueError: names split, column and row.
        """
        require_cells(frame, (*self.inputs.columns, *self.target.columns), split, self.advice)

    def classes(self, frame: Any) -> tuple[str, ...]:
        """Return the class names by id: those known beforehand, else those of the training table.

        Raises:
            ValueError: the table holds fewer than two, and there must be some.
        """
        return self.class_names or in_order_of(self.target.classes(frame), self.order)

    def ordered(self, order: tuple[str, ...]) -> "Task":
        """Return the task with its classes in the order of a checkpoint's, so that its output layer means them.

        Raises:
            ValueError: the classes are known, and are not the checkpoint's.
        """
        if not order or not self.target.classified:
            return self
        names, target = in_order_of(self.class_names, order), self.target
        if values := getattr(target, "values", ()):  # what stands for the classes in the data, by id
            moved = [values[self.class_names.index(name)] for name in names]
            target = replace(cast(Any, target), values=tuple(moved))
        return replace(self, order=order, class_names=names, target=target)

    def outputs(self, classes: tuple[str, ...]) -> int:
        """Return how many outputs the output layer has that is trained for it; 0: there is none."""
        return max(1, len(classes)) if self.target.has_head else 0

    def examples(self, frame: Any, classes: tuple[str, ...], split: str) -> Examples:
        """Return the rows of a table that `require` has passed.

        Raises:
            ValueError: a cell that cannot be what it should; names split and column.
        """
        return Examples(self.inputs.read(frame, split), self.target.read(frame, classes, split), classes)
