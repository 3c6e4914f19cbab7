"""What the server holds all along: model, held-out tokens, contract; made once from the settings."""

from dataclasses import dataclass
from typing import Any

from fedasym.adapters import trainable_state
from fedasym.data.examples import load_examples, load_extra_examples, load_held_out
from fedasym.data.partition import kept_out, partition
from fedasym.methods.base import Matrices, select, values
from fedasym.models import device
from fedasym.models.build import Built, build
from fedasym.models.class_names import classes_of_checkpoint
from fedasym.ops.processes import cores
from fedasym.runs import record
from fedasym.runs.shown_examples import choose_examples
from fedasym.settings import Settings, judged_at_clients
from fedasym.tasks import task_of
from fedasym.tasks.base import Encoded, Examples, Task
from fedasym.wire.contract import SITES, Contract, contract_of


@dataclass(frozen=True)
class Session:
    """What the server holds all along."""

    settings: Settings
    built: Built
    task: Task
    held_out: dict[str, Encoded]  # held-out sets by the suffix of their metrics; "" is the one that judges
    contract: Contract
    frozen: Matrices  # the factor of every layer that never moves, by name
    config: dict[str, Any]  # of config.json
    sizes: dict[int, int]  # examples that each client trains on; empty where sites have data of their own
    shown: Examples | None  # held-out examples whose answers the report shows; None: there is nobody here to answer


def prepare(settings: Settings) -> Session:
    """Build model, held-out examples and contract from resolved settings, whose dtype may still be ``auto``."""
    where = device.choose_device(settings.device)
    device.prepare(where, cores(), settings.deterministic)
    settings = device.resolved(settings, where)
    task = task_of(settings)
    task = task.ordered(classes_of_checkpoint(settings) if task.target.classified else ())
    data = _load_data(settings, task)
    built = build(settings, task.outputs(data.names), task.inputs)
    contract = contract_of(settings, built, data.names, data.digest)
    config = {
        "settings": {key.replace("-", "_"): value for key, value in settings.run_config().items()},
        "metric": task.metric,
        "contract": contract.to_json(),
        "contract_hash": contract.hash,
        "partition": data.report,
        "held_out_examples": len(data.held_out.get("", ())),
        "trainable_values": values(contract.schema),
        "head_values": 0 if contract.factors == "W" else values(select(contract.schema, "")),
        "versions": record.versions(),
    }
    held_out = {
        suffix: task.judge.inputs.encode(built.processor, examples, settings.max_length, settings.pooling)
        for suffix, examples in data.held_out.items()
    }
    frozen = trainable_state.read(trainable_state.frozen_factors(built.model))
    shown = None
    if "" in data.held_out and not judged_at_clients(settings.method, settings.head, settings.judging_data):
        shown = choose_examples(data.held_out[""], settings.seed)
    return Session(settings, built, task, held_out, contract, frozen, config, data.sizes, shown)


@dataclass(frozen=True)
class _Data:
    """What the server's data say: of the split its digest, report and sizes; held-out sets by their metrics' suffix."""

    names: tuple[str, ...]
    digest: str
    report: dict[str, Any]
    sizes: dict[int, int]
    held_out: dict[str, Examples]


def _load_data(settings: Settings, task: Task) -> _Data:
    if not settings.sites:
        train, held_out = load_examples(settings, task.order)
        split = partition(train, settings)
        held = {"": held_out, **load_extra_examples(settings, train.class_names, task.order)}
        sizes = {k: size - kept_out(size, settings.client_holdout) for k, size in enumerate(split.sizes)}
        return _Data(train.class_names, split.digest, split.report(train.class_names), sizes, held)
    held = {}
    if settings.judging_data != "none":
        names, order = task.class_names, task.order
        held = {"": load_held_out(settings, names, order), **load_extra_examples(settings, names, order)}
    # What the sites hold is theirs; a round's line says how many examples each trained on.
    return _Data(task.class_names, SITES, {"sites": list(settings.site_names), "digest": SITES}, {}, held)
