"""fedasym: federated fine-tuning in which only B travels.

LoRA adapts a frozen weight as ``W x + s·B A x``. A may stay random and frozen; B does the work (Zhu et al. 2024,
arXiv 2402.16842). Every client draws the same A from a common seed, so A is never sent; only B trains and travels;
and the mean of the B is exactly the mean of the updates.

The public names below need NumPy and, but for `frozen_A`, `fingerprint` and `ExactMean`, PyTorch; each is imported when
first used. flwr is imported by `fedasym.wire.records` alone, transformers by `fedasym.models` and
`fedasym.runs.communication`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from fedasym.adapters.lora import adapt, merged_copy
    from fedasym.adapters.projection import fingerprint, frozen_A
    from fedasym.adapters.trainable_state import load, read, trainable
    from fedasym.aggregation.exact import ExactMean

__all__ = ["ExactMean", "adapt", "fingerprint", "frozen_A", "load", "merged_copy", "read", "trainable"]

_HOMES = {
    "ExactMean": "aggregation.exact",
    "frozen_A": "adapters.projection",
    "fingerprint": "adapters.projection",
    "adapt": "adapters.lora",
    "merged_copy": "adapters.lora",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'fedasym' has no attribute {name!r}")
    return getattr(import_module(f"fedasym.{_HOMES.get(name, 'adapters.trainable_state')}"), name)
