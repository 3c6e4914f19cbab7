"""What a client keeps on its disk between rounds: what trains there and never leaves it, and what it was sent.

One folder per run and client, one file per kind and round; of earlier rounds as many stay as the server keeps
checkpoints, so a round that was killed half-way, or is done again from an older checkpoint, starts from the same
values.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file
from safetensors.numpy import save as to_safetensors

from fedasym.files import write_atomic

Float32 = NDArray[np.float32]


def read_local(folder: Path, number: int) -> dict[str, Float32] | None:
    """Return what trained at a client in its last round before this one; None if there is none."""
    earlier = _earlier(folder, "round", number)
    return load_file(earlier[-1]) if earlier else None


def write_local(folder: Path, number: int, matrices: dict[str, Float32], keep: int = 1) -> None:
    """Keep what trained at a client in a round."""
    _write(folder, "round", number, matrices, keep)


def read_held(folder: Path, number: int) -> dict[str, Float32] | None:
    """Return what a client held at the start of a round; None if it was not there."""
    path = folder / _name("held", number)
    return load_file(path) if path.exists() else None


def write_held(folder: Path, number: int, matrices: dict[str, Float32], keep: int = 1) -> None:
    """Keep what a client holds at the start of a round."""
    _write(folder, "held", number, matrices, keep)


def read_codec(folder: Path, number: int) -> dict[str, Float32]:
    """Return what a client's codec kept of its last message before this round's; empty if nothing."""
    earlier = _earlier(folder, "codec", number)
    return load_file(earlier[-1]) if earlier else {}


def write_codec(folder: Path, number: int, matrices: dict[str, Float32], keep: int = 1) -> None:
    """Keep what a client's codec wants for its next message."""
    _write(folder, "codec", number, matrices, keep)


def _write(folder: Path, kind: str, number: int, matrices: dict[str, Float32], keep: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    earlier = _earlier(folder, kind, number)
    write_atomic(folder / _name(kind, number), to_safetensors(matrices))
    for path in earlier[:-keep]:
        path.unlink()


def _earlier(folder: Path, kind: str, number: int) -> list[Path]:
    return [path for path in sorted(folder.glob(f"{kind}-*.safetensors")) if path.name < _name(kind, number)]


def _name(kind: str, number: int) -> str:
    return f"{kind}-{number:06d}.safetensors"
