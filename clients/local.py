"""What trains at a client and never leaves it, kept on the client's disk between rounds.

One folder per run and client, one file per round; a round reads the newest file of an earlier round, so a round
that was killed half-way and is done again starts from the same values.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file
from safetensors.numpy import save as to_safetensors

from fedasym.checkpoint import write_atomic

Float32 = NDArray[np.float32]


def read_local(folder: Path, number: int) -> dict[str, Float32] | None:
    """Return what a client kept from its last round before this one; None if there is none."""
    earlier = [path for path in _files(folder) if _round_of(path) < number]
    return load_file(earlier[-1]) if earlier else None


def write_local(folder: Path, number: int, matrices: dict[str, Float32]) -> None:
    """Keep a client's matrices after a round; of earlier rounds only the newest stays."""
    folder.mkdir(parents=True, exist_ok=True)
    earlier = [path for path in _files(folder) if _round_of(path) < number]
    write_atomic(folder / f"round-{number:06d}.safetensors", to_safetensors(matrices))
    for path in earlier[:-1]:
        path.unlink()


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob("round-*.safetensors"))


def _round_of(path: Path) -> int:
    return int(path.stem.removeprefix("round-"))
