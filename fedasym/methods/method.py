"""What a federated-LoRA method is."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Method:
    """One way to federate low-rank adapters.

    Attributes:
        name: as in the setting ``method``.
        label: as in tables and plots.
        factors: what trains and travels: ``"B"`` or ``"AB"``.
        kind: kind of the initial A where the settings say ``auto``.
        optimizer: local optimizer where the settings say ``auto``.
        lr: rate of the factors where the settings say 0; tuned, see simulations/README.md.
        head_lr: rate of the output layer where the settings say 0.
    """

    name: str
    label: str
    factors: str
    kind: str
    optimizer: str
    lr: float
    head_lr: float
