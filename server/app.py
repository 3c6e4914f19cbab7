"""The ServerApp: state the contract, run the rounds, leave checkpoint, record, adapter and report.

A run folder that holds a checkpoint of the same contract and settings is continued; of others, refused.
"""

import fcntl
import logging
import os
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedasym import checkpoint, lora, record, wire
from fedasym.contract import Contract, contract_of
from fedasym.data import Tokens, load_examples, load_extra_examples, tokenize
from fedasym.export import write_adapter
from fedasym.model import Built, build
from fedasym.partition import partition
from fedasym.report import write_report
from fedasym.settings import Settings, difference, from_run_config
from fedasym.tasks import Task, task_of
from fedasym.train import evaluate
from server.nodes import meet, warm
from server.optimizer import server_step
from server.strategy import FederationError, Round, run_round

app = ServerApp()
log = logging.getLogger("fedasym")

_FREE = (
    "out",
    "num-rounds",
    "round-timeout",
    "min-valid",
)  # settings in which a continued run may differ from its checkpoint


@dataclass(frozen=True)
class Bench:
    """What the server holds all along."""

    settings: Settings
    built: Built
    task: Task
    held_out: Tokens
    extra: dict[str, Tokens]  # further held-out sets by the suffix of their metrics
    contract: Contract
    config: dict[str, Any]  # of config.json


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the federation that the run config describes."""
    _show_log()
    settings = from_run_config(context.run_config).resolved()
    folder = record.run_folder(settings, context.run_id)
    with _only_user(folder):
        warm(grid)
        federate(grid, settings, folder)


def federate(grid: Grid, settings: Settings, folder: Path) -> None:
    """Train from the folder's checkpoint, or from round 1, to ``num-rounds``.

    Raises:
        FederationError: the folder belongs to another run, the handshake fails, or a round has too few valid replies.
    """
    bench = prepare(settings)
    state = _resume(folder, bench)
    record.write_json(folder / "config.json", bench.config)
    log.info("run folder %s, contract %s", folder, bench.contract.hash[:12])
    if state.round < settings.num_rounds:
        nodes = meet(grid, bench.contract, settings)
        A = {} if bench.contract.factors == "AB" else _frozen_A(bench)
        while state.round < settings.num_rounds:
            state = _next_round(grid, nodes, bench, A, state, folder)
    else:
        log.info("all %d rounds are done already; writing adapter, summary and report again", state.round)
    lora.load(lora.trainable(bench.built.model), state.matrices)
    write_adapter(folder / "adapter", bench.built, settings)
    if settings.head == "local":
        log.info("the output layer in adapter/ is the initial one: trained heads stay with their clients")
    record.write_json(folder / "summary.json", record.summarise(bench.config, record.read_rounds(folder)))
    write_report([folder], folder / "report.html")
    log.info("report %s", folder / "report.html")


def prepare(settings: Settings) -> Bench:
    """Build model, held-out tokens and contract from resolved settings."""
    torch.set_num_threads(os.cpu_count() or 1)
    task = task_of(settings)
    train, held_out = load_examples(settings)
    split = partition(train, settings)
    built = build(settings, max(1, len(train.class_names)))
    contract = contract_of(settings, built, train.class_names, split.digest)
    config = {
        "settings": {key.replace("-", "_"): value for key, value in settings.run_config().items()},
        "metric": task.metric,
        "contract": contract.to_json(),
        "contract_hash": contract.hash,
        "partition": split.report(train.class_names),
        "held_out_examples": len(held_out),
        "trainable_values": contract.values,
        "head_values": sum(
            p.numel() for name, p in lora.trainable(built.model).items() if not name.endswith((".A", ".B"))
        ),
        "versions": record.versions(),
    }
    tokens = tokenize(built.tokenizer, held_out, settings.max_length)
    extra = {
        suffix: tokenize(built.tokenizer, examples, settings.max_length)
        for suffix, examples in load_extra_examples(settings).items()
    }
    return Bench(settings, built, task, tokens, extra, contract, config)


def _next_round(
    grid: Grid, nodes: dict[int, int], bench: Bench, A: dict[str, wire.Float32], state: checkpoint.State, folder: Path
) -> checkpoint.State:
    started = time.perf_counter()
    settings = bench.settings
    result = run_round(grid, nodes, bench.contract, A, state.matrices, state.round + 1, state.run, settings)
    for client, reason in sorted(result.rejected.items()):
        log.warning("round %d: client %d rejected: %s", result.number, client, reason)
    for warning in result.warnings:
        log.warning("round %d: %s", result.number, warning)
    matrices, optimizer = server_step(state.matrices, result.mean, state.optimizer, settings)
    wire.check(matrices, bench.contract.schema)
    row = _row(result, bench, matrices, time.perf_counter() - started)
    row["seconds"] = round(time.perf_counter() - started, 3)
    length = record.append_round(folder, row)
    state = replace(state, round=result.number, matrices=matrices, optimizer=optimizer, record_bytes=length)
    checkpoint.save(folder, state)
    log.info(
        "round %d/%d  %s %.4f  loss %.4f  clients %d/%d  up %d B  down %d B  %.1f s",
        result.number, settings.num_rounds, bench.task.metric, row["metrics"][bench.task.metric], row["train_loss"],
        row["clients_valid"], row["clients_asked"], row["payload_up"], row["payload_down"], row["seconds"],
    )  # fmt: skip
    return state


def _row(result: Round, bench: Bench, matrices: dict[str, wire.Float32], seconds: float) -> dict[str, Any]:
    """Make the round's line: evaluate, centrally or, where the head is local, as the clients did."""
    names = (*bench.task.metrics, "loss")
    clients = {
        f"{name}_{when}": result.weighted(f"{name}-{when}", "kept-out")
        for when in ("before", "after")
        for name in names
        if any(f"{name}-{when}" in row for row in result.metrics.values())
    }
    if bench.settings.head == "local":
        metrics = {name: clients[f"{name}_after"] for name in names}
    else:
        lora.load(lora.trainable(bench.built.model), matrices)
        torch.set_num_threads(os.cpu_count() or 1)
        metrics = evaluate(bench.built.model, bench.built.tokenizer, bench.held_out, bench.task)
        for suffix, tokens in bench.extra.items():
            more = evaluate(bench.built.model, bench.built.tokenizer, tokens, bench.task)
            metrics |= {f"{name}_{suffix}": value for name, value in more.items()}
    return {
        "round": result.number,
        "seconds": seconds,
        "clients_asked": len(result.asked),
        "clients_valid": len(result.metrics),
        "clients_rejected": len(result.rejected),
        "warnings": result.warnings,
        "rejections": {str(client): reason for client, reason in sorted(result.rejected.items())},
        "train_loss": result.train_loss(),
        "metrics": metrics,
        "client_metrics": clients,
        "payload_up": result.payload_up,
        "payload_down": result.payload_down,
        "message_up": result.message_up,
        "message_down": result.message_down,
        "mismatch": result.mismatch,
        "digest": wire.digest(matrices),
    }


