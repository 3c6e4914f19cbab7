"""Federated-LoRA methods: what trains and therefore travels, and the defaults tuned for each.

One short file per method. Both ways carry `fedasym.lora.trainable`; both are averaged by the exact mean
(`fedasym.average`). They differ in which factors that set holds.
"""

from fedasym.methods.asymmetric import asymmetric
from fedasym.methods.lora import lora
from fedasym.methods.method import Method

METHODS: dict[str, Method] = {method.name: method for method in (asymmetric, lora)}
