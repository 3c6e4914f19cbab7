"""Standard LoRA under FedAvg: A and B train, travel and are averaged apart.

FedIT, Zhang et al. 2023 (arXiv 2305.05644).

``Σ w_k (B_k A_k) ≠ (Σ w_k B_k)(Σ w_k A_k)``: what is broadcast is not the mean of what was learned. All
clients start from one A, drawn from the seed with Kaiming's law as PEFT does; from round 1 on it travels.
"""

from fedasym.methods.base import Method

lora = Method(
    name="lora",
    label="standard LoRA",
    factors="AB",
    kind="kaiming",
    optimizer="sgd",
    lr=0.3,
    head_lr=0.5,
)
