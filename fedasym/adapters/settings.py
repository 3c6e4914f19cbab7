"""The settings of the adapters."""

from dataclasses import dataclass

from fedasym.adapters.layer_names import layer_names_in, means
from fedasym.adapters.projection import KINDS
from fedasym.fields import SeedSettings, require_named, setting


@dataclass(frozen=True)
class AdapterSettings(SeedSettings):
    """Rank, scale, A's kind and the layers that are adapted."""

    rank: int = setting(8, "r of every adapter", least=1)
    alpha: float = setting(16.0, "numerator of the scale s", least=0.0)
    scaling: str = setting("alpha/r", "the scale s", choices=("alpha/r", "alpha/sqrt(r)"))
    kind: str = setting("auto", "kind of A", choices=("auto", *KINDS))
    targets: str = setting(
        "all-linear", "'all-linear', endings of layer names joined by commas, or 'regex:' and an expression of paths"
    )
    exclude: str = setting("", "layers that are not adapted, named as in targets")
    one_product: bool = setting(
        True, "in float32: one product with W + s B A, made in every call, where that is faster"
    )

    def _check(self) -> None:
        super()._check()
        require_named(self, "targets")
        for name in (*self.target_names, *self.excluded_names):
            means(name, "", linear=False)  # an expression that is none is refused now
        if self.alpha == 0.0:
            raise ValueError("alpha=0.0 makes every adapter zero; use a positive alpha")

    @property
    def target_names(self) -> tuple[str, ...]:
        """The names of layers in ``targets``."""
        return layer_names_in(self.targets)

    @property
    def excluded_names(self) -> tuple[str, ...]:
        """The names of layers in ``exclude``."""
        return layer_names_in(self.exclude)
