"""Gradient checkpointing (Chen et al. 2016, arXiv 1604.06174): activations computed again instead of kept."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint


@contextmanager
def recomputed(model: nn.Module, name: str) -> Iterator[None]:
    """Let a model's layers keep their inputs alone for the backward pass.

    transformers' own switch works in training mode only, which would turn dropout on. What a layer computes again is
    the same to the bit, since nothing in it is drawn.

    Args:
        model: from transformers.
        name: what the error calls it.

    Raises:
        ValueError: the model has no layers for it.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    layers: list[Any] = [layer for layer in model.modules() if isinstance(layer, GradientCheckpointingLayer)]
    if not layers:
        raise ValueError(
            f"gradient-checkpointing=true: transformers can do it in no layer of model {name!r}; set it to "
            "false, and lower micro-batch to save memory"
        )
    # Of a decoder, whose cache would grow when computed twice; T5's stacks have configurations of their own.
    found: dict[int, Any] = {id(m.config): m.config for m in model.modules() if hasattr(m, "config")}
    caching = [config for config in found.values() if getattr(config, "use_cache", None)]
    for config in caching:
        config.use_cache = False
    for layer in layers:
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward  # the class's own is there again
        for config in caching:
            config.use_cache = True
