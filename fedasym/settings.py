"""The settings of a federation: those of the rooms together, read once from the flat run config, checked at the door.

The names are Flower's run-config keys with ``-`` for ``_``; the defaults are the demo and equal the project's
``[tool.flwr.app.config]``. Whatever is unknown, of another type or out of range is refused with its name. A function
of a room takes that room's settings; what spans rooms is checked here.
"""

import dataclasses
import difflib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from fedasym.aggregation.base import aggregator_of
from fedasym.aggregation.settings import AggregationSettings
from fedasym.data.settings import DataSettings
from fedasym.fields import RoundSettings, Value, names_in, setting
from fedasym.methods import METHODS
from fedasym.models.settings import MINILM
from fedasym.tasks import glue, task_of
from fedasym.wire.settings import AgreedSettings

RESOLVED = ("kind", "head", "optimizer", "lr", "head_lr", "pooling")  # what `Settings.resolved` fills in


@dataclass(frozen=True)
class FederationSettings(RoundSettings):
    """Rounds, and who takes part in them."""

    eval_every: int = setting(1, "evaluate every so many rounds, and after the last", least=1)
    eval_untouched: bool = setting(False, "evaluate the model before the first round too, for the summary")
    sites: str = setting("", "registered names of sites with data of their own, by commas; empty: the data is split")
    clients_per_round: int = setting(0, "clients asked each round; 0 asks all", least=0)
    fraction: float = setting(1.0, "share of the clients that are there which a round asks, rounded up", least=0.0)
    quorum: int = setting(0, "clients that must be there before a round begins; 0: all", least=0)
    min_valid: int = setting(1, "valid replies without which a round fails", least=1)
    round_timeout: float = setting(3600.0, "seconds to wait for a round's replies", least=0.001)
    sites_timeout: float = setting(0.0, "seconds to wait for the quorum of sites; 0: round-timeout", least=0.0)
    retries: int = setting(
        2, "with sites, how often a round that failed is tried again, in a row, before the run ends", least=0
    )
    rest_after: int = setting(0, "failed rounds in a row after which a client rests; 0: never", least=0)
    rest_rounds: int = setting(1, "rounds that it rests", least=1)
    patience: int = setting(
        0, "evaluated rounds in a row without a better metric after which a run ends; 0: none", least=0
    )
    keep_best: bool = setting(
        True, "write best/, the adapter of the best round, whenever a round is better than all before"
    )
    keep_checkpoints: int = setting(3, "states of the last rounds that are kept, should the newest be damaged", least=1)
    out: str = setting("", "run folder; empty makes a new one under runs/, a used one is continued")

    def _check(self) -> None:
        super()._check()
        if self.fraction != 1.0 and (self.clients_per_round or not 0.0 < self.fraction < 1.0):
            raise ValueError(
                f"fraction={self.fraction} must be above 0 and at most 1, and goes without clients-per-round="
                f"{self.clients_per_round}; set one of them"
            )
        if self.rest_after == 0 and self.rest_rounds != 1:
            raise ValueError(f"rest-rounds={self.rest_rounds} does nothing with rest-after=0; set rest-after")

    def asked_of(self, present: int) -> int:
        """Return how many of the clients that are there a round asks."""
        if self.clients_per_round:
            return min(self.clients_per_round, present)
        return math.ceil(Fraction(str(self.fraction)) * present)  # as it is written: 0.07 of 100 is 7

    @property
    def site_names(self) -> tuple[str, ...]:
        """The sites with data of their own; client k is the k-th of them."""
        return names_in(self.sites)


