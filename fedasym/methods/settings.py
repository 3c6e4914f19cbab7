"""Which method is run."""

from dataclasses import dataclass

from fedasym.fields import Checked, setting
from fedasym.methods import METHODS


@dataclass(frozen=True)
class MethodSettings(Checked):
    """The method."""

    method: str = setting("asymmetric", "federated-LoRA method", choices=tuple(METHODS))
