"""What a run leaves behind, the same from every engine: config.json, rounds.jsonl, summary.json."""

import hashlib
import json
import os
import platform
from collections.abc import Sequence
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from fedasym import __version__
from fedasym.files import read_lines, write_atomic, writing
from fedasym.settings import Settings

UNTOUCHED = "untouched.json"  # the metrics before the first round
NODES = "nodes.json"  # what the nodes of a run said of themselves
EXAMPLES = "examples.json"  # some held-out examples, and what the model said to them before and after
_PACKAGES = ("flwr", "flwr-datasets", "torch", "transformers", "tokenizers", "datasets", "numpy", "safetensors")


def versions() -> dict[str, str]:
    """Return the versions that a result depends on, and the platform."""
    found = {name: _version(name) for name in _PACKAGES}
    return {"fedasym": __version__, "python": platform.python_version(), "machine": platform.platform(), **found}


@cache
def _version(name: str) -> str:
    """Return a package's version; a site does without some."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


def run_folder(settings: Settings, run_id: int) -> Path:
    """Return a run's absolute folder: the setting ``out``, or a new one under ``runs/`` in the working directory."""
    name = settings.out or f"runs/{settings.task}-{settings.method}-{run_id}"
    return Path(name).expanduser().absolute()


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON, atomically."""
    write_atomic(path, (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode())


def append_round(folder: Path, row: dict[str, Any], chain: str = "") -> tuple[int, str]:
    """Append one round to rounds.jsonl.

    Args:
        folder: of the run.
        row: the round's line.
        chain: digest of all lines before it; "" before the first.

    Returns:
        The file's length in bytes, and the digest of all lines, which a checkpoint keeps: a line that is changed later
        is noticed.

    Raises:
        ValueError: a value is not finite; JSON has no word for it.
        WriteError: the system refused; what it took of the line is cut off when the run is continued.
    """
    line = (json.dumps(row, allow_nan=False) + "\n").encode()
    path = folder / "rounds.jsonl"
    with writing(path), path.open("ab") as file:
        file.write(line)
        file.flush()
        os.fsync(file.fileno())
        return file.tell(), _chained(chain, line)


def _chained(chain: str, line: bytes) -> str:
    return hashlib.sha256(chain.encode() + line).hexdigest()


def cut_rounds(folder: Path, length: int, chain: str = "", *, several: bool = False) -> bool:
    """Cut rounds.jsonl back to what the checkpoint knows: its last round may be one ahead.

    Args:
        folder: of the run.
        length: of what the checkpoint knows, bytes.
        chain: digest of that, as `append_round` returned it; "": it is not compared.
        several: whether more than one round may be beyond, since the checkpoint is an older one.

    Returns:
        Whether a round was cut off; it will be done again.

    Raises:
        ValueError: the file is shorter than the checkpoint says or not what it was, or more than one round longer.
        WriteError: the system refused.
    """
    path = folder / "rounds.jsonl"
    if not path.exists() and length == 0:
        return False
    size = path.stat().st_size if path.exists() else 0
    if size < length:
        raise ValueError(f"{path} has {size} bytes, the checkpoint expects {length}; remove the run folder")
    whole = path.read_bytes()
    found = ""
    for line in whole[:length].splitlines(keepends=True):
        found = _chained(found, line)
    if chain and found != chain:
        raise ValueError(
            f"{path} was changed: its first {length} bytes are not those that the run wrote; put them back as they "
            "were, or remove the run folder"
        )
    beyond = whole[length:].splitlines()
    if len(beyond) > 1 and not several:
        raise ValueError(
            f"{path} holds {len(beyond)} rounds beyond its checkpoint, which one killed run cannot leave; "
            "was the checkpoint removed? Choose another out, or remove the run folder"
        )
    with writing(path):
        os.truncate(path, length)
    return bool(beyond)


def read_rounds(folder: Path) -> list[dict[str, Any]]:
    """Return the complete lines of rounds.jsonl; a line still being written is left out."""
    return read_lines(folder / "rounds.jsonl")


def rounds_since_best(scores: Sequence[float | None]) -> int:
    """Return in how many evaluated rounds in a row a metric has not been above all before; 0: the last one was.

    Args:
        scores: the metric of each round, None of those that were not evaluated.

    >>> [rounds_since_best([2.0, None, 2.0, 1.0][:count]) for count in (0, 1, 2, 3, 4)]
    [0, 0, 0, 1, 2]
    """
    best, since = float("-inf"), 0
    for value in scores:
        if value is not None:
            best, since = (value, 0) if value > best else (best, since + 1)
    return since


def read_json(path: Path) -> Any:
    """Read a JSON file of a run folder."""
    return json.loads(path.read_text())


def summarise(
    config: dict[str, Any], rounds: list[dict[str, Any]], untouched: dict[str, float] | None = None
) -> dict[str, Any]:
    """Sum up a finished run.

    Bytes per client and round are means over all asked (down) and all valid (payload up) clients, and over all that
    replied at all (message up). ``untouched`` is the metric before the first round, from metrics of
    `UNTOUCHED`; None where it was not evaluated.

    Raises:
        ValueError: a round is missing, or none is evaluated yet.
    """
    settings, metric = config["settings"], config["metric"]
    numbers = [row["round"] for row in rounds]
    if numbers != list(range(1, len(rounds) + 1)):
        raise ValueError(
            f"rounds.jsonl holds the rounds {numbers}, not 1 to {len(rounds)}: it was changed; run it anew"
        )
    values = [value for row in rounds if (value := row["metrics"][metric]) is not None]
    if not values:
        every = settings["eval_every"]
        raise ValueError(
            f"none of the {len(rounds)} rounds is evaluated yet; with eval-every={every} wait for round "
            f"{min(every, settings['num_rounds'])}"
        )
    meter = [row["mismatch"] for row in rounds if row["mismatch"] is not None]
    asked = sum(row["clients_asked"] for row in rounds)
    valid, replied = (sum(row[key] for row in rounds) for key in ("clients_valid", "clients_replied"))
    up, down = sum(row["payload_up"] for row in rounds), sum(row["payload_down"] for row in rounds)
    return {
        "task": settings["task"],
        "model": settings["model"],
        "method": settings["method"],
        "split": settings["split"],
        "seed": settings["seed"],
        "rounds": len(rounds),
        "metric": metric,
        "final": values[-1],
        "best": max(values),
        "untouched": untouched[metric] if untouched else None,
        "held_out_examples": config["held_out_examples"],
        "payload_up_per_client_round": up / valid,
        "payload_down_per_client_round": down / asked,
        "message_up_per_client_round": sum(row["message_up"] for row in rounds) / replied,
        "message_down_per_client_round": sum(row["message_down"] for row in rounds) / asked,
        "head_bytes": 4 * config["head_values"],
        "payload_total": up + down,
        "message_total": sum(row["message_up"] + row["message_down"] for row in rounds),
        "mismatch": max(meter, default=None),
        "digest": rounds[-1]["digest"],
        "seconds": round(sum(row["seconds"] for row in rounds), 3),
    }
