"""fedasym: federated fine-tuning in which only B travels.

LoRA adapts a frozen weight as ``W x + s·B A x``. A may stay random and frozen; B does the work (Zhu et al. 2024,
arXiv 2402.16842). Every client draws the same A from a common seed, so A is never sent; only B trains and travels;
and the mean of the B is exactly the mean of the updates.

The public names below need NumPy and PyTorch only; Flower is known to `fedasym.wire`, transformers to
`fedasym.model` and `fedasym.data`.
"""

__version__ = "0.1.0"

from fedasym.average import ExactMean
from fedasym.lora import adapt, load, merged_copy, read, trainable
from fedasym.projection import fingerprint, frozen_A

__all__ = ["ExactMean", "adapt", "fingerprint", "frozen_A", "load", "merged_copy", "read", "trainable"]
