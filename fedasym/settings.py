"""Every knob of a federation: one frozen dataclass, read once from the flat run config, checked at the door.

The names are Flower's run-config keys with ``-`` for ``_``; the defaults are the demo and equal the project's
``[tool.flwr.app.config]``. Whatever is unknown, of another type or out of range is refused with its name.
"""

import dataclasses
import difflib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fedasym.fields import Value, check, knob
from fedasym.methods import METHODS
from fedasym.tasks import glue

DEVICES = "auto, cpu, cuda, cuda:N or mps"
_ATTENTION = ("auto", "sdpa", "eager")
RESOLVED = ("kind", "head", "optimizer", "lr", "head_lr", "pooling")  # what `Settings.resolved` fills in


@dataclass(frozen=True)
class Settings:
    """The settings of one run. ``auto`` and 0 where so documented mean the method's tuned default."""

    method: str = knob("asymmetric", "federated-LoRA method", choices=tuple(METHODS))
    num_rounds: int = knob(4, "rounds", least=1)
    num_clients: int = knob(10, "clients the data is split over; with sites, their number", least=1)
    sites: str = knob("", "registered names of sites with data of their own, by commas; empty: the data is split")
    clients_per_round: int = knob(0, "clients asked each round; 0 asks all", least=0)
    fraction: float = knob(1.0, "share of the clients that are there which a round asks, rounded up", least=0.0)
    quorum: int = knob(0, "clients that must be there before a round begins; 0: all", least=0)
    min_valid: int = knob(1, "valid replies without which a round fails", least=1)
    round_timeout: float = knob(3600.0, "seconds to wait for a round's replies", least=0.001)
    rest_after: int = knob(0, "failed rounds in a row after which a client rests; 0: never", least=0)
    rest_rounds: int = knob(1, "rounds that it rests", least=1)
    seed: int = knob(0, "common seed of A, split, batches and sampling")
    out: str = knob("", "run folder; empty makes a new one under runs/, a used one is continued")

    task: str = knob("reviews", "what is learned", choices=("reviews", "classification", "regression", *glue.TASKS))
    data: str = knob("demo", "'demo', a dataset's hub id, a local folder, or with sites 'none'")
    data_config: str = knob("", "the hub dataset's configuration, or a subfolder of the local folder")
    glue_dir: str = knob("", f"folder of the GLUE tasks; empty: that of {glue.VARIABLE}, else the hub")
    train_split: str = knob("train", "name of the training split or file")
    test_split: str = knob("test", "name of the held-out split or file")
    text_columns: str = knob("text", "text column, or two joined by a comma for sentence pairs")
    label_column: str = knob("label", "label column")
    labels: str = knob("", "the classes in the order of their ids, by commas, as in the label column; empty: found")
    validation_cut: int = knob(0, "evaluate on this many training examples cut off; 0: the test split", least=0)
    train_cap: int = knob(0, "train on this many examples, the same for every seed; 0: all", least=0)
    test_cap: int = knob(0, "evaluate on this many of the test split, the same for every seed; 0: all", least=0)
    split: str = knob("dirichlet:0.5", "who holds what: iid, dirichlet:ALPHA, mild, severe, column:NAME, ...")
    min_examples: int = knob(10, "least examples of a client", least=1)

    model: str = knob("demo", "'demo' (packaged MiniLM), a hub id, or a local folder")
    revision: str = knob("main", "revision of a model on the hub")
    pooling: str = knob(
        "auto",
        "the model's own head, the masked mean, or for sentence pairs two masked means",
        choices=("auto", "model", "mean", "pair"),
    )
    head: str = knob(
        "auto", "what of the head trains; auto: the method's", choices=("auto", "output", "frozen", "full", "local")
    )
    device: str = knob("auto", f"where a node computes: {DEVICES}; auto: the GPU that is visible, else the CPU")
    dtype: str = knob(
        "auto",
        "dtype of the frozen weights; auto: bfloat16 where the server's device has it natively, else float32",
        choices=("auto", "float32", "bfloat16"),
    )
    attention: str = knob("auto", "attention; auto: sdpa where the model has it and it is fast", choices=_ATTENTION)
    deterministic: bool = knob(True, "on a GPU: the same bits in every run; false: whatever is fastest")
    max_length: int = knob(64, "tokens of an example; longer ones are cut", least=1)

    rank: int = knob(8, "r of every adapter", least=1)
    alpha: float = knob(16.0, "numerator of the scale s", least=0.0)
    scaling: str = knob("alpha/r", "the scale s", choices=("alpha/r", "alpha/sqrt(r)"))
    kind: str = knob("auto", "kind of A", choices=("auto", "orthonormal", "kaiming", "gaussian", "block"))
    targets: str = knob("all-linear", "'all-linear' or endings of layer names joined by commas")

    optimizer: str = knob("auto", "local optimizer", choices=("auto", "sgd", "adamw"))
    lr: float = knob(0.0, "rate of the adapters; 0: the method's", least=0.0)
    head_lr: float = knob(0.0, "rate of the output layer; 0: the method's", least=0.0)
    weight_decay: float = knob(0.0, "decoupled weight decay of AdamW", least=0.0)
    clip: float = knob(1.0, "largest gradient norm of a step; 0: no clipping", least=0.0)
    eval_every: int = knob(1, "evaluate every so many rounds, and after the last", least=1)
    batch_size: int = knob(14, "examples of a local step", least=1)
    micro_batch: int = knob(0, "examples at a time within a step, to save memory; 0: the whole batch", least=0)
    eval_batch: int = knob(0, "examples at a time in an evaluation; 0: what suits the device", least=0)
    gradient_checkpointing: bool = knob(False, "compute activations again in the backward pass, to save memory")
    local_steps: int = knob(8, "local steps a round; 0: local-epochs instead", least=0)
    local_epochs: int = knob(0, "passes over the client's data a round, if local-steps is 0", least=0)
    client_holdout: float = knob(0.0, "share of a client's data kept out to evaluate on it", least=0.0)
    threads: int = knob(1, "threads of a client's training", least=1)

    server_optimizer: str = knob("none", "on the mean change", choices=("none", "momentum", "adam"))
    server_lr: float = knob(1.0, "its rate", least=0.0)
    server_momentum: float = knob(0.9, "its momentum (Adam: beta 1)", least=0.0)

    def __post_init__(self) -> None:
        for each in dataclasses.fields(self):
            check(each, getattr(self, each.name))
        self._check_names()
        self._check_glue()
        self._check_sites()
        if self.alpha == 0.0:
            raise ValueError("alpha=0.0 makes every adapter zero; use a positive alpha")
        if self.server_momentum >= 1.0:
            raise ValueError(f"server-momentum={self.server_momentum} does not decay; use less than 1")
        if self.server_optimizer != "none" and self.server_lr == 0.0:
            raise ValueError("server-lr=0.0 never moves the global matrices; use a positive rate")
        if self.local_steps == 0 and self.local_epochs == 0:
            raise ValueError("local-steps and local-epochs are both 0: nothing would train; set one of them")
        if self.local_steps and self.local_epochs:
            raise ValueError(
                f"local-steps={self.local_steps} and local-epochs={self.local_epochs} are both set; set one to 0"
            )
        if self.server_optimizer == "none" and (self.server_lr, self.server_momentum) != (1.0, 0.9):
            raise ValueError("server-lr and server-momentum do nothing with server-optimizer='none'; choose one")
        if self.micro_batch > self.batch_size:
            raise ValueError(f"micro-batch={self.micro_batch} exceeds batch-size={self.batch_size}; lower it")
        if not re.fullmatch(r"auto|cpu|cuda(:\d{1,3})?|mps", self.device):
            raise ValueError(f"setting device={self.device!r} is not one of {DEVICES}")
        if self.client_holdout >= 1.0:
            raise ValueError(f"client-holdout={self.client_holdout} leaves nothing to train on; use less than 1")
        method = METHODS[self.method]
        if judged_at_clients(self.method, self.head, self.data) and self.client_holdout == 0.0:
            own = (
                f"method={self.method!r}"
                if method.personal
                else "head='local'"
                if self.head == "local"
                else "data='none'"
            )
            raise ValueError(f"{own} is evaluated at the clients only; set client-holdout, e.g. client-holdout=0.2")
        if self.server_optimizer != "none" and (method.merge or method.fold or method.personal):
            raise ValueError(
                f"server-optimizer={self.server_optimizer!r} needs a mean change, which {self.method} does not form; "
                "use server-optimizer='none'"
            )
        if self.method == "central" and self.num_clients != 1:
            raise ValueError(f"method='central' has all data in one place; set num-clients=1, not {self.num_clients}")
        if method.factors == "W" and self.head not in ("auto", "full"):
            raise ValueError(f"head={self.head!r}: full fine-tuning trains the whole head; leave head at 'auto'")
        if self.clients_per_round > self.num_clients:
            raise ValueError(f"clients-per-round={self.clients_per_round} exceeds num-clients={self.num_clients}")
        if self.fraction != 1.0 and (self.clients_per_round or not 0.0 < self.fraction < 1.0):
            raise ValueError(
                f"fraction={self.fraction} must be above 0 and at most 1, and goes without clients-per-round="
                f"{self.clients_per_round}; set one of them"
            )
        if self.quorum > self.num_clients:
            raise ValueError(f"quorum={self.quorum} exceeds the {self.num_clients} clients")
        least = self.asked_of(self.quorum or self.num_clients)
        if self.min_valid > least:
            raise ValueError(f"min-valid={self.min_valid} exceeds the clients asked each round, {least} at a quorum")
        if self.rest_after == 0 and self.rest_rounds != 1:
            raise ValueError(f"rest-rounds={self.rest_rounds} does nothing with rest-after=0; set rest-after")

    def _check_names(self) -> None:
        for name in ("targets", "text_columns", "label_column", "model", "data"):
            value, default = getattr(self, name), type(self).__dataclass_fields__[name].default
            if not _names(value):
                raise ValueError(f"{name.replace('_', '-')}={value!r} names nothing; leave it out for {default!r}")
        if self.label_column in self.text_column_names:
            raise ValueError(
                f"text-columns={self.text_columns!r} holds label-column={self.label_column!r}: the label would be read "
                "as text; set one of them to another column"
            )
        if self.train_split == self.test_split and not self.validation_cut and not self.sites:
            raise ValueError(
                f"test-split={self.test_split!r} is the training split too; set it to another, or validation-cut to "
                "the number of training examples to evaluate on"
            )

    def _check_sites(self) -> None:
        names, default = self.site_names, type(self).__dataclass_fields__
        if not names:
            if self.data == "none":
                raise ValueError("data='none' leaves nothing to learn from; it is for sites with data of their own")
            return
        bad = [name for name in names if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", name)]
        if bad or len(set(names)) < len(names):
            raise ValueError(
                f"sites={self.sites!r} must be different names of letters, digits, '.', '_' and '-', 63 at most"
            )
        if self.num_clients not in (len(names), default["num_clients"].default):
            raise ValueError(f"num-clients={self.num_clients}, but sites names {len(names)}; leave num-clients out")
        object.__setattr__(self, "num_clients", len(names))
        for name in ("split", "validation_cut"):
            value, usual = getattr(self, name), default[name].default
            if value != usual:
                raise ValueError(f"{name.replace('_', '-')}={value!r} does nothing with sites; leave it at {usual!r}")
        if self.task not in ("regression", *glue.TASKS) and len(self.label_names) < 2:
            raise ValueError(
                f"labels={self.labels!r}: sites cannot see one another's labels; name the classes in the order of "
                "their ids, as they stand in the label column, e.g. labels='no,yes'"
            )

    def _check_glue(self) -> None:
        if self.task not in glue.TASKS:
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

    def resolved(self) -> "Settings":
        """Return settings with the method's tuned defaults in place of ``auto`` and 0."""
        method = METHODS[self.method]
        if self.optimizer not in ("auto", method.optimizer) and not (self.lr and self.head_lr):
            raise ValueError(
                f"optimizer={self.optimizer!r} has no tuned rates for {self.method}, whose own optimizer is "
                f"{method.optimizer!r}; set both lr and head-lr, e.g. lr=0.003 head-lr=0.001 for adamw"
            )
        if self.weight_decay and self.optimizer != "adamw":
            raise ValueError(f"weight-decay={self.weight_decay} is AdamW's; set optimizer='adamw' or weight-decay=0.0")
        return dataclasses.replace(
            self,
            kind=method.kind if self.kind == "auto" else self.kind,
            head=method.head if self.head == "auto" else self.head,
            optimizer=method.optimizer if self.optimizer == "auto" else self.optimizer,
            lr=self.lr or method.lr,
            head_lr=self.head_lr or method.head_lr,
            pooling=self._auto_pooling() if self.pooling == "auto" else self.pooling,
        )

    def _auto_pooling(self) -> str:
        if self.model != "demo":
            return "model"
        columns = glue.TASKS[self.task].text_columns if self.task in glue.TASKS else self.text_column_names
        return "pair" if len(columns) == 2 else "mean"

    def run_config(self) -> dict[str, Value]:
        """Return the flat run config that `from_run_config` reads."""
        return {key.replace("_", "-"): value for key, value in dataclasses.asdict(self).items()}

    def asked_of(self, present: int) -> int:
        """Return how many of the clients that are there a round asks."""
        if self.clients_per_round:
            return min(self.clients_per_round, present)
        return math.ceil(self.fraction * present)

    @property
    def site_names(self) -> tuple[str, ...]:
        """The sites with data of their own; client k is the k-th of them."""
        return _names(self.sites)

    @property
    def label_names(self) -> tuple[str, ...]:
        """The classes in ``labels``, by id."""
        return _names(self.labels)

    @property
    def text_column_names(self) -> tuple[str, ...]:
        """The text columns, one or two."""
        return _names(self.text_columns)

    @property
    def target_names(self) -> tuple[str, ...]:
        """The endings of layer names in ``targets``."""
        return _names(self.targets)


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def judged_at_clients(method: str, head: str, data: str) -> bool:
    """Say whether the server has no common model, or no data, by which it could evaluate a run."""
    return head == "local" or data == "none" or METHODS[method].personal


def from_run_config(config: Mapping[str, Any]) -> Settings:
    """Read settings from Flower's flat run config (or a parsed TOML file of the same keys).

    Args:
        config: values by key, e.g. ``{"num-rounds": 3}``; keys left out keep their default.

    Raises:
        ValueError: an unknown key, a value of another type or out of range.
    """
    known = {each.name.replace("_", "-"): each for each in dataclasses.fields(Settings)}
    values: dict[str, Any] = {}
    for key, value in config.items():
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else "see `python -m simulations settings`"
            raise ValueError(f"setting {key!r} is unknown; {hint}")
        is_whole = isinstance(value, int) and not isinstance(value, bool)
        values[known[key].name] = float(value) if known[key].type is float and is_whole else value
    return Settings(**values)
