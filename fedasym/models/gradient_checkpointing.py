"""Gradient checkpointing (Chen et al. 2016, arXiv 1604.06174): activations computed again instead of kept."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint

from fedasym.settings import Settings


@contextmanager
def recomputed(model: nn.Module, settings: Settings) -> Iterator[None]:
    """Let a model's layers keep their inputs alone for the backward pass, if ``gradient-checkpointing`` says so.

    transformers' own switch works in training mode only, which would turn dropout on. What a layer computes again is
    the same to the bit, since nothing in it is drawn.

    Raises:
        ValueError: the model has no layers for it.
    """
    if not settings.gradient_checkpointing:
        yield
        return
    from transformers.modeling_layers import GradientCheckpointingLayer

    layers: list[Any] = [layer for layer in model.modules() if isinstance(layer, GradientCheckpointingLayer)]
    if not layers:
        raise ValueError(
            f"gradient-checkpointing=true: transformers can do it in no layer of model {settings.model!r}; set it to "
            "false, and lower micro-batch to save memory"
        )
    config: Any = model.config
    cache = getattr(config, "use_cache", None)  # of a decoder, which would grow when computed twice
    if cache:
        config.use_cache = False
    for layer in layers:
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward  # the class's own is there again
        if cache:
            config.use_cache = cache
