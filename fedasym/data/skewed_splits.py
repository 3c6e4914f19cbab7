"""The arithmetic of the splits that flwr-datasets does not have: label proportions and drawn sizes.

``mild`` and ``severe`` are the label skews of the FFA-LoRA experiments (Sun et al. 2024, arXiv 2403.12313).
"""

import numpy as np
from numpy.typing import NDArray

_BINARY = {
    "severe": ((0.1, 0.9), (0.9, 0.1), (0.5, 0.5)),
    "mild": ((0.15, 0.85), (0.85, 0.15), (0.5, 0.5)),
}
_FAVOURED = {"severe": 0.9, "mild": 0.7}  # share of a client's own class, with three classes or more
_DRAWS = 100


class SplitError(ValueError):
    """The split is impossible for the examples that are there; other splits, or another seed, may not be."""


def label_proportions(name: str, clients: int, classes: int) -> NDArray[np.float64]:
    """Return the wanted label proportions of each client, ``(clients, classes)``, each row of sum 1.

    Two classes: the three rows of the paper in turn. More: client k has 0.9 (``severe``) or 0.7 (``mild``) of class k
    modulo the number of classes, and the others in equal parts.

    >>> label_proportions("severe", 4, 2).tolist()
    [[0.1, 0.9], [0.9, 0.1], [0.5, 0.5], [0.1, 0.9]]
    >>> label_proportions("severe", 2, 3).round(6).tolist()
    [[0.9, 0.05, 0.05], [0.05, 0.9, 0.05]]
    """
    if classes == 2:
        rows = _BINARY[name]
        return np.asarray([rows[k % len(rows)] for k in range(clients)])
    favoured = _FAVOURED[name]
    table = np.full((clients, classes), (1.0 - favoured) / (classes - 1))
    table[np.arange(clients), np.arange(clients) % classes] = favoured
    return table


def deal(labels: NDArray[np.int64], proportions: NDArray[np.float64]) -> list[NDArray[np.int64]]:
    """Deal every example to one client: class c goes to client k in proportion to ``proportions[k, c]`` over clients.

    A class is cut, in the order given, at the rounded running sums of its column, so a client's count of it is at most
    one off the exact share. The clients' own label proportions are those of the table's rows, up to rounding, where
    all classes are equally frequent and all columns have one sum: the number of clients a multiple of three (two
    classes) or of the number of classes. Elsewhere every example is still used, and the proportions give way.

    Args:
        labels: ``(n,)`` class ids, already shuffled.
        proportions: ``(clients, classes)``, no column of zeros.

    Returns:
        For each client the places in ``labels``.

    >>> [share.tolist() for share in deal(np.array([0, 1, 0, 1]), np.array([[0.5, 1.0], [0.5, 0.0]]))]
    [[0, 1, 3], [2]]
    """
    shares: list[list[NDArray[np.int64]]] = [[] for _ in proportions]
    for c, column in enumerate(proportions.T):
        places = np.flatnonzero(labels == c)
        running = np.cumsum(column)
        ends = np.rint(running[:-1] / running[-1] * len(places)).astype(np.int64)
        for share, part in zip(shares, np.split(places, ends), strict=True):
            share.append(part)
    return [np.concatenate(share) for share in shares]


def draw_sizes(n: int, clients: int, alpha: float, least: int, rng: np.random.Generator) -> list[int]:
    """Draw the clients' sizes, of sum n, from a symmetric Dirichlet law; draw again while one is below ``least``.

    Args:
        n: examples.
        clients: number of sizes.
        alpha: concentration; the smaller, the more unequal.
        least: examples that every client must have.
        rng: the stream to draw from.

    Raises:
        SplitError: no draw gave every client enough.
        ValueError: alpha is not positive.
    """
    if not 0.0 < alpha < np.inf:
        raise ValueError(f"{alpha} is not a positive number")
    for _ in range(_DRAWS):
        ends = np.rint(np.cumsum(rng.dirichlet(np.full(clients, alpha)))[:-1] * n).astype(np.int64)
        sizes = np.diff(ends, prepend=0, append=n)
        if sizes.min() >= least:
            return [int(size) for size in sizes]
    raise SplitError(
        f"none of {_DRAWS} draws gave every client {least} examples; use a larger ALPHA, fewer clients or a lower "
        "min-examples"
    )
