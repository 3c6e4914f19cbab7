"""The settings of what the server makes of the replies."""

from dataclasses import dataclass

from fedasym.aggregation.base import aggregator_of
from fedasym.fields import Checked, setting


@dataclass(frozen=True)
class AggregationSettings(Checked):
    """The rule of averaging, and the server's optimizer."""

    aggregation: str = setting("exact", "rule by which replies become one update; exact: their exact weighted mean")
    weights: str = setting(
        "examples", "what a reply weighs: its examples n_k, or each the same", choices=("examples", "uniform")
    )
    max_weight: float = setting(
        10.0, "most examples that a site may weigh, times the median of all sites; 0: no bound", least=0.0
    )
    max_value: float = setting(1e4, "largest magnitude of a value in a reply", least=1e-6)
    server_optimizer: str = setting("none", "on the mean change", choices=("none", "momentum", "adam"))
    server_lr: float = setting(1.0, "its rate", least=0.0)
    server_momentum: float = setting(0.9, "its momentum (Adam: beta 1)", least=0.0)

    def _check(self) -> None:
        super()._check()
        aggregator_of(self.aggregation)
        if 0.0 < self.max_weight < 1.0:
            raise ValueError(f"max-weight={self.max_weight} would refuse the median site; use 1 or more, or 0 for none")
        if self.server_momentum >= 1.0:
            raise ValueError(f"server-momentum={self.server_momentum} does not decay; use less than 1")
        if self.server_optimizer != "none" and self.server_lr == 0.0:
            raise ValueError("server-lr=0.0 never moves the global matrices; use a positive rate")
        if self.server_optimizer == "none" and (self.server_lr, self.server_momentum) != (1.0, 0.9):
            raise ValueError("server-lr and server-momentum do nothing with server-optimizer='none'; choose one")
