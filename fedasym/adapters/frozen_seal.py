"""Whether what is frozen was left alone, told in well under a millisecond whatever the size of the model.

PyTorch counts the writes to every tensor. A write past that count (through ``.data`` or NumPy, or from another process)
leaves other values behind, of which a few are looked at each time, one group of tensors after another. A seal that is
broken is no proof that a value changed: fingerprints (`fedasym.adapters.lora.fingerprint_base`) decide.
"""

from collections.abc import Iterator, MutableMapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fedasym.adapters import trainable_state
from fedasym.adapters.layers import AdaptedLinear

_VALUES = 16  # looked at in each tensor, from its first to its last
_TENSORS = 32  # of which values are looked at each time


@dataclass(frozen=True)
class _Sealed:
    """A frozen tensor where its module holds it, how often it had been written to, and some of its values."""

    holder: MutableMapping[str, Any]
    key: str
    tensor: Tensor
    address: int
    writes: int
    places: Tensor
    values: Tensor

    def is_there(self) -> bool:
        """Say whether the module still holds this tensor and PyTorch has counted no write to it."""
        tensor = self.tensor
        return (
            self.holder.get(self.key) is tensor and tensor._version == self.writes and tensor.data_ptr() == self.address
        )


class Seal:
    """What the frozen tensors of a model are at this moment: W, and of A and B the one that never trains.

    Args:
        model: adapted; its trained parameters, shifts and non-persistent buffers are not looked at.
    """

    def __init__(self, model: nn.Module) -> None:
        self._sealed = [
            _Sealed(
                holder, key, tensor, tensor.data_ptr(), tensor._version, places, torch.take(tensor.detach(), places)
            )
            for holder, key, tensor in _frozen(model)
            for places in [_some_places(tensor)]
        ]
        self._next = 0

    def holds(self) -> bool:
        """Say whether nothing was written to any tensor, as far as PyTorch counts and some of the values show."""
        some = self._sealed[self._next : self._next + _TENSORS]
        self._next = self._next + _TENSORS if self._next + _TENSORS < len(self._sealed) else 0
        return all(sealed.is_there() for sealed in self._sealed) and all(
            torch.equal(torch.take(sealed.tensor.detach(), sealed.places), sealed.values) for sealed in some
        )


def _frozen(model: nn.Module) -> Iterator[tuple[MutableMapping[str, Any], str, Tensor]]:
    moving = {
        id(parameter)
        for parameter in (*trainable_state.trainable(model).values(), *trainable_state.local_only(model).values())
    }
    for module in model.modules():
        for key, parameter in module._parameters.items():
            if parameter is not None and id(parameter) not in moving:
                yield module._parameters, key, parameter
        for key, buffer in module._buffers.items():
            drawn = isinstance(module, AdaptedLinear) and key in ("A", "B")
            if buffer is not None and (drawn or key not in module._non_persistent_buffers_set):
                yield module._buffers, key, buffer


def _some_places(tensor: Tensor) -> Tensor:
    places = torch.linspace(0, max(tensor.numel() - 1, 0), min(_VALUES, tensor.numel()), dtype=torch.float64)
    return places.long().to(tensor.device)
