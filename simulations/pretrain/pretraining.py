"""What all pretraining here does alike: AdamW under a rate that rises and falls, batches of like lengths, progress."""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from fedasym.rng import generator

Batch = TypeVar("Batch")
Example = TypeVar("Example")
_SAY_SECONDS = 15.0


@dataclass(frozen=True)
class Recipe:
    """How a model is pretrained.

    Attributes:
        lr: the rate at its highest.
        warmup: share of the steps in which the rate rises.
        decay: decoupled weight decay, of matrices alone.
        betas: of AdamW.
    """

    lr: float
    warmup: float
    decay: float
    betas: tuple[float, float] = (0.9, 0.999)

    def rate(self, done: float) -> float:
        """Return the rate after a share of the steps: up in a line, down in half a cosine.

        >>> [round(Recipe(1.0, 0.1, 0.0).rate(done), 3) for done in (0.0, 0.05, 0.1, 0.55, 1.0)]
        [0.0, 0.5, 1.0, 0.5, 0.0]
        """
        if done < self.warmup:
            return self.lr * (done / self.warmup)
        return self.lr * (0.5 + 0.5 * math.cos(math.pi * (done - self.warmup) / (1 - self.warmup)))


def train(
    model: nn.Module, batches: Iterable[Batch], loss_of: Callable[[Batch], Tensor], steps: int, recipe: Recipe
) -> list[float]:
    """Train all of a model, a step a batch, and say how it goes; return the loss of each step.

    Args:
        model: in training mode.
        batches: as many as there are steps.
        loss_of: the model's loss on a batch, a scalar.
        steps: their number, by which the rate goes.
        recipe: rates and decay.

    Raises:
        FloatingPointError: a loss is not finite.
    """
    decayed = [p for p in model.parameters() if p.dim() > 1]
    plain = [p for p in model.parameters() if p.dim() <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": recipe.decay}, {"params": plain, "weight_decay": 0.0}], betas=recipe.betas
    )
    began = said = time.monotonic()
    losses: list[float] = []
    for step, batch in enumerate(batches):
        loss = loss_of(batch)
        if not torch.isfinite(loss):
            raise FloatingPointError(f"the loss is {loss.item()} at step {step}; lower the rate")
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = recipe.rate(step / steps)
        optimizer.step()
        losses.append(loss.item())
        if time.monotonic() - said > _SAY_SECONDS or step + 1 == steps:
            said = time.monotonic()
            print(f"step {step + 1}/{steps}  loss {np.mean(losses[-50:]):.3f}  {said - began:.0f} s", flush=True)
    return losses


def batches_of(
    one_pass: Callable[[np.random.Generator], Iterable[Example]],
    length: Callable[[Example], int],
    size: int,
    pool: int,
    steps: int,
    seed: int,
) -> Iterator[list[Example]]:
    """Yield a run's batches: passes over the data one after the other, examples of about one length together.

    Args:
        one_pass: draws the examples of a pass, in the order in which they are seen.
        length: of an example, in tokens.
        size: examples of a batch.
        pool: batches whose examples are sorted by length together, and then come in any order.
        steps: batches.
        seed: of all that is drawn.
    """
    wanted: list[Example] = []
    done = turn = 0
    while done < steps:
        rng = generator(seed, "pretrain", turn)
        turn += 1
        wanted += one_pass(rng)
        while len(wanted) >= size * pool and done < steps:
            now, wanted = sorted(wanted[: size * pool], key=length), wanted[size * pool :]
            for k in rng.permutation(pool)[: steps - done]:
                done += 1
                yield now[k * size : (k + 1) * size]
