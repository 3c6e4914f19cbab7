"""The round's state on disk: one file, written atomically, checked when read.

A killed run that is started again continues from here and ends with the same bits as one that was never killed.
"""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
from numpy.typing import NDArray
from safetensors.numpy import save as to_safetensors

from fedasym.files import write_atomic

Float32 = NDArray[np.float32]

FILE = "checkpoint.safetensors"


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


def save(folder: Path, state: State) -> None:
    """Write the state to ``checkpoint.safetensors`` in a run folder, replacing the last one."""
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
        },
        sort_keys=True,
    )
    metadata = {"about": about, "sha256": _checksum(about, tensors)}
    write_atomic(folder / FILE, to_safetensors(tensors, metadata=metadata))


def load(folder: Path) -> State | None:
    """Read a run folder's state; None if it holds no checkpoint.

    Raises:
        ValueError: the file is damaged or is not a checkpoint.
    """
    path = folder / FILE
    if not path.exists():
        return None
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        about = json.loads(metadata["about"])
        expected = metadata["sha256"]
    except (safetensors.SafetensorError, KeyError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is damaged ({error}); remove the run folder to start anew") from error
    if _checksum(metadata["about"], tensors) != expected:
        raise ValueError(f"{path} is damaged (its checksum differs); remove the run folder to start anew")
    parts: dict[str, dict[str, Float32]] = {"matrices": {}, "optimizer": {}, "stack": {}}
    for name, tensor in tensors.items():
        part, _, own = name.partition("/")
        parts[part][own] = tensor
    return State(
        about["run"], about["round"], parts["matrices"], parts["optimizer"], about["record_bytes"], about["contract"],
        about["settings"], parts["stack"], tuple(about["weights"]),
    )  # fmt: skip


def _checksum(about: str, tensors: dict[str, Float32]) -> str:
    digest = hashlib.sha256(about.encode())
    for name in sorted(tensors):
        digest.update(f"\0{name}\0{tensors[name].dtype.str}{tensors[name].shape}\0".encode() + tensors[name].tobytes())
    return digest.hexdigest()
