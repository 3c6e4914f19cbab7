"""Local steps, evaluation, and what a model answers: plain PyTorch.

Dropout stays off (the model is in evaluation mode): nothing is drawn while training but the batches, and those
come from a generator that is an argument.
"""

import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedasym.methods import METHODS
from fedasym.models.device import autocast, batch_to_evaluate, device_of, memory_named, place
from fedasym.models.gradient_checkpointing import recomputed
from fedasym.ops.progress import Tell, to_nobody
from fedasym.tasks.base import Answer, Encoded, Task
from fedasym.training.settings import TrainingSettings


@dataclass(frozen=True)
class Trained:
    """What local training reports: mean loss over its steps, steps done, examples used."""

    loss: float
    steps: int
    examples: int


def draw_batches(
    lengths: NDArray[np.int64], batch_size: int, steps: int, epochs: int, rng: np.random.Generator
) -> list[NDArray[np.int64]]:
    """Draw a round's batches: shuffled passes over the data, each grouped by length.

    Which examples a pass sees is a uniform shuffle; among them, batches hold examples of similar length and come in
    shuffled order, which saves padding. No batch crosses two passes, so none holds an example twice; the last
    batch of a full pass may be smaller.

    Args:
        lengths: ``(n,)`` tokens of each example of the client.
        batch_size: examples of a batch.
        steps: number of batches; 0 means ``epochs`` full passes instead.
        epochs: full passes if steps is 0.
        rng: the stream to draw from.

    Returns:
        Places into the client's data, one array a batch.
    """
    n = len(lengths)
    wanted = steps or epochs * math.ceil(n / batch_size)
    batches: list[NDArray[np.int64]] = []
    while len(batches) < wanted:
        drawn = rng.permutation(n)[: (wanted - len(batches)) * batch_size]
        drawn = drawn[np.argsort(lengths[drawn], kind="stable")]
        cut = [drawn[start : start + batch_size] for start in range(0, len(drawn), batch_size)]
        batches += [cut[i] for i in rng.permutation(len(cut))]
    return batches


def train_steps(
    model: nn.Module,
    parameters: Mapping[str, Tensor],
    processor: Any,
    encoded: Encoded,
    batches: Sequence[NDArray[np.int64]],
    task: Task,
    settings: TrainingSettings,
    tell: Tell = to_nobody,
    factor: float = 1.0,
) -> Trained:
    """Train the given parameters, and only those, one optimizer step a batch.

    Args:
        model: returns an object with ``logits``.
        parameters: by name; adapters (``.A``, ``.B``), in full fine-tuning the base model, take the rate ``lr``, all
            others ``head_lr``.
        processor: the model's own; makes the batches.
        encoded: the client's examples.
        batches: places into them.
        task: has the loss.
        settings: optimizer, rates, clipping, and how many examples are computed at a time: the gradient of a batch is
            the sum of those of its parts, weighted by their terms of the loss, equal to that of the whole to rounding.
        tell: told after every step how many are done, of how many.
        factor: of both rates, as `fedasym.training.schedule.rate_factor`.

    Raises:
        FloatingPointError: the loss is not finite; names the step.
        DeviceMemoryError: the device's memory is too small for it.
        ValueError: gradient checkpointing of a model that has no layers for it.
    """
    where = device_of(model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in parameters)  # what is frozen in this round keeps no activations
    whole = METHODS[settings.method].factors == "W"
    optimizer = optimizer_of(parameters, _base(model) if whole else (), settings, factor)
    total, examples = 0.0, 0
    size = settings.micro_batch or settings.batch_size
    recompute = recomputed(model, settings.model) if settings.gradient_checkpointing else nullcontext()
    with memory_named(f"local training on {where}", less_memory(settings)), recompute:
        for step, batch in enumerate(batches, start=1):
            optimizer.zero_grad(set_to_none=True)
            mean = 0.0
            for part in (batch[start : start + size] for start in range(0, len(batch), size)):
                inputs, labels = on_device(where, task.inputs.collate(processor, encoded, part.tolist()))
                with autocast(where, settings.dtype if whole else "float32"):
                    logits = model(**inputs).logits
                value = task.target.loss(logits, labels)
                if not torch.isfinite(value):
                    raise FloatingPointError(
                        f"the training loss is {value.item()} at local step {step}; lower lr={settings.lr} "
                        f"or head-lr={settings.head_lr}"
                    )
                share = float(encoded.terms[part].sum() / encoded.terms[batch].sum())
                (value if share == 1.0 else value * share).backward()  # type: ignore[no-untyped-call]
                mean += value.item() * share
            if settings.clip:
                nn.utils.clip_grad_norm_(list(parameters.values()), settings.clip)
            optimizer.step()
            total += mean
            examples += len(batch)
            tell(step, len(batches))
    return Trained(total / len(batches), len(batches), examples)


