"""The matrices as they are: all float32 values in one array.

Packing matters: Flower moves each array as an object of its own, with about 500 bytes of metadata.
"""

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from fedasym.plugins import without
from fedasym.wire.codecs.base import Arrays, Codec, Float32, Matrices, Schema

PACKED = "packed"


class Identity:
    """One float32 array ``packed`` of all values, in the order of the schema."""

    def layout(self, schema: Schema) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Return the one array: as many values as the schema holds."""
        return {PACKED: ("float32", (sum(math.prod(shape) for _, shape in schema),))}

    def encode(
        self, matrices: Mapping[str, Float32], schema: Schema, rest: Mapping[str, Float32]
    ) -> tuple[Arrays, Matrices]:
        """Return the values side by side; nothing is left over."""
        parts = [matrices[name].reshape(-1) for name, _ in schema]
        return {PACKED: np.concatenate(parts) if parts else np.zeros(0, np.float32)}, {}

    def decode(self, arrays: Mapping[str, NDArray[np.generic]], schema: Schema) -> Matrices:
        """Return the values in the shapes of the schema."""
        packed, matrices, start = arrays[PACKED].astype(np.float32, copy=False), Matrices(), 0
        for name, shape in schema:
            end = start + math.prod(shape)
            matrices[name] = packed[start:end].reshape(shape)
            start = end
        return matrices


def codec(parameter: str) -> Codec:
    """Return the codec."""
    without(parameter)
    return Identity()
