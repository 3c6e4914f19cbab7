"""FedSA-LoRA: A and B train; A is averaged, each client keeps its own B.

Guo et al. 2024, "Selective Aggregation for Low-Rank Adaptation in Federated Learning" (arXiv 2410.01463). Personalised:
there is no common model, so it is judged at the clients, on examples they keep out.
"""

from fedasym.methods.base import Method

fedsa = Method(
    name="fedsa",
    label="FedSA-LoRA",
    factors="AB",
    kind="kaiming",
    optimizer="sgd",
    lr=0.3,
    head_lr=0.5,
    private="B",
)
