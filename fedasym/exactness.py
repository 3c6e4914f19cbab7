"""The exactness meter: how far the broadcast update is from the mean of the clients' updates.

``‖mean(B_k A_k) − B̄ Ā‖_F / ‖mean(B_k A_k)‖_F`` over all adapted layers, computed in r-space: no product of the
size of W is formed. About 1e-8 to 1e-7 (float32's rounding of B̄) for B-only; 0.06 to 0.3 seen for standard LoRA.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

Matrices = Mapping[str, NDArray[np.float32]]
Float64 = NDArray[np.float64]


def mismatch_common_A(mean: Matrices, exact: Mapping[str, Float64], A: Matrices) -> float:
    """Measure the mismatch where all clients share A: the rounding of B̄, seen through A.

    Args:
        mean: what is broadcast, ``<layer>.B`` float32 ``(d_out, r)``.
        exact: the same mean in float64.
        A: float32 ``(r, d_in)`` by layer.

    Returns:
        The relative mismatch; 0.0 where nothing was learned at all.
    """
    wrong = right = 0.0
    for layer, A_layer in A.items():
        gram = _gram(A_layer.astype(np.float64))
        B = exact[f"{layer}.B"]
        error = mean[f"{layer}.B"].astype(np.float64) - B
        wrong += float(np.sum((error @ gram) * error))
        right += float(np.sum((B @ gram) * B))
    return float(np.sqrt(max(wrong, 0.0) / right)) if right else 0.0


def mismatch_factors(mean: Matrices, replies: Sequence[tuple[int, Matrices]], layers: Sequence[str]) -> float:
    """Measure the mismatch where each client trained its own A_k and B_k.

    ``Σ w_k B_k A_k − B̄ Ā = [w_1 B_1 … −B̄] [A_1; …; Ā]``; with the second factor's QR decomposition
    ``(Q R)ᵀ`` its norm is that of ``[w_1 B_1 … −B̄] Rᵀ``.

    Args:
        mean: ``<layer>.A`` and ``<layer>.B`` as broadcast.
        replies: (n_k, matrices) of every client, in a fixed order.
        layers: the adapted layers.

    Returns:
        The relative mismatch.
    """
    total = sum(weight for weight, _ in replies)
    wrong = right = 0.0
    for layer in layers:
        Bs = [reply[f"{layer}.B"].astype(np.float64) * (weight / total) for weight, reply in replies]
        As = [reply[f"{layer}.A"].astype(np.float64) for _, reply in replies]
        right += _norm_squared(Bs, As)
        wrong += _norm_squared([*Bs, -mean[f"{layer}.B"].astype(np.float64)], [*As, mean[f"{layer}.A"]])
    return float(np.sqrt(wrong / right)) if right else 0.0


def _norm_squared(Bs: Sequence[Float64], As: Sequence[NDArray[np.floating]]) -> float:
    """Return ‖Σ B_k A_k‖_F² from the factors."""
    _, R = np.linalg.qr(np.concatenate(As).T.astype(np.float64))
    return float(np.sum((np.concatenate(Bs, axis=1) @ R.T) ** 2))


def _gram(A: Float64) -> Float64:
    return np.asarray(A @ A.T)
