"""The checks of what a rule of averaging is given: a weight, and matrices like those of the first reply."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]


def require_weight(weight: object) -> int:
    """Require a positive integer and return it.

    Raises:
        TypeError: it is no integer.
        ValueError: it is below 1.
    """
    if isinstance(weight, bool) or not isinstance(weight, (int, np.integer)):
        raise TypeError(f"weight {weight!r} is a {type(weight).__name__}; give a positive integer")
    if weight < 1:
        raise ValueError(f"weight {weight} is not positive; give the number of examples")
    return int(weight)


def require_alike(matrices: Mapping[str, Float32], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Require finite float32 matrices of these names and shapes; empty shapes are the first reply's: any.

    Raises:
        TypeError: a matrix is not float32.
        ValueError: no matrices, other names or shapes, or a value that is not finite.
    """
    if not matrices:
        raise ValueError("a reply without matrices; send at least one")
    for name, matrix in matrices.items():
        if not isinstance(matrix, np.ndarray) or matrix.dtype != np.float32:
            kind = getattr(matrix, "dtype", type(matrix).__name__)
            raise TypeError(f"matrix {name!r} is {kind}; convert it to a float32 array")
    if shapes and matrices.keys() != shapes.keys():
        missing, extra = sorted(shapes.keys() - matrices.keys()), sorted(matrices.keys() - shapes.keys())
        raise ValueError(f"matrix names differ from the first reply's: missing {missing}, extra {extra}")
    for name, matrix in matrices.items():
        if shapes and matrix.shape != shapes[name]:
            raise ValueError(f"matrix {name!r} has shape {matrix.shape}; the first reply's has {shapes[name]}")
        if (place := not_finite(matrix)) is not None:
            raise ValueError(f"matrix {name!r} holds {matrix[place]} at {place}; send finite values only")


def not_finite(matrix: Float32) -> tuple[int, ...] | None:
    """Return the place of the first value that is not finite; None if there is none.

    >>> not_finite(np.array([[1, 2], [np.inf, 4]], np.float32)), not_finite(np.full((2, 2), 3e38, np.float32))
    ((1, 0), None)
    >>> not_finite(np.array(np.nan, np.float32))
    ()
    """
    values = matrix.ravel(order="K")
    # One fast pass: squares do not cancel, so their sum is finite only where all of them are.
    with np.errstate(over="ignore", invalid="ignore"):
        if np.isfinite(np.dot(values, values)):
            return None
    if np.isfinite(matrix).all():
        return None
    return tuple(int(i) for i in np.argwhere(~np.isfinite(matrix))[0])
