"""The change cut back to a largest norm, so that no client's data move the mean by more than its share.

``clip:5.0`` scales the change of all matrices together so that its Euclidean norm is at most 5.0 (McMahan et al. 2018,
arXiv 1710.06963, flat clipping). The change is that of the matrices as sent, B and output layer.
"""

import math
from collections.abc import Callable

import numpy as np

from fedasym.training.transforms import Change, Matrices


def transform(parameter: str) -> Callable[[Change, np.random.Generator], Matrices]:
    """Return the clipping to the norm that the parameter gives.

    Raises:
        ValueError: it is no positive, finite number.
    """
    try:
        most = float(parameter)
    except ValueError:
        most = math.nan
    if not 0.0 < most < math.inf:
        raise ValueError(f"clip takes the largest norm, a positive number as in clip:5.0, and {parameter!r} is given")
    return lambda change, rng: clipped(change, most)


def clipped(change: Change, most: float) -> Matrices:
    """Return the matrices after a change of norm ``most`` at most; unchanged where it is not larger.

    >>> before, after = {"B": np.zeros(2, np.float32)}, {"B": np.array([3.0, 4.0], np.float32)}
    >>> clipped(Change(before, after, 1), 2.5)["B"].tolist()
    [1.5, 2.0]
    """
    moved = {name: after.astype(np.float64) - change.before[name] for name, after in change.after.items()}
    norm = math.sqrt(math.fsum(float(np.sum(np.square(each))) for each in moved.values()))
    if norm <= most:
        return change.after
    return {name: (change.before[name] + each * (most / norm)).astype(np.float32) for name, each in moved.items()}
