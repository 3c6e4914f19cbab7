"""Who holds which example: flwr-datasets' partitioners by name, and a report of the outcome.

The splits ``dirichlet``, ``pathological``, ``shard``, ``mild`` and ``severe`` go by class. A regression has none; there
they go by the quantile bins of the training scores: two bins for ``mild`` and ``severe``, five for the others.
"""

import hashlib
import importlib
import importlib.util
import re
import sys
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedasym.data.settings import DataSettings
from fedasym.data.skewed_splits import SplitError, deal, draw_sizes, label_proportions
from fedasym.ops import extras
from fedasym.rng import generator
from fedasym.tasks import task_of
from fedasym.tasks.base import Examples

_SIZE_SKEWS = {"linear": "LinearPartitioner", "square": "SquarePartitioner", "exponential": "ExponentialPartitioner"}
_BINS = {"dirichlet": 5, "pathological": 5, "shard": 5, "mild": 2, "severe": 2}  # of a regression's scores
SPLITS = (
    "iid, dirichlet:ALPHA, pathological:CLASSES, shard:SHARDS, mild, severe, "
    "linear, square, exponential, quantity:ALPHA, domain, domain:CLIENTS, column:NAME or column:NAME:CLIENTS"
)


@dataclass(frozen=True)
class Partition:
    """The split of a training set over clients.

    Attributes:
        indices: for each client, the sorted places of its examples.
        label_counts: ``(num_clients, num_classes)`` int64; for a regression ``(num_clients, num_bins)``, or
            ``(num_clients, 1)`` where the split does not go by bins.
        digest: SHA-256 over the indices and over every text, image and label: equal digests mean equal data.
        bins: what the bins of a regression's scores are; empty where there are none.
    """

    indices: tuple[NDArray[np.int64], ...]
    label_counts: NDArray[np.int64]
    digest: str
    bins: tuple[str, ...] = ()

    @property
    def sizes(self) -> list[int]:
        """Examples of each client."""
        return [len(each) for each in self.indices]

    def report(self, class_names: tuple[str, ...]) -> dict[str, Any]:
        """Return sizes, label counts and digest as plain values for JSON."""
        return {
            "sizes": self.sizes,
            "classes": list(self.bins or class_names),
            "label_counts": self.label_counts.tolist(),
            "digest": self.digest,
        }


def kept_out(size: int, holdout: float) -> int:
    """Return how many of a client's examples it keeps out of training by ``client-holdout``; at least one, where asked.

    >>> [kept_out(10, 0.0), kept_out(10, 0.25), kept_out(3, 0.01), kept_out(1, 0.5)]
    [0, 2, 1, 0]
    """
    return min(max(round(holdout * size), int(holdout > 0)), size - 1)


def partition(examples: Examples, settings: DataSettings) -> Partition:
    """Split examples over ``num-clients`` clients as the setting ``split`` says, by the seed.

    Raises:
        SplitError: the split is impossible for these examples: scores that make no bins, more clients than examples,
            another number of clients than a natural column or the domains make, or a client left with fewer than
            ``min-examples`` examples.
        ValueError: an unknown split or parameter.
    """
    name, _, parameter = settings.split.partition(":")
    if settings.num_clients > len(examples):
        raise SplitError(f"num-clients={settings.num_clients} exceeds the {len(examples)} training examples")
    labels, bins = _labels(examples, settings)
    order = _shuffled(settings.seed, len(examples))
    if name in ("mild", "severe") and not parameter:
        table = label_proportions(name, settings.num_clients, len(bins or examples.class_names))
        shares = [np.sort(order[places]) for places in deal(labels[order], table)]
    elif settings.dealt_column[0] and examples.groups is not None:
        shares = _of_each_group(examples.groups, order, settings)
    else:
        asked = _Asked(settings.split, settings.num_clients, settings.min_examples, settings.seed, labels.tobytes())
        shares = [*_library_shares(asked)]
    for client, share in enumerate(shares):
        if len(share) < settings.min_examples:
            raise SplitError(
                f"split={settings.split!r} gives client {client} {len(share)} examples, fewer than "
                f"min-examples={settings.min_examples}; use fewer clients, another split or a lower min-examples"
            )
    width = len(bins or examples.class_names) or 1
    counts = np.stack([np.bincount(labels[share], minlength=width) for share in shares])
    return Partition(tuple(shares), counts, _digest(examples, shares), bins)