def on_device(where: torch.device, batch: tuple[dict[str, Tensor], Tensor]) -> tuple[dict[str, Tensor], Tensor]:
    """Return inputs and labels on a device."""
    inputs, labels = batch
    placed = place({**inputs, "labels": labels}, where)
    return {name: placed[name] for name in inputs}, placed["labels"]


def less_memory(settings: TrainingSettings) -> str:
    """Say what takes less memory, with the present values."""
    size = settings.micro_batch or settings.batch_size
    steps = [f"micro-batch={max(size // 2, 1)} (now {size} examples at a time)"] if size > 1 else []
    steps += [] if settings.gradient_checkpointing else ["gradient-checkpointing=true"]
    steps += ["one-product=false"] if settings.may_take_one_product and settings.cohort == 1 else []
    return f"set {', '.join([*steps, f'a smaller max-length (now {settings.max_length})'])}, or fewer clients at a time"


def _base(model: Any) -> tuple[str, ...]:
    """Return how the names of the base model's parameters begin: all of them where no part is called so, as in T5."""
    return ("",) if model.base_model is model else (f"{model.base_model_prefix}.",)


def optimizer_of(
    parameters: Mapping[str, Tensor], base: tuple[str, ...], settings: TrainingSettings, factor: float
) -> torch.optim.Optimizer:
    """Return the local optimizer of parameters; ``base`` are the beginnings of names that take the rate ``lr`` too."""
    inner = {name: p for name, p in parameters.items() if name.endswith((".A", ".B")) or name.startswith(base)}
    head = [p for name, p in parameters.items() if name not in inner]
    rates = (settings.lr * factor, settings.head_lr * factor)
    groups = [{"params": [*inner.values()], "lr": rates[0]}, {"params": head, "lr": rates[1]}]
    groups = [group for group in groups if group["params"]]
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(groups, weight_decay=settings.weight_decay)
    return torch.optim.SGD(groups)


def evaluate(
    model: nn.Module,
    processor: Any,
    encoded: Encoded,
    task: Task,
    batch_size: int = 0,
    tell: Tell = to_nobody,
) -> dict[str, float]:
    """Compute the task's metrics and the mean loss over all examples, on the model's device; ``tell`` is told how many.

    Args:
        model: returns an object with ``logits``.
        processor: the model's own; makes the batches.
        encoded: the examples.
        task: judges them.
        batch_size: examples at a time; 0: what suits the device.
        tell: told after every batch how many examples are done, of how many.

    Returns:
        Metric values by name, fractions, and ``loss``.

    Raises:
        FloatingPointError: logits or loss are not finite, of which a metric would still make a number.
        DeviceMemoryError: the device's memory is too small for it.
    """
    order, where = np.argsort(encoded.lengths, kind="stable"), device_of(model)
    batch_size = batch_size or batch_to_evaluate(where)
    evaluation = task.target.evaluation(task.metrics, processor)
    with torch.no_grad(), memory_named(f"evaluation on {where}", f"lower eval-batch={batch_size}"):
        for start in range(0, len(order), batch_size):
            places = order[start : start + batch_size].tolist()
            inputs, labels = on_device(where, task.inputs.collate(processor, encoded, places))
            evaluation.add(model, inputs, labels, [encoded.items[i] for i in places])
            tell(min(start + batch_size, len(order)), len(order))
    return evaluation.scores()


def ask(
    model: nn.Module,
    processor: Any,
    encoded: Encoded,
    task: Task,
    classes: tuple[str, ...],
    length: int = 0,
    batch_size: int = 0,
) -> list[Answer]:
    """Return what the model says to each example, in their order; nothing is drawn.

    Args:
        model: in evaluation mode.
        processor: the model's own; makes the batches.
        encoded: of the task's `Inputs.asked`.
        task: whose target is answered for.
        classes: names by id; empty where there are none.
        length: tokens of what is written at most; 0: the target's own.
        batch_size: examples at a time; 0: what suits the device.

    Raises:
        FloatingPointError: something that the model said is not finite.
        DeviceMemoryError: the device's memory is too small for it.
        ValueError: a length for which the model has no positions.
    """
    order, where = np.argsort(encoded.lengths, kind="stable"), device_of(model)
    batch_size = batch_size or batch_to_evaluate(where)
    said: dict[int, Answer] = {}
    with torch.no_grad(), memory_named(f"answering on {where}", "ask fewer inputs at a time, or for a lower length"):
        for start in range(0, len(order), batch_size):
            places = order[start : start + batch_size].tolist()
            batch = on_device(where, task.inputs.asked.collate(processor, encoded, places))
            said.update(zip(places, task.target.answers(model, processor, batch, classes, length), strict=True))
    return [said[place] for place in range(len(encoded))]
