"""What trains and travels: B of every adapted layer, THE definition of it; read into arrays, loaded from them.

Law: what trains is what travels. `trainable` visits the adapted layers by type and is the one definition of that
set; the optimizer takes it, the wire copies it, the mean averages it.
"""

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedasym.adapters.layers import AdaptedLinear, TrainedLinear

Float32 = NDArray[np.float32]


def adapted_layers(model: nn.Module) -> Iterator[tuple[str, AdaptedLinear]]:
    """Yield the adapted layers with their paths, sorted by path."""
    found = {name: m for name, m in model.named_modules() if isinstance(m, AdaptedLinear)}
    yield from sorted(found.items())


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return what trains and travels, by name, sorted: THE definition of B.

    ``<layer>.B`` of every adapted layer, ``<layer>.A`` too where A is a parameter, and ``<layer>.weight`` /
    ``<layer>.bias`` of every fully trained layer that travels; after `train_all`, every parameter.
    """
    if getattr(model, "trains_in_full", False):
        return dict(sorted(model.named_parameters()))
    return _parameters(model, travels=True)


def common(model: nn.Module) -> dict[str, Tensor]:
    """Return what a federation moves, by name, sorted: `trainable` and the shifts."""
    shifts = {f"{name}.shift": layer.shift for name, layer in adapted_layers(model) if layer.shift is not None}
    return dict(sorted({**trainable(model), **shifts}.items()))


def frozen_factors(model: nn.Module) -> dict[str, Tensor]:
    """Return the factor of every adapted layer that never moves, ``<layer>.A`` or ``<layer>.B``; none if both move."""
    pairs = {f"{name}.{letter}": getattr(m, letter) for name, m in adapted_layers(model) for letter in "AB"}
    return {name: matrix for name, matrix in pairs.items() if not isinstance(matrix, nn.Parameter)}


def local_only(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return what trains but stays with its client (a head under the policy ``local``)."""
    return _parameters(model, travels=False)


def _parameters(model: nn.Module, travels: bool) -> dict[str, nn.Parameter]:
    found: dict[str, nn.Parameter] = {}
    for name, module in model.named_modules():
        adapter = isinstance(module, AdaptedLinear) and travels
        if adapter or (isinstance(module, TrainedLinear) and module.travels == travels):
            for key, parameter in module.named_parameters(recurse=False):
                found[f"{name}.{key}"] = parameter
    return dict(sorted(found.items()))


def read(parameters: Mapping[str, Tensor]) -> dict[str, Float32]:
    """Copy parameters, e.g. ``trainable(model)``, to float32 arrays."""
    return {name: p.detach().float().cpu().numpy().copy() for name, p in parameters.items()}


def load(parameters: Mapping[str, Tensor], matrices: Mapping[str, Float32]) -> None:
    """Copy arrays into parameters, e.g. of ``trainable(model)``; all or nothing.

    Raises:
        ValueError: names or shapes differ, a dtype is not float32, be it a parameter's, or a value is not finite.
    """
    missing, extra = parameters.keys() - matrices.keys(), matrices.keys() - parameters.keys()
    if missing or extra:
        raise ValueError(f"matrices do not fit the model: missing {sorted(missing)}, extra {sorted(extra)}")
    for name, parameter in parameters.items():
        matrix = matrices[name]
        if parameter.dtype != torch.float32:
            raise ValueError(
                f"{name}: is {parameter.dtype}, which would lose bits; cast the model before adapt, not after"
            )
        if matrix.dtype != np.float32 or matrix.shape != tuple(parameter.shape):
            raise ValueError(
                f"{name}: got {matrix.dtype} {matrix.shape}; the model wants float32 {tuple(parameter.shape)}"
            )
        if not np.isfinite(matrix).all():
            raise ValueError(f"{name}: holds values that are not finite; it was not loaded")
    with torch.no_grad():
        for name, parameter in parameters.items():
            # PyTorch warns of an array that it could not write to, as those of a message are.
            parameter.copy_(torch.from_numpy(np.require(matrices[name], requirements=("C", "W"))))
