"""The other side of the asymmetry: B random and frozen, A trains and travels.

Zhu et al. 2024 (arXiv 2402.16842), section 4. B's columns are orthonormal, drawn from the seed; A starts at zero. Its
mean is exact too, ``Σ w_k (B A_k) = B (Σ w_k A_k)``; what it lacks is what B learns.
"""

from fedasym.methods.base import Method

a_only = Method(
    name="a-only",
    label="A only",
    factors="A",
    kind="orthonormal",
    optimizer="sgd",
    lr=0.3,
    head_lr=0.5,
)
