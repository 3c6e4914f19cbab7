"""A second device on a machine without one: tensors that compute on the CPU and say that they are elsewhere.

PyTorch lets a backend be written in Python. Ours keeps each tensor's values in a CPU tensor and refuses what a GPU
refuses: an operation on tensors of both devices. A tensor that was left behind on the CPU therefore fails a test. Like
on a GPU, a number (a tensor without dimensions) may come from the CPU, and copies go from one device to the other.
"""

from typing import Any

import pytest
import torch
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend


class _Unasked(torch._C._acc.PrivateUse1Hooks):
    """Says that there is no such device: other tests run in this process, and shall not take it."""

    def is_available(self) -> bool:
        return False

    def is_built(self) -> bool:
        return True

    def has_primary_context(self, dev_id: int) -> bool:
        return True


class _Module:
    """What PyTorch looks for as ``torch.far``."""

    @staticmethod
    def is_available() -> bool:
        return False

    @staticmethod
    def is_initialized() -> bool:
        return True

    @staticmethod
    def device_count() -> int:
        return 0

    @staticmethod
    def current_device() -> int:
        return 0

    @staticmethod
    def _is_in_bad_fork() -> bool:
        return False

    @staticmethod
    def get_amp_supported_dtype() -> list[torch.dtype]:
        return [torch.bfloat16]


_setup_privateuseone_for_python_backend("far", backend_module=_Module(), hook=_Unasked())
FAR = torch.device("far", 0)
_MIXED = ("aten::_to_copy", "aten::copy_", "aten::_copy_from", "aten::index")  # a GPU takes indices from the CPU too


class FarTensor(torch.Tensor):
    """A tensor of the far device; ``near`` holds its values on the CPU."""

    near: torch.Tensor

    @staticmethod
    def __new__(cls, near: torch.Tensor) -> "FarTensor":
        shape = {"strides": near.stride(), "storage_offset": near.storage_offset()}
        made = torch.Tensor._make_wrapper_subclass(cls, near.size(), dtype=near.dtype, device=FAR, **shape)
        made.near = near
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _empty(size: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
    """Make a tensor from none: all other ways to make one begin with this."""
    return FarTensor(torch.empty(size, dtype=kwargs.get("dtype")))


def _empty_strided(size: Any, stride: Any, dtype: Any = None, *args: Any, **kwargs: Any) -> torch.Tensor:
    return FarTensor(torch.empty_strided(size, stride, dtype=dtype))


def _copy_from(source: torch.Tensor, target: torch.Tensor, *args: Any) -> torch.Tensor:
    source, target = (x.near if isinstance(x, FarTensor) else x for x in (source, target))
    return target.copy_(source)


_LIBRARY = torch.library.Library("aten", "IMPL")
_LIBRARY.impl("empty.memory_format", _empty, "PrivateUse1")
_LIBRARY.impl("empty_strided", _empty_strided, "PrivateUse1")
_LIBRARY.impl("_copy_from", _copy_from, "PrivateUse1")


@pytest.fixture(name="far")
def found_far_away(monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """Make the far device the one that is found on this machine."""
    monkeypatch.setattr("fedasym.models.device.choose_device", lambda setting: FAR)
    return FAR


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    far = [tensor for tensor in tensors if isinstance(tensor, FarTensor)]
    name = func.overloadpacket._qualified_op_name
    if far and name not in _MIXED and any(t.ndim for t in tensors if not isinstance(t, FarTensor)):
        raise RuntimeError(f"{func}: expected all tensors on one device, found {FAR} and cpu")
    wanted = kwargs.get("device")
    if name == "aten::copy_":
        stays = isinstance(args[0], FarTensor)
    else:
        stays = bool(far) if wanted is None else torch.device(wanted).type == FAR.type
    near_args, near_kwargs = tree_map(lambda x: x.near if isinstance(x, FarTensor) else x, (args, kwargs))
    if wanted is not None:
        near_kwargs["device"] = torch.device("cpu")
    out = func(*near_args, **near_kwargs)
    if func._schema.is_mutable and near_args and out is near_args[0]:
        return args[0]  # in place: the same tensor
    return tree_map(lambda x: FarTensor(x) if isinstance(x, torch.Tensor) and stays else x, out)
