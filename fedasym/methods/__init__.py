"""Federated-LoRA methods, one short file each: what trains, what travels each way, how replies become the next model.

`fedasym.methods.base` says what a method is. Which rates were tuned, and how, is in simulations/README.md.
"""

from fedasym.methods.a_only import a_only
from fedasym.methods.asymmetric import asymmetric
from fedasym.methods.base import Method
from fedasym.methods.baselines import central, local
from fedasym.methods.fedex import fedex
from fedasym.methods.fedsa import fedsa
from fedasym.methods.fedsvd import fedsvd
from fedasym.methods.ffa import ffa
from fedasym.methods.flexlora import flexlora
from fedasym.methods.flora import flora
from fedasym.methods.full import full
from fedasym.methods.rolora import rolora
from fedasym.methods.standard_lora import lora

METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        asymmetric, lora, ffa, fedex, flora, flexlora, rolora, fedsa, fedsvd, a_only, full, central, local,
    )
}  # fmt: skip
