"""What a client keeps in its process between messages: base model, adapters, contract, and the examples it holds.

One per thread and settings: Flower's simulation reuses its actors, the in-process grid its threads, and a model is
mutable, so threads do not share one.
"""

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from clients.node import NodeContext
from fedasym.adapters import trainable_state
from fedasym.adapters.frozen_seal import Seal
from fedasym.data.examples import load_examples, load_own_examples
from fedasym.data.partition import kept_out, partition
from fedasym.methods import METHODS
from fedasym.models import device
from fedasym.models.build import Built, build
from fedasym.models.class_names import classes_of_checkpoint
from fedasym.models.party_equivalence import initial_logits
from fedasym.ops.paused_gc import uncollected
from fedasym.rng import generator
from fedasym.settings import Settings
from fedasym.tasks import task_of
from fedasym.tasks.base import Encoded, Examples, Task
from fedasym.training.cohort import unfit
from fedasym.wire.contract import SITES, Contract, contract_of

_kept = threading.local()
_KEPT = 1 << 30  # bytes of pixel values that a session keeps of all its clients


@dataclass(frozen=True)
class Holding:
    """The examples that a node holds.

    Attributes:
        examples: of all its clients.
        indices: by client, the places of its examples in them.
        encoded: by client, its examples in that order; made when they are first wanted (`Session.encoded`).
    """

    examples: Examples
    indices: Mapping[int, NDArray[np.int64]]
    encoded: dict[int, Encoded] = field(default_factory=dict)


@dataclass
class Session:
    """A session: everything that a client's process keeps from message to message.

    Attributes:
        settings: of the run, resolved.
        built: the model; only its trained parameters ever change.
        task: the run's.
        contract: as built here.
        initial: all that the federation moves, as drawn from the seed.
        private: what stays with a client, as drawn from the seed.
        holdings: by site and folder; "" is the split that all nodes share.
        common: the model's own tensors that the federation moves, by name, as `trainable_state.common`.
        trained: its parameters that train, whether they travel or stay, by name.
        seal: of what is frozen, since its fingerprints were last those of the contract.
    """

    settings: Settings
    built: Built
    task: Task
    contract: Contract
    initial: dict[str, NDArray[np.float32]]
    private: dict[str, NDArray[np.float32]]
    holdings: dict[str, Holding]
    common: Mapping[str, Tensor]
    trained: Mapping[str, Tensor]
    seal: Seal

    def encoded(self, holding: Holding, client: int) -> Encoded:
        """Return a client's examples as the model reads them; those of a node's other clients may never be wanted."""
        if client not in holding.encoded:
            own, settings = holding.examples.take(holding.indices[client]), self.settings
            encoded = self.task.inputs.encode(self.built.processor, own, settings.max_length, settings.pooling)
            if sum(map(_pixel_bytes, (*holding.encoded.values(), encoded))) > _KEPT:
                return encoded  # it is made anew in every round
            holding.encoded[client] = encoded
        return holding.encoded[client]

    def shares(self, holding: Holding, client: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return which of a client's examples it trains on and which it keeps out (disjoint; drawn from the seed)."""
        size = len(holding.indices[client])
        kept = kept_out(size, self.settings.client_holdout)
        order = generator(self.settings.seed, "holdout", client).permutation(size)
        return np.sort(order[kept:]), np.sort(order[:kept])


def _pixel_bytes(encoded: Encoded) -> int:
    """Return what a client's images take, 0 where they stay as they are stored: all have one size."""
    return len(encoded.items) * getattr(encoded.items[0], "nbytes", 0) if encoded.items else 0


def session_of(settings: Settings) -> Session:
    """Return this thread's session for resolved settings, building it at the first call or when they change."""
    device.prepare(device.choose_device(settings.device), settings.threads, settings.deterministic)
    if getattr(_kept, "session", None) is None or _kept.session.settings != settings:
        if hasattr(_kept, "session"):  # also what is left of one that could not be built
            forget_session()  # first, so that there are never two models at once
        _kept.session = None
        with uncollected():
            _kept.session = _build_session(settings)
    session: Session = _kept.session
    return session


def forget_session() -> None:
    """Drop this thread's session and free its memory; the next message builds it anew."""
    _kept.session = None
    device.free()


def holding_of(session: Session, place: NodeContext) -> Holding:
    """Return what a node holds, reading a site's own data at the first call.

    Raises:
        ValueError: data that cannot be used.
        FileNotFoundError: a folder without the wanted file.
    """
    key = f"{place.site}:{place.data}" if place.data else ""
    if key not in session.holdings:
        examples = load_own_examples(session.settings, Path(place.data), session.task.order)
        client = session.settings.site_names.index(place.site)
        holding = Holding(examples, {client: np.arange(len(examples))})
        session.encoded(holding, client)  # what is wrong with them is found before the first round
        session.holdings[key] = holding
    return session.holdings[key]


def _build_session(settings: Settings) -> Session:
    task = task_of(settings)
    task = task.ordered(classes_of_checkpoint(settings) if task.target.classified else ())
    holdings = {}
    if settings.sites:
        names, data = task.class_names, SITES
        built = build(settings, task.outputs(names), task.inputs)
    else:
        train, _ = load_examples(settings, task.order)
        split = partition(train, settings)
        names, data = train.class_names, split.digest
        built = build(settings, task.outputs(names), task.inputs)
        holdings[""] = Holding(train, dict(enumerate(split.indices)))
    contract = contract_of(settings, built, names, data)
    moved = trainable_state.read(trainable_state.common(built.model))
    shared = METHODS[settings.method].common(moved)
    private = trainable_state.read(trainable_state.local_only(built.model)) | {
        n: m for n, m in moved.items() if n not in shared
    }
    initial = {name: matrix for name, matrix in moved.items() if name in shared}
    common, trained = (
        trainable_state.common(built.model),
        trainable_state.trainable(built.model) | trainable_state.local_only(built.model),
    )
    answers = partial(initial_logits, built.model, built.processor, task.inputs, settings)
    if settings.cohort > 1 and (reason := unfit(built.model, trained, settings.dtype, answers)):
        raise ValueError(f"cohort={settings.cohort}: {reason}")
    return Session(settings, built, task, contract, initial, private, holdings, common, trained, Seal(built.model))
