"""The settings of the adapters."""

from dataclasses import dataclass

from fedasym.adapters.projection import KINDS
from fedasym.fields import SeedSettings, names_in, require_named, setting


@dataclass(frozen=True)
class AdapterSettings(SeedSettings):
    """Rank, scale, A's kind and the layers that are adapted."""

    rank: int = setting(8, "r of every adapter", least=1)
    alpha: float = setting(16.0, "numerator of the scale s", least=0.0)
    scaling: str = setting("alpha/r", "the scale s", choices=("alpha/r", "alpha/sqrt(r)"))
    kind: str = setting("auto", "kind of A", choices=("auto", *KINDS))
    targets: str = setting("all-linear", "'all-linear' or endings of layer names joined by commas")

    def _check(self) -> None:
        super()._check()
        require_named(self, "targets")
        if self.alpha == 0.0:
            raise ValueError("alpha=0.0 makes every adapter zero; use a positive alpha")

    @property
    def target_names(self) -> tuple[str, ...]:
        """The endings of layer names in ``targets``."""
        return names_in(self.targets)
