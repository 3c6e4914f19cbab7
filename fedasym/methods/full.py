"""Full fine-tuning under FedAvg: every parameter of the model trains and travels.

McMahan et al. 2017 (arXiv 1602.05629). No adapters; the weights are float32, and with ``dtype="bfloat16"`` the products
of training are computed in bfloat16 (autocast); evaluation is in float32.
"""

from fedasym.methods.base import Method

full = Method(
    name="full",
    label="full fine-tuning",
    factors="W",
    kind="orthonormal",
    optimizer="sgd",
    lr=0.1,
    head_lr=0.1,
    head="full",
)
