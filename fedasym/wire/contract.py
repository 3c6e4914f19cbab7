"""The contract: what every party of a federation must agree on before anything trains.

The server states it once; each client rebuilds it from its own model, data and code, and refuses to train on
any difference, naming it.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, TypeVar

from fedasym.adapters import lora, trainable_state
from fedasym.adapters.projection import STREAM
from fedasym.fields import difference
from fedasym.methods import METHODS
from fedasym.methods.base import Frame, layers_of
from fedasym.models.build import Built
from fedasym.models.settings import ModelSettings
from fedasym.wire.settings import AgreedSettings

_Agreed = TypeVar("_Agreed", bound=AgreedSettings)
SITES = "sites"  # in place of the split's digest, where every site has data of its own


@dataclass(frozen=True)
class Contract:
    """What the federation is.

    Attributes:
        method, factors, seed, kind, rank, alpha, scaling, head: as in the settings.
        base: fingerprint of all frozen weights.
        config: ``(key, value)`` of the model's configuration, as `party_equivalence.described`.
        tokenizer: digest of how inputs become what the model reads, as `party_equivalence.digest_processor`.
        A: fingerprint of the initial A of every layer.
        schema: ``(name, shape)`` of every matrix that trains, sorted by name, float32 all; what of it travels
            when is the method's.
        task, labels: what is learned, and the class names by id.
        data: digest of the split training data; `SITES` where nobody knows all of them.
        local: the settings of local training.
        codec: how matrices travel.
        A_stream: how A is keyed, `projection.STREAM`.
        init_adapter: fingerprint of what the run took from the folder of ``init-adapter``; "" if it names none.
        model: at sites how the run names the base model, and its revision: who agreed loads no other; "" in a split.

    Versions of libraries are no part of it: parties are compared by what they do.
    """

    method: str
    factors: str
    seed: int
    kind: str
    rank: int
    alpha: float
    scaling: str
    head: str
    base: str
    config: tuple[tuple[str, str], ...]
    tokenizer: str
    A: str
    schema: tuple[tuple[str, tuple[int, ...]], ...]
    task: str
    labels: tuple[str, ...]
    data: str
    local: str
    codec: str = "identity"
    A_stream: int = STREAM
    init_adapter: str = ""
    model: str = ""

    @cached_property
    def hash(self) -> str:
        """SHA-256 of the canonical JSON, hexadecimal."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    @property
    def layers(self) -> list[str]:
        """Paths of the adapted layers, sorted."""
        return layers_of(name for name, _ in self.schema)

    def to_json(self) -> str:
        """Return the canonical JSON text."""
        return self._text

    @cached_property
    def _text(self) -> str:
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))

    def other_stream(self, stated: str, sides: str = "checkpoint there, run here") -> str:
        """Say that a stated contract's A is drawn otherwise than ours, or return ""."""
        theirs = json.loads(stated)
        stream = theirs.get("A_stream", 1) if isinstance(theirs, dict) else self.A_stream
        if stream == self.A_stream:
            return ""
        return (
            f"equal seeds give another A ({sides}): A_stream: {stream!r} there, {self.A_stream} here; use one version "
            "of fedasym, and start anew what another version began"
        )

    def refusal(self, stated: str, sides: str = "server there, client here") -> str:
        """Compare with the JSON of a stated contract; name every difference, or return "" if there is none."""
        if stated == self.to_json():
            return ""
        if other := self.other_stream(stated, sides):
            return other
        theirs, ours = json.loads(stated), json.loads(self.to_json())
        if strange := _strange(theirs, ours):
            return f"the contract is of another version of fedasym ({sides}): {strange}; use one version"
        lines = difference(_flat(theirs), _flat(ours))
        lines.sort(key=lambda line: line.startswith("matrix "))  # last, for there may be many, and a text may be cut
        return f"the contract differs ({sides}): " + "; ".join(lines)


def named_model(settings: ModelSettings) -> str:
    """Return how settings name the base model, as a contract states it.

    >>> named_model(ModelSettings(model="org/name"))
    'org/name, revision main'
    """
    return f"{settings.model}, revision {settings.revision}"


def frame_of(settings: AgreedSettings) -> Frame:
    """Return what a method needs to know besides matrices, from resolved settings."""
    scale = lora.scale_of(settings.alpha, settings.rank, settings.scaling)
    return Frame(settings.seed, settings.kind, settings.rank, scale)


def as_stated(settings: _Agreed, about: Mapping[str, Any]) -> _Agreed:
    """Return a client's settings with the dtype that the server has chosen for the whole run in place of ``auto``.

    Args:
        settings: resolved settings of the run.
        about: the particulars of the server's message, of which ``dtype`` is read.

    Raises:
        ValueError: it states none.
    """
    if settings.dtype != "auto":
        return settings
    if about.get("dtype") in (None, "auto"):
        raise ValueError("the message states no dtype; let server and client run the same version of fedasym")
    return replace(settings, dtype=about["dtype"])


def _flat(contract: dict[str, Any]) -> dict[str, Any]:
    """Spread the schema into one entry per matrix and the configuration into one per key: a difference names those."""
    flat = {key: value for key, value in contract.items() if key not in ("schema", "config")}
    flat.update({f"matrix {name}": tuple(shape) for name, shape in contract["schema"]})
    flat.update({f"config {key}": value for key, value in contract["config"]})
    return flat


def _strange(theirs: Any, ours: dict[str, Any]) -> str:
    """Say which fields a stated contract has and ours has not, or the other way round, or has in another form."""
    if not isinstance(theirs, dict):
        return f"it is a {type(theirs).__name__}"
    found = [f"{key} is there alone" for key in sorted(theirs.keys() - ours.keys())]
    found += [f"{key} is here alone" for key in sorted(ours.keys() - theirs.keys())]
    for key in sorted(theirs.keys() & ours.keys()):
        if isinstance(theirs[key], list) != isinstance(ours[key], list):
            found.append(f"{key} has another form")
    return ", ".join(found)


def contract_of(settings: AgreedSettings, built: Built, labels: tuple[str, ...], data: str) -> Contract:
    """State the contract of resolved settings, a built model, the task's labels and the data's digest."""
    schema = tuple((name, tuple(p.shape)) for name, p in trainable_state.trainable(built.model).items())
    local = {
        key: getattr(settings, key)
        for key in (
            "optimizer", "lr", "head_lr", "schedule", "warmup_rounds", "weight_decay", "clip", "batch_size",
            "local_steps", "local_epochs", "micro_batch", "max_length", "answer_length", "prompt", "attention", "dtype",
            "client_holdout", "threads", "transforms",
        )
    }  # fmt: skip
    if settings.quantize != "none":
        local["quantize"] = settings.quantize
    if settings.may_take_one_product:
        local["one_product"] = True
    if settings.cohort > 1:
        local["cohort"] = settings.cohort
    if settings.schedule != "constant":
        local["num_rounds"] = settings.num_rounds  # by which the rates go
    return Contract(
        settings.method, METHODS[settings.method].factors, settings.seed, settings.kind, settings.rank,
        settings.alpha, settings.scaling, settings.head,
        built.base, built.config, built.ids, built.A, schema, settings.task, labels, data,
        " ".join(f"{key}={value}" for key, value in local.items()),
        settings.codec, init_adapter=built.init_adapter, model=named_model(settings) if data == SITES else "",
    )  # fmt: skip