def _resume(folder: Path, bench: Bench) -> checkpoint.State:
    """Return the folder's state if it belongs to this run, or the initial one."""
    settings = bench.settings.run_config()
    state = checkpoint.load(folder)
    if state is None:
        record.cut_rounds(folder, 0)
        matrices = lora.read(lora.trainable(bench.built.model))
        return checkpoint.State(uuid.uuid4().hex, 0, matrices, {}, 0, bench.contract.to_json(), settings)
    kept = {key: value for key, value in state.settings.items() if key not in _FREE}
    here = {key: value for key, value in settings.items() if key not in _FREE}
    reasons = difference(kept, here)
    if not reasons and (difference_ := bench.contract.refusal(state.contract, "checkpoint there, run here")):
        reasons = [difference_]
    if bench.settings.num_rounds < state.round:
        reasons.append(f"num-rounds: {state.round} are done there, {bench.settings.num_rounds} wanted here")
    if reasons:
        raise FederationError(
            f"{folder} holds another run, round {state.round}: {'; '.join(reasons)}. Choose another out or remove it"
        )
    record.cut_rounds(folder, state.record_bytes)
    log.info("continuing %s after round %d", folder, state.round)
    return replace(state, settings=settings)


def _frozen_A(bench: Bench) -> dict[str, wire.Float32]:
    return {name: layer.A.detach().cpu().numpy() for name, layer in lora.adapted_layers(bench.built.model)}


@contextmanager
def _only_user(folder: Path) -> Iterator[None]:
    """Hold the run folder alone; the lock ends with the process, however it ends."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FederationError(f"{folder} is in use by another process; wait for it or choose another out") from None
        yield


def _show_log() -> None:
    """Print our lines to standard output unless the program that imports us has set up logging itself."""
    if not log.handlers:
        handler = logging.StreamHandler(sys.stdout)
        handler.setFormatter(logging.Formatter("%(message)s"))
        log.addHandler(handler)
        log.setLevel(logging.INFO)
        log.propagate = False
