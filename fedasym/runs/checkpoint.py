"""The round's state on disk: one file, written atomically, checked when read; those of some rounds before beside it.

A killed run that is started again continues from here and ends with the same bits as one that was never killed. Where
the newest file is damaged it continues from the one before, does the rounds since again, and ends with them too.
"""

import hashlib
import json
import logging
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
from numpy.typing import NDArray
from safetensors.numpy import save as to_safetensors

from fedasym.files import write_atomic, writing

Float32 = NDArray[np.float32]

FILE = "checkpoint.safetensors"
log = logging.getLogger("fedasym")


@dataclass(frozen=True)
class State:
    """What the next round starts from.

    Attributes:
        run: the run's name, 32 hexadecimal digits, drawn when it began.
        round: rounds completed.
        matrices: what every party holds next.
        stack: the clients' factors that open the next round, where the method relays them; else empty.
        weights: n_k of the stack's clients, in its order.
        optimizer: the server optimizer's buffers by name.
        record_bytes: length of ``rounds.jsonl`` after this round, bytes.
        contract: the contract's canonical JSON.
        settings: the resolved settings as a flat run config.
        record_chain: `fedasym.runs.record.append_round`'s digest of all lines up to this round.
        older: whether it was read from an older file, since newer ones are damaged; not a part of the file.
    """

    run: str
    round: int
    matrices: dict[str, Float32]
    optimizer: dict[str, Float32]
    record_bytes: int
    contract: str
    settings: dict[str, Any]
    stack: dict[str, Float32] = field(default_factory=dict)
    weights: tuple[int, ...] = ()
    record_chain: str = ""
    older: bool = False


def save(folder: Path, state: State, keep: int = 1) -> None:
    """Write the state to ``checkpoint.safetensors`` in a run folder.

    Args:
        folder: of the run.
        state: to be read by `load`.
        keep: how many rounds' states are kept; those before the newest are ``checkpoint-ROUND.safetensors``.

    Raises:
        WriteError: the system refused; the newest state that was saved is whole.
    """
    parts = {"matrices": state.matrices, "optimizer": state.optimizer, "stack": state.stack}
    tensors = {f"{part}/{name}": tensor for part, held in parts.items() for name, tensor in held.items()}
    tensors = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    about = json.dumps(
        {
            "run": state.run,
            "round": state.round,
            "record_bytes": state.record_bytes,
            "contract": state.contract,
            "settings": state.settings,
            "weights": state.weights,
            "record_chain": state.record_chain,
        },
        sort_keys=True,
    )
    metadata = {"about": about, "sha256": checksum(about, tensors)}
    if keep > 1 and (folder / FILE).exists() and not (before := folder / _older_name(state.round - 1)).exists():
        try:
            before.hardlink_to(folder / FILE)
        except OSError:  # a file system without links
            write_atomic(before, (folder / FILE).read_bytes())
    kept = {_older_name(number) for number in range(state.round - keep + 1, state.round)}
    with writing(folder):
        for path in _older(folder):
            if path.name not in kept and path.name < _older_name(state.round):
                path.unlink()
    write_atomic(folder / FILE, to_safetensors(tensors, metadata=metadata))  # last, so that nothing is left to be done


def load(folder: Path) -> State | None:
    """Read a run folder's newest state that is whole; None if it holds no checkpoint.

    Raises:
        ValueError: every file is damaged, or none is a checkpoint.
    """
    newest, older = folder / FILE, _older(folder)
    if not newest.exists() and not older:
        return None
    reasons = []
    for path in [newest, *older]:
        try:
            state = _read(path)
        except (OSError, ValueError) as error:
            reasons.append(str(error))
            continue
        for reason in reasons:
            log.warning("%s; going back to round %d, whose state %s holds", reason, state.round, path.name)
        return replace(state, older=bool(reasons))
    raise ValueError(f"{'; '.join(reasons)}; remove the run folder to start anew")


def _older_name(number: int) -> str:
    return f"checkpoint-{number:06d}.safetensors"


def _older(folder: Path) -> list[Path]:
    """Return the files of earlier rounds, the newest first."""
    return sorted(folder.glob("checkpoint-[0-9][0-9][0-9][0-9][0-9][0-9].safetensors"), reverse=True)


def _read(path: Path) -> State:
    """Read a state.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or no checkpoint.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path} is gone")
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        told, expected = metadata["about"], metadata["sha256"]
    except (safetensors.SafetensorError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is damaged ({error})") from error
    if checksum(told, tensors) != expected:
        raise ValueError(f"{path} is damaged (its checksum differs)")
    about = json.loads(told)  # what the run wrote, byte for byte
    parts: dict[str, dict[str, Float32]] = {"matrices": {}, "optimizer": {}, "stack": {}}
    for name, tensor in tensors.items():
        part, _, own = name.partition("/")
        parts[part][own] = tensor
    return State(
        about["run"], about["round"], parts["matrices"], parts["optimizer"], about["record_bytes"], about["contract"],
        about["settings"], parts["stack"], tuple(about["weights"]), about.get("record_chain", ""),
    )  # fmt: skip


def checksum(about: str, tensors: dict[str, Float32]) -> str:
    """Return the SHA-256 of a text and of tensors with their names, types and shapes."""
    digest = hashlib.sha256(about.encode())
    for name in sorted(tensors):
        digest.update(f"\0{name}\0{tensors[name].dtype.str}{tensors[name].shape}\0".encode() + tensors[name].tobytes())
    return digest.hexdigest()
