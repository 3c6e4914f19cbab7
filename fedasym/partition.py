"""Who holds which example: flwr-datasets' partitioners by name, and a report of the outcome."""

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedasym.data import Examples
from fedasym.settings import Settings

_SIZE_SKEWS = {"linear": "LinearPartitioner", "square": "SquarePartitioner", "exponential": "ExponentialPartitioner"}
SPLITS = "iid, dirichlet:ALPHA, pathological:CLASSES, shard:SHARDS, linear, square or exponential"


@dataclass(frozen=True)
class Partition:
    """The split of a training set over clients.

    Attributes:
        indices: for each client, the sorted places of its examples.
        label_counts: ``(num_clients, num_classes)`` int64; for regression ``(num_clients, 1)``.
        digest: SHA-256 over the indices and over every text and label: equal digests mean equal data.
    """

    indices: tuple[NDArray[np.int64], ...]
    label_counts: NDArray[np.int64]
    digest: str

    @property
    def sizes(self) -> list[int]:
        """Examples of each client."""
        return [len(each) for each in self.indices]

    def report(self, class_names: tuple[str, ...]) -> dict[str, Any]:
        """Return sizes, label counts and digest as plain values for JSON."""
        return {
            "sizes": self.sizes,
            "classes": list(class_names),
            "label_counts": self.label_counts.tolist(),
            "digest": self.digest,
        }


def partition(examples: Examples, settings: Settings) -> Partition:
    """Split examples over ``num-clients`` clients as the setting ``split`` says, by the seed.

    Raises:
        ValueError: an unknown split or parameter, a split by label of a regression task, more clients than
            examples, or a client left with fewer than ``min-examples`` examples.
    """
    import datasets

    name, _, parameter = settings.split.partition(":")
    classes = examples.class_names
    if not classes and name in ("dirichlet", "pathological", "shard"):
        raise ValueError(
            f"split={settings.split!r} goes by class, but the task is a regression; use iid or a size skew"
        )
    if settings.num_clients > len(examples):
        raise ValueError(f"num-clients={settings.num_clients} exceeds the {len(examples)} training examples")
    partitioner = _partitioner(name, parameter, settings)
    order = np.random.Generator(np.random.Philox(key=settings.seed & (2**128 - 1))).permutation(len(examples))
    labels = examples.labels[order] if classes else np.zeros(len(order), np.int64)
    partitioner.dataset = datasets.Dataset.from_dict({"index": order.tolist(), "label": labels.tolist()})
    try:
        shares = [
            np.sort(np.asarray(partitioner.load_partition(k)["index"], np.int64)) for k in range(settings.num_clients)
        ]
    except (ValueError, ZeroDivisionError) as error:
        raise ValueError(
            f"split={settings.split!r} with num-clients={settings.num_clients} and "
            f"min-examples={settings.min_examples} is not possible on {len(examples)} examples: {error}"
        ) from error
    for client, share in enumerate(shares):
        if len(share) < settings.min_examples:
            raise ValueError(
                f"split={settings.split!r} gives client {client} {len(share)} examples, fewer than "
                f"min-examples={settings.min_examples}; use fewer clients, another split or a lower min-examples"
            )
    counts = np.stack(
        [
            np.bincount(examples.labels[share], minlength=len(classes)) if classes else np.asarray([len(share)])
            for share in shares
        ]
    )
    return Partition(tuple(shares), counts, _digest(examples, shares))


def _partitioner(name: str, parameter: str, settings: Settings) -> Any:
    from flwr_datasets import partitioner as library

    clients, seed = settings.num_clients, settings.seed % 2**32
    try:
        if name == "iid" and not parameter:
            return library.IidPartitioner(clients)
        if name == "dirichlet":
            return library.DirichletPartitioner(
                clients, "label", float(parameter), min_partition_size=settings.min_examples, seed=seed
            )
        if name == "pathological":
            return library.PathologicalPartitioner(
                clients, "label", int(parameter), class_assignment_mode="deterministic", seed=seed
            )
        if name == "shard":
            return library.ShardPartitioner(clients, "label", num_shards_per_partition=int(parameter), seed=seed)
        if name in _SIZE_SKEWS and not parameter:
            return getattr(library, _SIZE_SKEWS[name])(clients)
    except ValueError as error:
        raise ValueError(f"split={settings.split!r} has a bad parameter ({error}); use {SPLITS}") from error
    raise ValueError(f"split={settings.split!r} is unknown; use {SPLITS}")


def _digest(examples: Examples, shares: list[NDArray[np.int64]]) -> str:
    digest = hashlib.sha256()
    for share in shares:
        digest.update(len(share).to_bytes(8, "little") + share.astype("<i8").tobytes())
    for column in examples.texts:
        for text in column:
            raw = text.encode()
            digest.update(len(raw).to_bytes(4, "little") + raw)
    digest.update(repr(examples.class_names).encode())
    digest.update(np.ascontiguousarray(examples.labels).tobytes())
    return digest.hexdigest()
