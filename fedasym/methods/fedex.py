"""FedEx-LoRA: A and B averaged apart as in standard LoRA, and the residual folded into W.

Singhal et al. 2024, "FedEx-LoRA: Exact Aggregation for Federated and Efficient Fine-Tuning of Foundation Models"
(arXiv 2410.09432). With ``R = Σ w_k B_k A_k − B̄ Ā`` every party sets ``W ← W + s R``, so that
``W + s (R + B̄ Ā)`` is the mean of the clients' models. R has a rank of up to (K + 1) r; its smallest carrier for few
clients is the stack of all B_k, A_k, from which B̄ and Ā follow too, and that is what travels down.
"""

from collections.abc import Sequence

import numpy as np

from fedasym.aggregation.exact import ExactMean
from fedasym.methods.base import Frame, Matrices, Method, layers_of, letter_of, stacked, unstack


def fold(held: Matrices, sent: Matrices, weights: Sequence[int], number: int, frame: Frame) -> Matrices:
    """Average the stacked factors and add the residual to each layer's shift."""
    replies = unstack(sent, len(weights))
    mean = ExactMean()
    for weight, reply in zip(weights, replies, strict=True):
        mean.add(weight, reply)
    after = {**held, **mean.mean(), **{name: m for name, m in sent.items() if not letter_of(name)}}
    for layer in layers_of(held):
        A, B = (after[f"{layer}.{letter}"].astype(np.float64) for letter in "AB")
        B_all, A_all = stacked(layer, replies, weights)
        residual = B_all @ A_all - B @ A
        after[f"{layer}.shift"] = (held[f"{layer}.shift"] + frame.scale * residual).astype(np.float32)
    return after


fedex = Method(
    name="fedex",
    label="FedEx-LoRA",
    factors="AB",
    kind="kaiming",
    optimizer="sgd",
    lr=0.3,
    head_lr=0.5,
    remembers=True,
    fold=fold,
)
