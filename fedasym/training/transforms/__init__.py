"""What happens to a client's change between training and sending: one file per transform, in the order of the setting.

A transform's file has a function ``transform(parameter)`` that makes it; the setting ``transforms`` names any number.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fedasym.fields import names_in
from fedasym.plugins import plugin

Matrices = dict[str, NDArray[np.float32]]


@dataclass(frozen=True)
class Change:
    """What a client is about to send.

    Attributes:
        before: the matrices that it was sent, by name, read-only.
        after: what it made of them; float32, the same names and shapes.
        examples: n_k.
    """

    before: Mapping[str, NDArray[np.float32]]
    after: Matrices
    examples: int


class Transform(Protocol):
    """Returns what is sent in place of ``after``."""

    def __call__(self, change: Change, rng: np.random.Generator) -> Matrices:
        """Return matrices of the same names and shapes, float32 and finite; ``rng`` is this client's and round's."""


def transforms_of(named: str) -> list[Transform]:
    """Return the transforms that the setting names, in its order.

    Raises:
        ValueError: there is none of a name, or it does not take this parameter.
    """
    return [plugin("fedasym.training.transforms", "transform", name, "transforms") for name in names_in(named)]


def transformed(transforms: list[Transform], change: Change, rng: np.random.Generator) -> Matrices:
    """Return what is sent: the matrices after all transforms, the next taking what the last returned."""
    after = change.after
    for each in transforms:
        after = each(Change(change.before, after, change.examples), rng)
    return after
