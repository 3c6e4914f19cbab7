"""Local training of several clients in one pass: W and A are the same for all, only what trains is each one's own.

Their batches go through the model as one, A reads all tokens at once, and each client's B, of a stack of them, works on
its own part of the batch (`fedasym.adapters.layers.product`). A client's loss, gradient, clipping and optimizer state
are its own, as if it were alone; what differs is rounding: larger products are summed in another order, and a batch is
padded to the longest text among all clients.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedasym.adapters import trainable_state
from fedasym.adapters.layers import AdaptedConv, AdaptedEmbedding, AdaptedLinear, TrainedLinear
from fedasym.models.device import device_of, memory_named
from fedasym.models.gradient_checkpointing import recomputed
from fedasym.models.party_equivalence import TOLERANCES, logits_gap
from fedasym.ops.progress import Tell, to_nobody
from fedasym.rng import generator
from fedasym.tasks.base import Encoded, Task
from fedasym.training.loop import Trained, less_memory, on_device, optimizer_of
from fedasym.training.settings import TrainingSettings

Matrices = Mapping[str, NDArray[np.float32]]

_PLACES = ((0, -1), (-1, -1))  # inputs of the two clients of a probe: different ones, and the last for equal padding


@dataclass(frozen=True)
class Member:
    """A client of a cohort.

    Attributes:
        start: what it starts from: float32, all that differs from client to client, by name.
        encoded: its examples.
        batches: places into them, one array a step.
        tell: told after every step how many are done, of how many.
    """

    start: Matrices
    encoded: Encoded
    batches: Sequence[NDArray[np.int64]]
    tell: Tell = to_nobody


def train_together(
    model: nn.Module,
    parameters: Mapping[str, Tensor],
    moving: Collection[str],
    processor: Any,
    members: Sequence[Member],
    task: Task,
    settings: TrainingSettings,
    factor: float = 1.0,
) -> list[tuple[Trained, dict[str, NDArray[np.float32]]] | FloatingPointError]:
    """Train clients in one pass, each as `fedasym.training.loop.train_steps` trains it alone, to rounding.

    Args:
        model: as there; `unfit` has said that it can be trained so. It is left as it was.
        parameters: all that differs from client to client, by name.
        moving: names of those that train.
        processor: as there.
        members: the clients, each with as many batches as the others.
        task: as there.
        settings: as there; ``micro_batch`` counts examples of one client.
        factor: as there.

    Returns:
        For each client what its training reports and what it ends with, or the error that ended it: its loss was not
        finite. The others go on.

    Raises:
        DeviceMemoryError: the device's memory is too small for it.
        ValueError: as there.
    """
    where, steps, count = device_of(model), len(members[0].batches), len(members)
    together, offsets = _together([member.encoded for member in members])
    size = settings.micro_batch or settings.batch_size
    totals, examples = [0.0] * count, [0] * count
    failed: dict[int, FloatingPointError] = {}
    remedy = f"lower cohort={settings.cohort}, {less_memory(settings)}"
    recompute = recomputed(model, settings.model) if settings.gradient_checkpointing else nullcontext()
    with (
        memory_named(f"local training of {count} clients on {where}", remedy),
        stacked(model, parameters, [member.start for member in members]) as stack,
        recompute,
    ):
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in moving)
        optimizer = optimizer_of({name: stack[name] for name in moving}, (), settings, factor)
        for step in range(steps):
            optimizer.zero_grad(set_to_none=True)
            batches = [member.batches[step] for member in members]
            terms = [member.encoded.terms[batch].sum() for member, batch in zip(members, batches, strict=True)]
            means = [0.0] * count
            for start in range(0, max(map(len, batches)), size):
                parts = [batch[start : start + size] for batch in batches]
                rows = max(map(len, parts))
                # Who has fewer examples has its first one again in their place, which its loss does not count.
                places = [
                    offset + place
                    for offset, batch, part in zip(offsets, batches, parts, strict=True)
                    for place in [*part.tolist(), *[int(batch[0])] * (rows - len(part))]
                ]
                inputs, labels = on_device(where, task.inputs.collate(processor, together, places))
                logits = model(**inputs).logits
                values: dict[int, Tensor] = {}
                for k, part in enumerate(parts):
                    if k not in failed and len(part):
                        own = slice(k * rows, k * rows + len(part))
                        share = float(members[k].encoded.terms[part].sum() / terms[k])
                        values[k] = task.target.loss(logits[own], labels[own]) * share
                found = torch.stack([*values.values()]).detach().tolist() if values else []
                for k, value in zip([*values], found, strict=True):
                    if not np.isfinite(value):
                        del values[k]
                        failed[k] = FloatingPointError(
                            f"the training loss is {value} at local step {step + 1}; lower lr={settings.lr} or "
                            f"head-lr={settings.head_lr}"
                        )
                    means[k] += value
                if values:
                    torch.stack([*values.values()]).sum().backward()  # type: ignore[no-untyped-call]
            if len(failed) == count:
                break
            if settings.clip:
                clip_each([p.grad for p in stack.values() if p.grad is not None], settings.clip)
            optimizer.step()
            for k, member in enumerate(members):
                totals[k] += means[k]
                examples[k] += len(batches[k])
                member.tell(step + 1, steps)
        ends = trainable_state.read(stack)
    return [
        failed.get(k) or (Trained(totals[k] / steps, steps, examples[k]), {name: m[k] for name, m in ends.items()})
        for k in range(count)
    ]


def _together(parts: Sequence[Encoded]) -> tuple[Encoded, list[int]]:
    """Return the examples of all, one client's after another's, and where each one's begin."""
    whole = Encoded(
        [item for part in parts for item in part.items],
        np.concatenate([part.lengths for part in parts]),
        np.concatenate([part.labels for part in parts]),
        np.concatenate([part.terms for part in parts]),
    )
    return whole, [sum(map(len, parts[:k])) for k in range(len(parts))]


