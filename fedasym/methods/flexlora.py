"""FlexLoRA: the server forms the mean of the products and sends the best factors of rank r.

Bai et al. 2024, "Federated Fine-tuning of Large Language Models under Heterogeneous Tasks and Client Resources"
(arXiv 2402.11505), with one rank for all clients. The mean product has a rank of up to K r; what lies beyond the r
largest singular values is lost, so it is not exact.
"""

from collections.abc import Sequence

import numpy as np

from fedasym.methods.base import Matrices, Method, layers_of, stacked


def merge(held: Matrices, mean: Matrices, replies: Sequence[tuple[int, Matrices]]) -> Matrices:
    """Return the truncated singular value decomposition of ``Σ w_k B_k A_k``, its square roots in both factors.

    No product of the size of W is formed: with ``[w_k B_k] = Q_B R_B`` and ``[A_k]ᵀ = Q_A R_A`` the singular values are
    those of ``R_B R_Aᵀ``.
    """
    weights = [weight for weight, _ in replies]
    sent = dict(mean)
    for layer in layers_of(mean):
        B, A = stacked(layer, [reply for _, reply in replies], weights)
        rank = len(held[f"{layer}.A"])
        Q_B, R_B = np.linalg.qr(B)
        Q_A, R_A = np.linalg.qr(A.T)
        U, S, V = np.linalg.svd(R_B @ R_A.T, full_matrices=False)
        root = np.sqrt(S[:rank])
        unused = (0, rank - len(root))  # of a layer with fewer than r outputs or inputs
        sent[f"{layer}.B"] = np.pad((Q_B @ U[:, :rank]) * root, ((0, 0), unused)).astype(np.float32)
        sent[f"{layer}.A"] = np.pad(root[:, None] * (V[:rank] @ Q_A.T), (unused, (0, 0))).astype(np.float32)
    return sent


flexlora = Method(
    name="flexlora",
    label="FlexLoRA",
    factors="AB",
    kind="kaiming",
    optimizer="sgd",
    lr=0.3,
    head_lr=0.5,
    merge=merge,
)