def _labels(examples: Examples, settings: DataSettings) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Return what a split by label goes by: class ids, or bins of scores and their names, or zeros."""
    try:
        return task_of(settings).target.split_by(examples, _BINS.get(settings.split.partition(":")[0], 0))
    except ValueError as error:
        raise SplitError(
            f"split={settings.split!r} goes by labels, or bins of scores: {error}; use iid, a size skew or column:NAME"
        ) from error


def _of_each_group(
    groups: NDArray[np.int64], order: NDArray[np.int64], settings: DataSettings
) -> list[NDArray[np.int64]]:
    """Deal the shuffled examples of each group to as many clients as the split says, in nearly equal parts."""
    column, parameter = settings.dealt_column
    if not re.fullmatch("[1-9][0-9]{0,5}", parameter):
        raise ValueError(f"split={settings.split!r} has a bad parameter ({parameter!r} is no count); use {SPLITS}")
    parts, values = int(parameter), np.unique(groups)
    if parts * len(values) != settings.num_clients:
        clients = "a client" if parts == 1 else f"{parts} clients"
        raise SplitError(
            f"split={settings.split!r} makes {clients} of each {'domain' if column == 'domain' else 'value'}, and the "
            f"training examples have {len(values)}; set num-clients={parts * len(values)} (it is "
            f"{settings.num_clients})"
        )
    dealt = [part for value in values for part in np.array_split(order[groups[order] == value], parts)]
    return [np.sort(part) for part in dealt]


@dataclass(frozen=True)
class _Asked:
    """All that flwr-datasets' partitioners go by: settings, and the labels ``(n,)`` int64 as bytes."""

    split: str
    num_clients: int
    min_examples: int
    seed: int
    labels: bytes

    def __len__(self) -> int:
        return len(self.labels) // 8


@lru_cache(maxsize=2)  # server and clients of one process, and the methods of a comparison, ask for the same
def _library_shares(asked: _Asked) -> tuple[NDArray[np.int64], ...]:
    """Let flwr-datasets split the shuffled examples; return each client's sorted places, which cannot be written."""
    with extras.named():
        import datasets

    partitioner = _partitioner(asked)
    order = _shuffled(asked.seed, len(asked))
    labels = np.frombuffer(asked.labels, np.int64)[order]
    partitioner.dataset = datasets.Dataset.from_dict({"index": order.tolist(), "label": labels.tolist()})
    try:
        # [:] first: a column of datasets is read row by row.
        shares = [
            np.sort(np.asarray(partitioner.load_partition(k)[:]["index"], np.int64)) for k in range(asked.num_clients)
        ]
    except (ValueError, ZeroDivisionError) as error:
        raise SplitError(
            f"split={asked.split!r} with num-clients={asked.num_clients} and "
            f"min-examples={asked.min_examples} is not possible on {len(asked)} examples: {error}"
        ) from error
    for share in shares:
        share.flags.writeable = False
    return tuple(shares)


def _shuffled(seed: int, count: int) -> NDArray[np.int64]:
    return np.random.Generator(np.random.Philox(key=seed & (2**128 - 1))).permutation(count)


def _library() -> Any:
    """Import flwr-datasets' partitioners without the rest of it: its plots would take seconds of every node's start."""
    name = "flwr_datasets"
    whole = importlib.util.find_spec(name)
    if name in sys.modules or whole is None:
        return importlib.import_module(f"{name}.partitioner")
    sys.modules[name] = importlib.util.module_from_spec(whole)  # where to find its parts, and nothing of it run
    try:
        return importlib.import_module(f"{name}.partitioner")
    finally:
        del sys.modules[name]  # whoever imports it has it whole


def _partitioner(asked: _Asked) -> Any:
    with extras.named():
        library = _library()
    name, _, parameter = asked.split.partition(":")
    clients, seed = asked.num_clients, asked.seed % 2**32
    try:
        if name == "iid" and not parameter:
            return library.IidPartitioner(clients)
        if name == "dirichlet":
            return library.DirichletPartitioner(
                clients, "label", float(parameter), min_partition_size=asked.min_examples, seed=seed
            )
        if name == "pathological":
            return library.PathologicalPartitioner(
                clients, "label", int(parameter), class_assignment_mode="deterministic", seed=seed
            )
        if name == "shard":
            return library.ShardPartitioner(clients, "label", num_shards_per_partition=int(parameter), seed=seed)
        if name == "quantity":
            rng = generator(asked.seed, "quantity")
            sizes = draw_sizes(len(asked), clients, float(parameter), asked.min_examples, rng)
            return library.SizePartitioner(sizes)
        if name in _SIZE_SKEWS and not parameter:
            return getattr(library, _SIZE_SKEWS[name])(clients)
    except SplitError as error:
        raise SplitError(f"split={asked.split!r}: {error}") from error
    except ValueError as error:
        raise ValueError(f"split={asked.split!r} has a bad parameter ({error}); use {SPLITS}") from error
    raise ValueError(f"split={asked.split!r} is unknown; use {SPLITS}")


def _digest(examples: Examples, shares: list[NDArray[np.int64]]) -> str:
    digest = hashlib.sha256()
    for share in shares:
        digest.update(len(share).to_bytes(8, "little") + share.astype("<i8").tobytes())
    for column in examples.inputs:
        for cell in column:
            raw = cell.encode() if isinstance(cell, str) else bytes(cell)
            digest.update(len(raw).to_bytes(4, "little") + raw)
    digest.update(repr(examples.class_names).encode())
    digest.update(np.ascontiguousarray(examples.labels).tobytes())
    return digest.hexdigest()