@dataclass(frozen=True)
class Settings(AggregationSettings, AgreedSettings, DataSettings, FederationSettings):
    """The settings of one run. ``auto`` and 0 where so documented mean the method's tuned default."""

    def _check(self) -> None:
        super()._check()
        own_test = not (self.validation_cut or self.sites or self.choices_data)
        if self.train_split == self.test_split and own_test:
            raise ValueError(
                f"test-split={self.test_split!r} is the training split too; set it to another, or validation-cut to "
                "the number of training examples to evaluate on"
            )
        self._check_sites()
        self._check_method()
        if self.clients_per_round > self.num_clients:
            raise ValueError(f"clients-per-round={self.clients_per_round} exceeds num-clients={self.num_clients}")
        if self.quorum > self.num_clients:
            raise ValueError(f"quorum={self.quorum} exceeds the {self.num_clients} clients")
        least = self.asked_of(self.quorum or self.num_clients)
        if self.min_valid > least:
            raise ValueError(f"min-valid={self.min_valid} exceeds the clients asked each round, {least} at a quorum")
        if (needed := aggregator_of(self.aggregation).least) > least:
            raise ValueError(
                f"aggregation={self.aggregation!r} needs {needed} replies or more, and a round may ask {least} "
                "clients; ask more of them, or let it bear fewer bad ones"
            )

    def _check_method(self) -> None:
        method = METHODS[self.method]
        at_clients = judged_at_clients(self.method, self.head, self.judging_data)
        if self.choices_data and (at_clients or self.validation_cut):
            why = "its clients judge it" if at_clients else f"validation-cut={self.validation_cut} does"
            raise ValueError(f"choices-data={self.choices_data!r} does not judge this run, {why}; leave it out")
        if at_clients and self.client_holdout == 0.0:
            own = (
                f"method={self.method!r}"
                if method.personal
                else "head='local'"
                if self.head == "local"
                else "data='none'"
            )
            raise ValueError(f"{own} is evaluated at the clients only; set client-holdout, e.g. client-holdout=0.2")
        if self.server_optimizer != "none" and (method.merge or method.fold or method.personal):
            raise ValueError(
                f"server-optimizer={self.server_optimizer!r} needs a mean change, which {self.method} does not form; "
                "use server-optimizer='none'"
            )
        if self.aggregation != "exact" and (method.merge or method.fold):
            raise ValueError(
                f"aggregation={self.aggregation!r} needs a mean of the replies, and {self.method} goes by the single "
                "ones; use aggregation='exact'"
            )
        if self.cohort > 1 and method.factors == "W":
            raise ValueError(
                f"cohort={self.cohort}: method={self.method!r} trains W itself, of which there is one for all clients; "
                "leave cohort at 1"
            )
        if self.cohort > 1 and method.remembers:
            raise ValueError(
                f"cohort={self.cohort}: a client of method={self.method!r} that is behind is asked again, alone, so "
                "bits would depend on who is; leave cohort at 1"
            )
        if self.method == "central" and self.num_clients != 1:
            raise ValueError(f"method='central' has all data in one place; set num-clients=1, not {self.num_clients}")

    def _check_sites(self) -> None:
        names, default = self.site_names, type(self).__dataclass_fields__
        if not names:
            if self.data == "none":
                raise ValueError("data='none' leaves nothing to learn from; it is for sites with data of their own")
            for name in ("quorum", "max_weight", "sites_timeout", "retries", "rest_after"):
                if (value := getattr(self, name)) != default[name].default:
                    key = name.replace("_", "-")
                    raise ValueError(
                        f"{key}={value} does nothing without sites: where the data are split, all are there "
                        f"and their sizes are known; leave {key} out"
                    )
            return
        bad = [name for name in names if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", name)]
        if bad or len(set(names)) < len(names):
            raise ValueError(
                f"sites={self.sites!r} must be different names of letters, digits, '.', '_' and '-', 63 at most"
            )
        if self.num_clients not in (len(names), default["num_clients"].default):
            raise ValueError(f"num-clients={self.num_clients}, but sites names {len(names)}; leave num-clients out")
        for name, packaged in (("data", "reviews' or 'none"), ("model", "minilm")):
            known = name == "data" and (self.choices_data or self.task in glue.TABLE)
            if not known and getattr(self, name) == default[name].default:
                raise ValueError(
                    f"sites have no default for {name}, which is the demo's here; set it, to '{packaged}' if that is "
                    "meant"
                )
        object.__setattr__(self, "num_clients", len(names))
        if self.rest_after and self.quorum in (0, len(names)):
            raise ValueError(
                f"rest-after={self.rest_after} does nothing with quorum={self.quorum}: a round waits for all sites, so "
                "none can rest; set quorum to fewer"
            )
        for name in ("split", "validation_cut", "cohort"):
            value, usual = getattr(self, name), default[name].default
            if value != usual:
                raise ValueError(f"{name.replace('_', '-')}={value!r} does nothing with sites; leave it at {usual!r}")
        if self.init_adapter:
            raise ValueError(
                f"init-adapter={self.init_adapter!r} does not go with sites: its A does not travel, and no folder of "
                "the server's is read at a site; merge the adapter into its base model with PEFT (merge_and_unload, "
                "then save_pretrained), give every site that folder as model and leave init-adapter out"
            )
        task = task_of(self)
        if task.target.classified and len(task.class_names) < 2:
            raise ValueError(
                f"labels={self.labels!r}: sites cannot see one another's labels; name the classes in the order of "
                "their ids, as they stand in the label column, e.g. labels='no,yes'"
            )

    def resolved(self) -> "Settings":
        """Return settings with the method's tuned defaults in place of ``auto`` and 0."""
        method = METHODS[self.method]
        if self.optimizer not in ("auto", method.optimizer) and not (self.lr and self.head_lr):
            raise ValueError(
                f"optimizer={self.optimizer!r} has no tuned rates for {self.method}, whose own optimizer is "
                f"{method.optimizer!r}; set both lr and head-lr, e.g. lr=0.003 head-lr=0.001 for adamw"
            )
        if self.weight_decay and self.optimizer != "adamw":
            raise ValueError(f"weight-decay={self.weight_decay} is AdamW's; set optimizer='adamw' or weight-decay=0.0")
        return dataclasses.replace(
            self,
            kind=method.kind if self.kind == "auto" else self.kind,
            head=self.head if self.head != "auto" else self._own_head(),
            optimizer=method.optimizer if self.optimizer == "auto" else self.optimizer,
            lr=self.lr or method.lr,
            head_lr=self.head_lr or method.head_lr,
            pooling=self.pooling if self.pooling != "auto" else self._own_pooling(),
        )

    def _own_head(self) -> str:
        """Return what of the head trains: what the method says, if the task has one."""
        method = METHODS[self.method]
        return method.head if task_of(self).target.has_head or method.factors == "W" else "frozen"

    def _own_pooling(self) -> str:
        """Return how the model is pooled: the demo's is an encoder without a head, all others have their own."""
        return task_of(self).inputs.pooling if self.model in MINILM else "model"

    def run_config(self) -> dict[str, Value]:
        """Return the flat run config that `from_run_config` reads."""
        return {key.replace("_", "-"): value for key, value in dataclasses.asdict(self).items()}


def judged_at_clients(method: str, head: str, data: str) -> bool:
    """Say whether the server has no common model, or no data, by which it could evaluate a run."""
    return head == "local" or data == "none" or METHODS[method].personal


def of_any_version(config: Mapping[str, Value]) -> dict[str, Value]:
    """Return a whole flat run config, of one that an earlier version of fedasym may have written.

    A setting that it does not have did not exist then: it is the default, or where that changed bits what was done.
    """
    before: dict[str, Value] = {} if config.get("dtype") == "bfloat16" else {"one-product": False}
    return {**Settings().run_config(), **before, **config}


def from_run_config(config: Mapping[str, Any]) -> Settings:
    """Read settings from Flower's flat run config (or a parsed TOML file of the same keys).

    Args:
        config: values by key, e.g. ``{"num-rounds": 3}``; keys left out keep their default.

    Raises:
        ValueError: an unknown key, a value of another type or out of range.
    """
    known = {each.name.replace("_", "-"): each for each in dataclasses.fields(Settings)}
    values: dict[str, Any] = {}
    for key, value in config.items():
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else "see `python -m simulations settings`"
            raise ValueError(f"setting {key!r} is unknown; {hint}")
        if known[key].type is float and type(value) is int and abs(value) < 1 << 1023:  # above it is no float
            value = float(value)
        values[known[key].name] = value
    return Settings(**values)
