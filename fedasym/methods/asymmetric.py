"""Asymmetric LoRA: A random, common and frozen; B trains, travels and is averaged.

The mean of the B is the mean of the updates: ``Σ w_k (B_k A) = (Σ w_k B_k) A``. A is drawn from the seed by
every party and never sent. Zhu et al. 2024 (arXiv 2402.16842); in federation: Sun et al. 2024 (2403.12313).
"""

from fedasym.methods.base import Method

asymmetric = Method(
    name="asymmetric",
    label="B only (fedasym)",
    factors="B",
    kind="orthonormal",
    optimizer="sgd",
    lr=0.3,
    head_lr=0.5,
)
