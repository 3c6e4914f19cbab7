"""FedSVD: B trains and is averaged; the server then takes new factors from the product's decomposition.

Lee et al. 2025, "FedSVD: Adaptive Orthogonalization for Private Federated Learning with LoRA" (arXiv 2505.12805).
``B̄ A = U Σ Vᵀ`` gives ``A ← Vᵀ`` (orthonormal rows) and ``B ← U Σ``; the product is the same, so the mean stays exact.
The new A lies in the row space of the old: it is a rotation of the first A made orthonormal (with r > d_in, which has
no r orthonormal rows, the rest is zero). A and B travel down, B up.
"""

from collections.abc import Sequence

import numpy as np

from fedasym.methods.base import Matrices, Method, layers_of


def merge(held: Matrices, mean: Matrices, replies: Sequence[tuple[int, Matrices]]) -> Matrices:
    """Return ``U Σ`` and ``Vᵀ`` of ``B̄ A``, without a product of the size of W: ``Aᵀ = Q R`` and ``B̄ Rᵀ = U Σ Pᵀ``."""
    sent = dict(mean)
    for layer in layers_of(mean):
        B = mean[f"{layer}.B"].astype(np.float64)
        d_out, rank = B.shape
        Q, R = np.linalg.qr(held[f"{layer}.A"].T.astype(np.float64))
        tall = np.pad(B @ R.T, ((0, max(0, rank - d_out)), (0, 0)))  # A keeps all its directions where d_out < r
        U, S, P = np.linalg.svd(tall, full_matrices=False)
        unused = (0, rank - len(P))
        sent[f"{layer}.B"] = np.pad((U * S)[:d_out], ((0, 0), unused)).astype(np.float32)
        sent[f"{layer}.A"] = np.pad(P @ Q.T, (unused, (0, 0))).astype(np.float32)
    return sent


fedsvd = Method(
    name="fedsvd",
    label="FedSVD",
    factors="AB",
    kind="gaussian",
    optimizer="sgd",
    lr=0.3,
    head_lr=0.5,
    cycle=("B",),
    resent="AB",
    merge=merge,
)
