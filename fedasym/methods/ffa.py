"""FFA-LoRA as published: A Gaussian and frozen, B trains and travels, the classification head is frozen.

Sun et al. 2024, "Improving LoRA in Privacy-preserving Federated Learning" (arXiv 2403.12313). The scale is alpha/r.
What differs from ``asymmetric`` is the law of A and the head.
"""

from fedasym.methods.base import Method

ffa = Method(
    name="ffa",
    label="FFA-LoRA",
    factors="B",
    kind="gaussian",
    optimizer="sgd",
    lr=0.1,
    head_lr=0.5,
    head="frozen",
)