@contextmanager
def stacked(
    model: nn.Module, parameters: Mapping[str, Tensor], starts: Sequence[Matrices]
) -> Iterator[dict[str, nn.Parameter]]:
    """Put a stack of matrices, one for each part of the batch, in the place of each parameter; at the end put it back.

    Args:
        model: adapted.
        parameters: of it, by name.
        starts: for each part, float32 by the names of the parameters.

    Yields:
        The stacks by the same names.
    """
    where = device_of(model)
    stack = {
        name: nn.Parameter(torch.from_numpy(np.stack([start[name] for start in starts])).to(where))
        for name in parameters
    }
    homes = {name: model.get_submodule(name.rpartition(".")[0])._parameters for name in parameters}
    try:
        for name, home in homes.items():
            home[name.rpartition(".")[2]] = stack[name]
        yield stack
    finally:
        for name, home in homes.items():
            home[name.rpartition(".")[2]] = cast(nn.Parameter, parameters[name])


def clip_each(gradients: Sequence[Tensor], most: float) -> None:
    """Scale the gradients ``(K, ...)`` so that the norm of each of the K clients' is ``most`` at most, in place.

    As ``torch.nn.utils.clip_grad_norm_`` for each alone.
    """
    norms = torch.stack([torch.linalg.vector_norm(gradient.flatten(1), dim=1) for gradient in gradients])
    factors = (most / (torch.linalg.vector_norm(norms, dim=0) + 1e-6)).clamp(max=1.0)
    for gradient in gradients:
        gradient.mul_(factors.reshape(-1, *(1,) * (gradient.dim() - 1)))


@contextmanager
def _rows_given(model: nn.Module, parameters: Mapping[str, Tensor]) -> Iterator[dict[str, list[int]]]:
    """Note, by the layer that trains, how many rows each of its calls is given."""
    layers = dict.fromkeys(name.rpartition(".")[0] for name in parameters)
    found: dict[str, list[int]] = {layer: [] for layer in layers}
    hooks = [
        model.get_submodule(layer).register_forward_pre_hook(
            lambda _, inputs, named, counts=counts: counts.append([*inputs, *named.values()][0].shape[0]),
            with_kwargs=True,
        )
        for layer, counts in found.items()
    ]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def unfit(
    model: nn.Module,
    parameters: Mapping[str, Tensor],
    dtype: str,
    logits: Callable[[Sequence[int]], Sequence[float]],
) -> str:
    """Say why the clients of a model can not be trained in one pass, and what to do; "" if they can.

    Of two clients with inputs and matrices of their own, the model's answers to both at once are compared with those to
    each alone: a model that deals its tokens out (adapted experts of a mixture) or mixes its rows would answer one for
    the other, or fail.

    Args:
        model: adapted, in evaluation mode.
        parameters: of it, by name, all that train.
        dtype: that it computes in.
        logits: returns what the model answers to some fixed inputs, chosen by their places; -1 is the last.
    """
    remedy = "set cohort=1"
    for name in parameters:
        path, _, letter = name.rpartition(".")
        owner = model.get_submodule(path)
        if not isinstance(owner, AdaptedLinear | TrainedLinear):
            return f"{name} is trained in place, of which there is one for all clients; {remedy}"
        if letter == "A" and isinstance(owner, AdaptedConv | AdaptedEmbedding):
            return f"{name} is that of a {type(owner.base).__name__}, which reads with one A for all clients; {remedy}"
    rng = generator(0, "cohort", "probe")
    drawn = [
        {n: rng.standard_normal(tuple(p.shape), np.float32) / np.float32(8) for n, p in parameters.items()}
        for _ in _PLACES
    ]
    alone: list[float] = []
    given: list[dict[str, list[int]]] = []  # of each answer: the rows that each layer was given, call by call
    try:
        for each, places in zip(drawn, _PLACES, strict=True):
            with stacked(model, parameters, [each]), _rows_given(model, parameters) as rows:
                alone += logits(places)
            given.append(rows)
        with stacked(model, parameters, drawn), _rows_given(model, parameters) as rows:
            gap = logits_gap(alone, logits([place for places in _PLACES for place in places]))
    except (RuntimeError, ValueError) as error:
        return f"the model cannot answer two clients at once ({type(error).__name__}: {error!s:.200}); {remedy}"
    for layer, both in rows.items():
        one, other = (found[layer] for found in given)
        if one != other or both != [2 * count for count in one]:
            return (
                f"{layer} is given {one} rows of one client's inputs, {other} of another's and {both} of both at once, "
                f"as an expert is given the tokens that are dealt to it; {remedy}"
            )
    if gap > TOLERANCES[dtype]:
        return (
            f"the model's answers to two clients at once differ by {gap:.1g} of the largest from those to each alone "
            f"(tolerance {TOLERANCES[dtype]:g}), as where rows of a batch are dealt out or mixed; {remedy}"
        )
    return ""
