"""What a codec is."""

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
Matrices = dict[str, Float32]
Schema = Sequence[tuple[str, tuple[int, ...]]]
Arrays = dict[str, NDArray[np.generic]]


class Codec(Protocol):
    """Turns float32 matrices into the arrays that travel, and back.

    All parties hold what is decoded: who broadcasts goes on with ``decode(encode(x))``, and what is encoded once more
    is decoded to the same bits. A codec's file has a function ``codec(parameter)`` that makes it.
    """

    def layout(self, schema: Schema) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Return dtype and shape of each array that travels for a schema, by name: known before a byte is read."""

    def encode(
        self, matrices: Mapping[str, Float32], schema: Schema, rest: Mapping[str, Float32]
    ) -> tuple[Arrays, Matrices]:
        """Return the arrays of a message, as `layout` says, and what they leave over for the sender's next one.

        Args:
            matrices: those of the schema, finite.
            schema: ``(name, shape)`` sorted by name.
            rest: what its last message left over, empty at first: an error that is to be fed back, say.
        """

    def decode(self, arrays: Mapping[str, NDArray[np.generic]], schema: Schema) -> Matrices:
        """Return the schema's matrices, float32, from arrays that are as `layout` says, and read-only.

        Raises:
            ValueError: values that no encoder makes.
        """
