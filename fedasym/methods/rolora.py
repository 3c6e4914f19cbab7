"""RoLoRA: the clients train B in odd rounds and A in even ones; the other factor is common and frozen meanwhile.

Chen et al. 2024, "Robust Federated Finetuning of Foundation Models via Alternating Minimization of LoRA"
(arXiv 2409.02346). Each round averages one factor with the other fixed, which is exact. Only the factor that trained
travels, so a client keeps the other one.
"""

from fedasym.methods.base import Method

rolora = Method(
    name="rolora",
    label="RoLoRA",
    factors="AB",
    kind="kaiming",
    optimizer="sgd",
    lr=0.3,
    head_lr=0.5,
    cycle=("B", "A"),
    remembers=True,
)
