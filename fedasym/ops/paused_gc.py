"""Imports and loading without Python's cycle collector, which finds nothing there and takes a fifth of the time."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def uncollected() -> Iterator[None]:
    """Switch the cycle collector off for what makes many objects that stay; it is then on again, as before.

    PyTorch, transformers and datasets make hundreds of thousands of objects while they are imported, and each time
    their number has grown by a quarter the collector looks through all of them.
    """
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()
