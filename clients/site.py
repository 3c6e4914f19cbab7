"""What a client keeps in its process between messages: base model, adapters, tokens, contract.

One per thread and settings: Flower's simulation reuses its actors, the in-process grid its threads, and a model is
mutable, so threads do not share one.
"""

import threading
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from fedasym import lora
from fedasym.chance import generator
from fedasym.contract import Contract, contract_of
from fedasym.data import load_examples
from fedasym.methods import METHODS
from fedasym.model import Built, build
from fedasym.partition import Partition, partition
from fedasym.settings import Settings
from fedasym.tasks import Task, task_of
from fedasym.tokens import Tokens, tokenize

_kept = threading.local()


@dataclass(frozen=True)
class Site:
    """A client's workplace: everything that does not change from message to message."""

    settings: Settings
    built: Built
    task: Task
    tokens: Tokens
    split: Partition
    contract: Contract
    initial: dict[str, NDArray[np.float32]]  # all that the federation moves, as drawn from the seed
    private: dict[str, NDArray[np.float32]]  # what stays with a client, as drawn from the seed

    def shares(self, client: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the places of a client's training and kept-out examples (disjoint; drawn from the seed)."""
        own = self.split.indices[client]
        wanted = round(self.settings.client_holdout * len(own))
        kept = min(max(wanted, self.settings.client_holdout > 0), len(own) - 1)  # at least one each, where asked for
        order = generator(self.settings.seed, "holdout", client).permutation(len(own))
        return own[np.sort(order[kept:])], own[np.sort(order[:kept])]


def site_of(settings: Settings) -> Site:
    """Return this thread's site for resolved settings, building it at the first call or when they change."""
    torch.set_num_threads(settings.threads)
    if getattr(_kept, "site", None) is None or _kept.site.settings != settings:
        _kept.site = _build_site(settings)
    site: Site = _kept.site
    return site


def _build_site(settings: Settings) -> Site:
    task = task_of(settings)
    train, _ = load_examples(settings)
    split = partition(train, settings)
    built = build(settings, max(1, len(train.class_names)))
    contract = contract_of(settings, built, train.class_names, split.digest)
    tokens = tokenize(built.tokenizer, train, settings.max_length, settings.pooling)
    moved = lora.read(lora.common(built.model))
    shared = METHODS[settings.method].common(moved)
    private = lora.read(lora.local_only(built.model)) | {n: m for n, m in moved.items() if n not in shared}
    initial = {name: matrix for name, matrix in moved.items() if name in shared}
    return Site(settings, built, task, tokens, split, contract, initial, private)
