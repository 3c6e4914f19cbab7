"""A trained model out of a run folder: the one that the run's checkpoint is of, or an error that says why not."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import nn

from fedasym.adapters import trainable_state
from fedasym.methods import METHODS
from fedasym.models import device
from fedasym.models.build import Built, build
from fedasym.ops.processes import cores
from fedasym.runs import checkpoint
from fedasym.settings import Settings, from_run_config, of_any_version
from fedasym.tasks import task_of
from fedasym.tasks.base import Task
from fedasym.wire.contract import contract_of


@dataclass(frozen=True)
class TrainedModel:
    """What a run has trained so far, ready to be used.

    Attributes:
        settings: the run's, resolved, but for the device.
        task: what it has learned.
        built: model and processor, the trained matrices loaded.
        classes: names by id; empty where there are none.
        rounds: how many are done.
    """

    settings: Settings
    task: Task
    built: Built
    classes: tuple[str, ...]
    rounds: int


def load_trained(folder: Path, where: str = "auto", dtype: str = "") -> TrainedModel:
    """Build a run's model and load what its checkpoint holds, after the last finished round.

    Args:
        folder: of the run, finished or stopped.
        where: a device, as in the setting; a run may be used elsewhere than it was trained.
        dtype: of the frozen weights; empty: the run's. In another the base model is compared in the run's own first.

    Raises:
        FileNotFoundError: there is no checkpoint, or the model is not there.
        ValueError: the checkpoint is damaged or of another version, or model, tokenizer or A are others than the run's;
            names what differs.
        DeviceMemoryError: the device's memory is too small for it.
    """
    state = checkpoint.load(folder)
    if state is None:
        raise FileNotFoundError(f"{folder} holds no {checkpoint.FILE}; give a run folder of which a round is finished")
    try:
        settings = replace(from_run_config(of_any_version(state.settings)), device=where)
    except ValueError as error:
        raise ValueError(f"{folder} is of another version of fedasym, by which it can be used: {error}") from None
    device.prepare(device.choose_device(where), cores(), settings.deterministic)
    stated, task = json.loads(state.contract), task_of(settings)
    classes = tuple(stated["labels"])
    built = build(settings, task.outputs(classes), task.inputs)
    here = contract_of(settings, built, classes, stated["data"])
    if reason := here.refusal(state.contract, "the run there, what its settings build here"):
        raise ValueError(f"{folder}: the model is not the one that was trained; {reason}")
    if dtype and dtype != settings.dtype:
        del built
        settings = replace(settings, dtype=dtype)
        built = build(settings, task.outputs(classes), task.inputs)
    load_common(built.model, state.matrices)
    return TrainedModel(settings, task, built, classes, state.round)


def load_common(model: nn.Module, matrices: Mapping[str, NDArray[np.float32]]) -> None:
    """Load what all parties hold into a model; what is private to clients stays as it is."""
    tensors = trainable_state.common(model)
    trainable_state.load({name: tensors[name] for name in matrices}, matrices)


def private_parts(settings: Settings) -> str:
    """Say what of the trained model only its clients hold; "" where they hold nothing of their own."""
    if settings.head == "local":
        return "the output layer is as first drawn (head='local'): the trained ones stay with their clients"
    if METHODS[settings.method].personal:
        return f"private matrices of {settings.method} are as first drawn: the trained ones stay with their clients"
    return ""
