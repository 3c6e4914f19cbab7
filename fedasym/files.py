"""Files, and lines of JSON in them, that are written whole or not at all; settings in TOML, or why there are none."""

import errno
import json
import os
import re
import shutil
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

_OF_RUST = re.compile(r"\(os error (\d+)\)")  # how libraries written in Rust say an error of the system
_REMEDIES = {
    errno.ENOSPC: "free space there",
    errno.EDQUOT: "free space there, or have its quota raised",
    errno.EFBIG: "raise the limit on the size of a file (ulimit -f)",
    errno.EROFS: "have its file system mounted for writing, or choose another place",
    errno.EACCES: "let this user write there, or choose another place",
    errno.EPERM: "let this user write there, or choose another place",
    errno.EIO: "look at the disk",
}


class WriteError(OSError):
    """A file could not be written; the text says which, why, and what to do. What was whole before is whole."""

    def __str__(self) -> str:
        return str(self.strerror)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Say of what goes wrong while a file, or what is in a folder, is written which it is and what to do.

    Raises:
        WriteError: the system refused.
    """
    try:
        yield
    except WriteError:
        raise
    except Exception as error:
        number = error.errno if isinstance(error, OSError) else None
        if number is None and (found := _OF_RUST.search(str(error))):
            number = int(found[1])
        if number is None:
            raise
        remedy = _REMEDIES.get(number, "see to that")
        raise WriteError(
            number,
            f"{path} cannot be written ({os.strerror(number)}); {remedy}, then start the same again: what was written "
            "before is whole, and a run goes on from it",
        ) from error


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file so that a crash leaves the old content or the new, never a part.

    Raises:
        WriteError: the system refused; the old content is there, or the new one whole.
    """
    temporary = path.with_name(path.name + ".new")
    with writing(path):
        try:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except Exception:
            with suppress(OSError):  # on a full disk its part would be in the way
                temporary.unlink(missing_ok=True)
            raise
        _flush(path.parent)


def _flush(path: Path) -> None:
    """Let what was written to a file, or renamed in a folder, be on the disk."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """Give a new folder to write files into; at the end each takes the place of the one at its path in another folder.

    So files that a library writes are whole in that folder at any time, too. What a killed process has left in the new
    one is removed first.

    Raises:
        WriteError: the system refused; the old files are there.
    """
    new = folder / ".new"
    with writing(folder):
        shutil.rmtree(new, ignore_errors=True)
        try:
            new.mkdir()
            yield new
            for path in sorted(new.rglob("*")):
                place = folder / path.relative_to(new)
                if path.is_dir():
                    place.mkdir(exist_ok=True)
                else:
                    _flush(path)
                    path.replace(place)
            _flush(folder)
        finally:
            shutil.rmtree(new, ignore_errors=True)


def append_line(path: Path, line: Mapping[str, Any]) -> None:
    """Append a line of JSON to a file, in place of what a crash left of a torn one; it is on the disk on return.

    Raises:
        WriteError: the system refused.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+b") as file:
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)
            file.write((json.dumps(line, ensure_ascii=False) + "\n").encode())
            file.flush()
            os.fsync(file.fileno())


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return a file's complete lines of JSON, none if it does not exist; one torn, or still written, is left out."""
    if not path.exists():
        return []
    text = path.read_text()
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def read_toml(file: Path) -> dict[str, Any]:
    """Read a TOML file of settings.

    Raises:
        ValueError: it is not TOML; names the file and the place.
        FileNotFoundError: no such file.
    """
    if not file.exists():
        raise FileNotFoundError(f"there is no settings file {file}")
    try:
        return tomllib.loads(file.read_text())
    except (ValueError, RecursionError) as error:  # no TOML, no UTF-8, a number of thousands of digits
        raise ValueError(f"the settings file {file} is not TOML: {error}; write lines like num-rounds = 3") from error
