"""Folders that a command makes anew: what is there is deleted only if an earlier command of ours has left it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

_BEGUN = {".lock", "flower.log", "progress"}  # what a run leaves that ended before it wrote its config.json


def is_run(folder: Path) -> bool:
    """Say whether a folder is that of a run, by the contract in its config.json, or of one that hardly began."""
    try:
        config: Any = json.loads((folder / "config.json").read_text())
    except FileNotFoundError:
        return {path.name for path in folder.iterdir()} <= _BEGUN
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and "contract_hash" in config


def is_federation(folder: Path) -> bool:
    """Say whether a folder is that of a whole federation, which its server's home tells."""
    return (folder / "server" / "server.toml").is_file()


def check_replaceable(folder: Path, is_ours: Callable[[Path], bool], what: str) -> None:
    """Require that a folder is ours, empty or not there.

    Args:
        folder: that is to be made anew.
        is_ours: tells it by its contents.
        what: it should be, for the error.

    Raises:
        FileExistsError: it is something else, which is not ours to delete.
    """
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not is_ours(folder))):
        raise FileExistsError(
            f"{folder} is no earlier {what} and is not deleted; name a new folder with --out, or remove it yourself"
        )


def clear(folder: Path, is_ours: Callable[[Path], bool], what: str) -> None:
    """Delete a folder that is ours; an empty one or none is left alone.

    Raises:
        FileExistsError: as `check_replaceable`.
    """
    check_replaceable(folder, is_ours, what)
    if folder.exists() and any(folder.iterdir()):
        shutil.rmtree(folder)
