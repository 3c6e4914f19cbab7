"""Random streams as arguments: a generator for each (seed, purpose, round, client).

Nothing in this project calls a global generator. A stream is named by what it is for, so that
drawing one more number for one purpose never moves another purpose's numbers.
"""

import hashlib
import operator

import numpy as np


def stream_key(seed: int, *purpose: str | int) -> int:
    """Derive the 128-bit Philox key of a named random stream.

    The key is the first 16 bytes of SHA-256 over the length-prefixed decimal seed and purposes, so
    it depends on nothing but its arguments (not on ``PYTHONHASHSEED``, process or machine).

    Args:
        seed: the run's seed, any integer (NumPy's integers count as Python's).
        *purpose: what the stream is for, e.g. ``"batches", round, client``.

    Returns:
        An integer below 2**128.

    Raises:
        TypeError: a part that is neither text nor an integer.

    >>> stream_key(0, "batches", 1, 2) == stream_key(0, "batches", 1, 2)
    True
    >>> stream_key(0, "batches", 12) == stream_key(0, "batches", 1, 2)
    False
    """
    digest = hashlib.sha256()
    for part in (seed, *purpose):
        text = (f"str:{part}" if isinstance(part, str) else f"int:{operator.index(part)}").encode()
        digest.update(len(text).to_bytes(4, "little") + text)
    return int.from_bytes(digest.digest()[:16], "little")


def generator(seed: int, *purpose: str | int) -> np.random.Generator:
    """Make the NumPy generator of a named stream (see `stream_key`)."""
    return np.random.Generator(np.random.Philox(key=stream_key(seed, *purpose)))
