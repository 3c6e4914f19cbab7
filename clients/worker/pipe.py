"""Blocks of bytes over a socket between two processes, with a look around while one waits.

A block is its length (8 bytes, little-endian) and its bytes. Sending looks around as well: a peer that has stopped
reading would otherwise hold the sender as long as it likes.
"""

import socket
from collections.abc import Callable

_WORD = 8
_LOOK_SECONDS = 0.1
_MOST = 1 << 40  # bytes; more is no block of ours but a broken one


class Closed(EOFError):
    """The other end is gone."""


def write(channel: socket.socket, block: bytes, look: Callable[[], None] | None = None) -> None:
    """Send a block.

    Args:
        channel: to the peer.
        block: any bytes.
        look: called every 0.1 s while nothing moves; gives up by raising. None waits as long as it takes.

    Raises:
        Closed: the peer is gone.
    """
    channel.settimeout(_LOOK_SECONDS if look else None)
    for part in (len(block).to_bytes(_WORD, "little"), block):
        rest = memoryview(part)
        while rest:
            try:
                rest = rest[channel.send(rest) :]
            except TimeoutError:
                if look:
                    look()
            except OSError as error:
                raise Closed(f"the other end is gone: {error}") from error


def read(channel: socket.socket, look: Callable[[], None] | None = None) -> bytes:
    """Receive a block; arguments as in `write`.

    Raises:
        Closed: the peer is gone, or sent what is no block.
    """
    channel.settimeout(_LOOK_SECONDS if look else None)
    size = int.from_bytes(_read(channel, _WORD, look), "little")
    if size > _MOST:
        raise Closed(f"a block of {size} bytes is announced, which is none of ours")
    return bytes(_read(channel, size, look))


def _read(channel: socket.socket, size: int, look: Callable[[], None] | None) -> bytearray:
    found = bytearray()
    while len(found) < size:
        try:
            part = channel.recv(min(size - len(found), 1 << 20))
        except TimeoutError:
            if look:
                look()
            continue
        except OSError as error:
            raise Closed(f"the other end is gone: {error}") from error
        if not part:
            raise Closed("the other end is gone")
        found += part
    return found
