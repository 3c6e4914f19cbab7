"""What a client keeps on its disk between rounds: what trains there and never leaves it, and what it was sent.

One folder per run and client, one file per kind and round; of earlier rounds as many stay as the server keeps
checkpoints, so a round that was killed half-way, or is done again from an older checkpoint, starts from the same
values. A file that was damaged since is noticed by its checksum. Of earlier runs a site keeps a few, for a while.
"""

import re
import shutil
import time
from pathlib import Path

import numpy as np
import safetensors
from numpy.typing import NDArray
from safetensors.numpy import save as to_safetensors

from fedasym.files import write_atomic, writing
from fedasym.runs.checkpoint import checksum

Float32 = NDArray[np.float32]

RUN = re.compile("[0-9a-f]{32}")  # the name of a run
_CLIENT = re.compile("client-[0-9]+")
_FILE = re.compile(r"(round|held|codec)-[0-9]{6,}\.safetensors(\.new)?")
_DAY = 86_400.0  # seconds
_REMEDY = "put it back from a copy, or remove the client's folder of this run: it then begins as a new one"


def remove_earlier_runs(folder: Path, present: str, runs: int, days: float) -> list[str]:
    """Remove what a site's client has kept of earlier runs beyond what it is to keep.

    Nothing goes that is not a run's folder with nothing in it but what this file writes.

    Args:
        folder: of the site, in which each run has one.
        present: name of the run that is worked for, which stays.
        runs: how many others stay, those that were worked for last.
        days: how long one stays that is not worked for.

    Returns:
        What was removed or could not be, a line each.
    """
    said: list[str] = []
    last: dict[Path, float] = {}
    for path in folder.glob("*"):
        try:
            if path.name != present and _is_of_a_run(path):
                last[path] = max(each.stat().st_mtime for each in (path, *path.rglob("*")))
        except OSError as error:
            said.append(f"what was kept of run {path.name} cannot be looked at ({error}); it stays")
    newest = sorted(last, key=lambda path: (last[path], path.name), reverse=True)
    for place, path in enumerate(newest):
        old = time.time() - last[path] > days * _DAY
        if place < runs and not old:
            continue
        why = f"not worked for in {days:g} days" if old else f"the {runs} after it are kept"
        day = time.strftime("%Y-%m-%d", time.localtime(last[path]))
        try:
            shutil.rmtree(path)
            said.append(f"removed what was kept of run {path.name}, last worked for on {day}: {why}")
        except OSError as error:
            said.append(f"what was kept of run {path.name} cannot be removed ({error}); remove it by hand: {why}")
    return said


def _is_of_a_run(path: Path) -> bool:
    """Say whether a folder is a run's and holds nothing but what is written here."""
    if not RUN.fullmatch(path.name) or not _is_folder(path):
        return False
    clients = [*path.iterdir()]
    files = [file for client in clients if _is_folder(client) for file in client.iterdir()]
    return all(_CLIENT.fullmatch(client.name) and _is_folder(client) for client in clients) and all(
        _FILE.fullmatch(file.name) and file.is_file() and not file.is_symlink() for file in files
    )


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def read_local(folder: Path, number: int) -> dict[str, Float32] | None:
    """Return what trained at a client in its last round before this one; None if there is none.

    Raises:
        ValueError: the file is damaged.
    """
    earlier = _earlier(folder, "round", number)
    return _read(earlier[-1]) if earlier else None


def write_local(folder: Path, number: int, matrices: dict[str, Float32], keep: int = 1) -> None:
    """Keep what trained at a client in a round.

    Raises:
        WriteError: the system refused; so for the others below.
    """
    _write(folder, "round", number, matrices, keep)


def read_held(folder: Path, number: int) -> dict[str, Float32] | None:
    """Return what a client held at the start of a round; None if it was not there.

    Raises:
        ValueError: the file is damaged.
    """
    path = folder / _name("held", number)
    return _read(path) if path.exists() else None


def write_held(folder: Path, number: int, matrices: dict[str, Float32], keep: int = 1) -> None:
    """Keep what a client holds at the start of a round."""
    _write(folder, "held", number, matrices, keep)


def read_codec(folder: Path, number: int) -> dict[str, Float32]:
    """Return what a client's codec kept of its last message before this round's; empty if nothing.

    Raises:
        ValueError: the file is damaged.
    """
    earlier = _earlier(folder, "codec", number)
    return _read(earlier[-1]) if earlier else {}


def write_codec(folder: Path, number: int, matrices: dict[str, Float32], keep: int = 1) -> None:
    """Keep what a client's codec wants for its next message."""
    _write(folder, "codec", number, matrices, keep)


def _write(folder: Path, kind: str, number: int, matrices: dict[str, Float32], keep: int) -> None:
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        earlier = _earlier(folder, kind, number)
        matrices = {name: np.ascontiguousarray(matrix) for name, matrix in matrices.items()}
        data = to_safetensors(matrices, metadata={"sha256": checksum("", matrices)})
        write_atomic(folder / _name(kind, number), data)
        for path in earlier[:-keep]:
            path.unlink()


def _read(path: Path) -> dict[str, Float32]:
    """Read matrices.

    Raises:
        ValueError: they are not what was written.
    """
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            expected = (file.metadata() or {})["sha256"]
            found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except (safetensors.SafetensorError, KeyError) as error:
        raise ValueError(f"{path} is damaged ({error}); {_REMEDY}") from error
    if checksum("", found) != expected:
        raise ValueError(f"{path} is damaged (its checksum differs); {_REMEDY}")
    return found


def _earlier(folder: Path, kind: str, number: int) -> list[Path]:
    return [path for path in sorted(folder.glob(f"{kind}-*.safetensors")) if path.name < _name(kind, number)]


def _name(kind: str, number: int) -> str:
    return f"{kind}-{number:06d}.safetensors"
