"""What every method would send on a given model, from the model's configuration alone: no weights, no download."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from fedasym.methods import METHODS
from fedasym.reports.comparison import human_bytes, percent
from fedasym.runs.communication import CommunicationCost, Traffic, communication_cost, config_of
from fedasym.settings import Settings

VALUE_BYTES = 4  # of a float32
_OWN_HEAD = ("full", "local")  # head policies that are part of what a method is


def communication_costs(
    model: str, methods: Sequence[str], rank: int, targets: str, head: str, pooling: str, clients: int, labels: int
) -> list[CommunicationCost]:
    """Return what each method would hold and send.

    Args:
        model: a preset of `fedasym.runs.communication`, ``demo``, a folder with a config.json, or a hub id.
        methods: names of methods.
        rank: r of every adapter.
        targets: ``all-linear`` or endings of layer names joined by commas.
        head: head policy; ``auto`` is each method's own. Full fine-tuning and the reference without a federation keep
            theirs, which is part of what they are.
        pooling: as in the setting.
        clients: clients of a round, all of whom reply; the size of a stack of factors.
        labels: outputs of the output layer; 0: the model writes, and its own head stays as it is.

    Raises:
        ValueError: an unknown method or value, targets that match nothing, or a model without a classifier.
        OSError: there is no configuration of that name.
    """
    unknown = [name for name in methods if name not in METHODS]
    if unknown:
        raise ValueError(f"methods {', '.join(unknown)} are unknown; use some of {', '.join(METHODS)}")
    config = config_of(model)
    found = []
    for name in methods:
        settings = Settings(
            task="classification" if labels else "instruct",
            method=name,
            model=model,
            rank=rank,
            targets=targets,
            head="auto" if METHODS[name].head in _OWN_HEAD else head,
            pooling=pooling,
            num_clients=1 if name == "central" else clients,
            client_holdout=0.2,  # what personal methods must have; it moves no byte
        ).resolved()
        found.append(communication_cost(settings, config, labels))
    return found


def as_json(found: Sequence[CommunicationCost], **asked: Any) -> dict[str, Any]:
    """Return communication_costs as plain data: what was asked, and per method values, bytes by round and savings."""
    lora = _reference(found)
    methods = [
        {
            **dataclasses.asdict(each),
            "A_bytes": VALUE_BYTES * each.A,
            "B_bytes": VALUE_BYTES * each.B,
            "head_bytes": VALUE_BYTES * each.head_values,
            "saving": each.saving(lora) if lora else None,
            "saving_adapter": each.saving_adapter(lora) if lora else None,
        }
        for each in found
    ]
    return {**asked, "methods": methods}


def print_costs(found: Sequence[CommunicationCost], model: str, clients: int, labels: int, console: Console) -> None:
    """Print what the model holds and a table of what each method sends."""
    lora = _reference(found)
    of = next((each for each in found if each.layers), found[0])
    head = f"a new head of {labels} output{'s' * (labels > 1)}, whose output layer is {of.output}"
    head = head if labels else "its own head, which stays as it is"
    console.print(f"{model}: {of.parameters:,} parameters with {head}", markup=False, soft_wrap=True)
    sizes = {f"A of {of.layers} layers": of.A, f"B of {of.layers} layers": of.B} if of.layers else {}
    if of.layers:
        sizes[f"head, policy {of.head}"] = of.head_values
    for name, count in sizes.items():
        console.print(f"  {name:<24} {count:>14,} values  {human_bytes(VALUE_BYTES * count):>8}", markup=False)
    table = Table(
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 0, 0, 1),
        show_edge=False,
        caption="Payload (float32 values) of one client in one round; 1 MB = 10⁶ B. Saved: against standard LoRA, "
        f"up and down. Stacks hold the factors of {clients} clients. Every client takes part in every round.",
        caption_justify="left",
    )
    table.add_column("", overflow="fold")
    table.add_column("round", no_wrap=True)
    for heading in ("up", "down", "up,\nno head", "down,\nno head", "saved", "saved,\nno head"):
        table.add_column(heading, justify="right", no_wrap=True)
    for each in found:
        label = METHODS[each.method].label.partition(" (")[0]
        for when, traffic in _rows(each):
            table.add_row(label, when, *_cells(each, traffic, lora))
            label = ""
    console.print(table)


def _cells(each: CommunicationCost, traffic: Traffic, lora: CommunicationCost | None) -> list[str]:
    counts = [human_bytes(count) for count in (traffic.up, traffic.down)]
    if each.layers:
        counts += [human_bytes(count) for count in (traffic.up_adapter, traffic.down_adapter)]
    else:
        counts += ["–", "–"]
    if lora is None:
        return [*counts, percent(None), percent(None)]
    whole, adapter = lora.later[0].both, lora.later[0].both_adapter
    alone = 1.0 - traffic.both_adapter / adapter if each.layers else None
    return [*counts, percent(1.0 - traffic.both / whole), percent(alone)]


def _rows(each: CommunicationCost) -> list[tuple[str, Traffic]]:
    """Return one row for rounds that are alike, with the words for when they are."""
    first, later, cycle = each.rounds[0], each.later, len(each.later)
    same = [dataclasses.replace(traffic, number=1) == first for traffic in later]
    if all(same):
        return [("every", first)]
    if cycle == 1:
        return [("1", first), ("2, 3, …", later[0])]
    return [("1", first)] + [(f"{t.number}, {t.number + cycle}, …", t) for t in later]


def _reference(found: Sequence[CommunicationCost]) -> CommunicationCost | None:
    return next((each for each in found if each.method == "lora"), None)
