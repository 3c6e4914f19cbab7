"""FLoRA: the clients' factors are stacked, which is exact, folded into W, and every round starts new factors.

Wang et al. 2024, "FLoRA: Federated Fine-Tuning Large Language Models with Heterogeneous Low-Rank Adaptations"
(arXiv 2409.05976). ``[w_1 B_1 … w_K B_K] [A_1; …; A_K] = Σ w_k B_k A_k`` is added to W; then B is zero again and A is
drawn anew. Here all parties draw that A from (seed, round), so it is never sent.
"""

from collections.abc import Sequence

import numpy as np

from fedasym.adapters.projection import frozen_A
from fedasym.methods.base import Frame, Matrices, Method, layers_of, letter_of, stacked, unstack


def fold(held: Matrices, sent: Matrices, weights: Sequence[int], number: int, frame: Frame) -> Matrices:
    """Add the stacked product to each layer's shift and start new factors."""
    replies = unstack(sent, len(weights))
    after = {**held, **{name: m for name, m in sent.items() if not letter_of(name)}}
    for layer in layers_of(held):
        A, B = held[f"{layer}.A"], held[f"{layer}.B"]
        B_all, A_all = stacked(layer, replies, weights)
        after[f"{layer}.shift"] = (held[f"{layer}.shift"] + frame.scale * (B_all @ A_all)).astype(np.float32)
        after[f"{layer}.B"] = np.zeros_like(B)
        after[f"{layer}.A"] = frozen_A(frame.seed, f"{layer}, round {number}", frame.rank, A.shape[1], frame.kind)
    return after


flora = Method(
    name="flora",
    label="FLoRA",
    factors="AB",
    kind="kaiming",
    optimizer="sgd",
    lr=0.3,
    head_lr=0.5,
    redraws=True,
    remembers=True,
    fold=fold,
)
