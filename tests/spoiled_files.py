"""What a disk makes of a file: it is cut, a part of it is blank, or some bits are others."""

from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st


def damage(draw: Callable[[Any], Any], whole: bytes) -> bytes:
    """Draw what a file has become: cut short, blank for a stretch, or flipped in a byte, at any place."""
    place = draw(st.integers(0, len(whole) - 1))
    how = draw(st.sampled_from(["cut", "blank", "flip"]))
    if how == "cut":
        return whole[:place]
    if how == "flip":
        return whole[:place] + bytes([whole[place] ^ draw(st.integers(1, 255))]) + whole[place + 1 :]
    length = draw(st.integers(1, len(whole) - place))
    return whole[:place] + bytes(length) + whole[place + length :]
