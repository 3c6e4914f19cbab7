"""The exactness meter: how far the broadcast update is from the mean of the clients' updates.

``‖mean(B_k A_k) − U‖_F / ‖mean(B_k A_k)‖_F`` over all adapted layers, U being the update that is broadcast (``B̄ Ā``
under FedAvg), computed in r-space: no product of the size of W is formed. About 1e-8 to 1e-7 (float32's rounding of B̄)
for B-only, where the mean is exact but for that; 0.06 to 0.3 seen for standard LoRA.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

Matrices = Mapping[str, NDArray[np.float32]]
Float64 = NDArray[np.float64]
Pair = tuple[float, NDArray[np.floating], NDArray[np.floating]]  # w, B (d_out, r), A (r, d_in): stands for w B A


def mismatch_plain(mean64: Mapping[str, Float64], sent: Matrices) -> float:
    """Return ``‖mean − sent‖ / ‖mean‖`` over matrices as they are; 0.0 where the mean is zero."""
    wrong = sum(float(np.sum((sent[name] - exact) ** 2)) for name, exact in mean64.items())
    right = sum(float(np.sum(exact**2)) for exact in mean64.values())
    return float(np.sqrt(wrong / right)) if right else 0.0


def mismatch_common(
    letter: str, mean: Matrices, exact: Mapping[str, Float64], fixed: Mapping[str, NDArray[np.float32]]
) -> float:
    """Measure the mismatch where all clients share one factor: the rounding of the other's mean, seen through it.

    Args:
        letter: the factor that trained, ``B`` or ``A``.
        mean: what is broadcast, float32.
        exact: the same mean in float64.
        fixed: the common factor by layer: A ``(r, d_in)`` if B trained, else B ``(d_out, r)``.
    """
    if letter == "B":
        return mismatch_common_A(mean, exact, fixed)
    turned = {f"{layer}.B": exact[f"{layer}.A"].T for layer in fixed}  # (B A)ᵀ = Aᵀ Bᵀ
    rounded = {f"{layer}.B": mean[f"{layer}.A"].T for layer in fixed}
    return mismatch_common_A(rounded, turned, {layer: B.T for layer, B in fixed.items()})


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


def mismatch_pairs(layers: Sequence[tuple[Sequence[Pair], Sequence[Pair]]]) -> float:
    """Return ``‖Σ target − Σ broadcast‖ / ‖Σ target‖`` over layers, each given as (target, broadcast).

    ``Σ w_k B_k A_k − B̄ Ā = [w_1 B_1 … −B̄] [A_1; …; Ā]``; with the second factor's transpose decomposed as ``Q R`` its
    norm is that of ``[w_1 B_1 … −B̄] Rᵀ``.
    """
    wrong = sum(_norm_squared([*target, *((-w, B, A) for w, B, A in broadcast)]) for target, broadcast in layers)
    right = sum(_norm_squared(target) for target, _ in layers)
    return float(np.sqrt(wrong / right)) if right else 0.0


def _norm_squared(pairs: Sequence[Pair]) -> float:
    """Return ‖Σ w B A‖_F² from the factors."""
    _, R = np.linalg.qr(np.concatenate([A for _, _, A in pairs]).T.astype(np.float64))
    return float(np.sum((np.concatenate([w * B.astype(np.float64) for w, B, _ in pairs], axis=1) @ R.T) ** 2))


def _gram(A: Float64) -> Float64:
    return np.asarray(A @ A.T)
