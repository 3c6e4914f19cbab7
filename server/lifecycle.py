"""A federation at the server: state the contract, run the rounds, leave checkpoint, record, adapter and report.

A run folder that holds a checkpoint of the same contract and settings is continued; of others, refused.
"""

import logging
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from flwr.serverapp import Grid

from fedasym.adapters import trainable_state
from fedasym.aggregation.base import aggregator_of
from fedasym.fields import difference
from fedasym.methods import METHODS
from fedasym.methods.base import Matrices, pick, values
from fedasym.models import device
from fedasym.ops import extras
from fedasym.ops.paused_gc import uncollected
from fedasym.ops.processes import cores
from fedasym.runs import checkpoint, record
from fedasym.runs.peft_folder import write_adapter
from fedasym.runs.shown_examples import answers_now, write_examples
from fedasym.runs.trained_model import load_common, private_parts
from fedasym.settings import Settings, judged_at_clients, of_any_version
from fedasym.tasks.base import Answer
from fedasym.training.loop import evaluate
from fedasym.wire import records
from fedasym.wire.codecs import codec_of
from fedasym.wire.contract import as_stated
from server.failure import FederationError
from server.reporter import Reporter
from server.round.outcome import conclude
from server.round.roster import Roster
from server.round.run import Opening, Round, TooFewReplies, name_of, run_round
from server.session import Session, prepare

log = logging.getLogger("fedasym")

NOBODY: Mapping[str, int] = MappingProxyType({})

# Settings in which a continued run may differ from its checkpoint; in num-rounds not where the rates go by it.
_FREE = (
    "out", "eval-untouched", "num-rounds", "round-timeout", "sites-timeout", "retries", "quorum", "min-valid",
    "max-weight", "max-value", "rest-after", "rest-rounds", "device", "eval-batch", "gradient-checkpointing",
    "keep-checkpoints", "keep-best", "patience",
)  # fmt: skip


def for_this_machine(settings: Settings, folder: Path) -> Settings:
    """Return settings with the dtype of the whole run: chosen for the server's device where it is ``auto``.

    A run that is continued keeps that of its checkpoint.

    Raises:
        ValueError: the device is not there.
    """
    if state := checkpoint.load(folder):
        settings = as_stated(settings, state.settings)  # of an older version none of it may fit; `_resume` says so
    where = device.choose_device(settings.device)
    settings = device.resolved(settings, where)
    log.info("server on %s", device.describe(where, settings.dtype))
    return settings


def federate(
    grid: Grid, session: Session, folder: Path, reporter: Reporter, warmed: Mapping[str, int] = NOBODY
) -> None:
    """Train from the folder's checkpoint, or from round 1, to ``num-rounds``; leave summary, adapter and report.

    Args:
        grid: Flower's grid.
        session: what the server holds.
        folder: of the run.
        reporter: told what is done.
        warmed: node by id of a message that had it load ahead, whose answer is taken and left out.

    Raises:
        FederationError: the folder belongs to another run, the handshake fails, or a round has too few valid replies.
        WriteError: the disk is full, or refuses otherwise; started again, the run goes on from what is whole.
    """
    settings, before = session.settings, _answers(session)
    state = train(grid, session, folder, reporter, warmed)
    reporter.begin("writing the adapter and the report")
    load_common(session.built.model, state.matrices)
    write_adapter(folder / "adapter", session.built, settings, session.contract.labels)
    if lacks := private_parts(settings):
        log.info("adapter/: %s", lacks)
    if session.shown is not None and before and (after := _answers(session)):
        write_examples(folder, session.task.judge, session.shown, before, after)
    write_report([folder], folder / "report.html")


def write_report(folders: Sequence[Path], out: Path) -> None:
    """Write the run's page; where its libraries are not installed, say so: the run is whole without it."""
    try:
        from fedasym.reports import run_report
    except ModuleNotFoundError as error:
        if not extras.is_extra(error):
            raise
        log.info("no report: %s", extras.in_words(error))
        return
    run_report.write_report(folders, out)
    log.info("report %s", out)


def opened(settings: Settings, folder: Path) -> Session:
    """Build what the server of a run holds all along, in the dtype of the whole run."""
    with uncollected():
        return prepare(for_this_machine(settings, folder))


def _answers(session: Session) -> list[Answer]:
    """Return what the model says now to the examples that the report shows; none where there are none.

    A run is whole without them: where there is no memory for them, or no answer that could be shown, the log says so.
    """
    if session.shown is None:
        return []
    try:
        return answers_now(session.built, session.settings, session.task.judge, session.shown)
    except (ArithmeticError, RuntimeError, ValueError) as error:
        log.info("the report shows no examples: %s", error)
        return []


def train(
    grid: Grid, session: Session, folder: Path, reporter: Reporter, warmed: Mapping[str, int] = NOBODY
) -> checkpoint.State:
    """Train from the folder's checkpoint, or from round 1, to ``num-rounds``; leave config, rounds and summary.

    Arguments as of `federate`.

    Raises:
        FederationError: as `federate`.
    """
    settings = session.settings
    state = _resume(folder, session)
    record.write_json(folder / "config.json", session.config)
    if settings.eval_untouched and state.round == 0:
        _judge_untouched(session, state.matrices, folder, reporter)
    log.info("run folder %s, contract %s", folder, session.contract.hash[:12])
    if aggregator_of(settings.aggregation).single_replies:
        size = settings.asked_of(settings.num_clients) * 4 * values(session.contract.schema)
        log.info("aggregation=%r holds all replies of a round: up to %d MB", settings.aggregation, size // 10**6)
    past = record.read_rounds(folder)
    scores: list[float | None] = [row["metrics"][session.task.metric] for row in past]
    if _goes_on(session, scores):
        roster = Roster(grid, session.contract, session.built.logits, settings, past, warmed)
        del past  # of a long run the record is large, and grows
        while _goes_on(session, scores):
            state = _next_round(grid, roster, session, state, folder, reporter, scores)
    else:
        log.info("all %d rounds are done already", state.round)
    untouched = folder / record.UNTOUCHED
    before = record.read_json(untouched) if untouched.exists() else None
    summary = record.summarise(session.config, record.read_rounds(folder), before)
    record.write_json(folder / "summary.json", summary)
    return state


def _judge_untouched(session: Session, matrices: Matrices, folder: Path, reporter: Reporter) -> None:
    """Write what the model scores before the first round, where a common model is judged at the server."""
    settings = session.settings
    if judged_at_clients(settings.method, settings.head, settings.judging_data):
        log.info("eval-untouched: there is no common model to evaluate before the first round")
        return
    metrics = _judged(session, matrices, reporter, "before the first round")
    record.write_json(folder / record.UNTOUCHED, metrics)
    log.info("untouched  %s %.4f", session.task.metric, metrics[session.task.metric])


def _goes_on(session: Session, scores: Sequence[float | None]) -> bool:
    """Say whether there is a round after those of these scores; ``patience`` may end a run before ``num-rounds``."""
    patience, rounds, done = session.settings.patience, session.settings.num_rounds, len(scores)
    since = record.rounds_since_best(scores)
    if patience and since >= patience and done < rounds:
        log.info("ended after round %d: no better %s in %d rounds", done, session.task.metric, since)
        return False
    return done < rounds


def _next_round(
    grid: Grid,
    roster: Roster,
    session: Session,
    state: checkpoint.State,
    folder: Path,
    reporter: Reporter,
    scores: list[float | None],
) -> checkpoint.State:
    """Do the next round, append its line to the record and its metric to those of the rounds before.

    Returns:
        What the one after it starts from.
    """
    settings = session.settings
    news: list[str] = []
    lost = Round(state.round + 1, [])
    for left in range(settings.retries if settings.sites else 0, -1, -1):
        try:
            result, started = _asked(grid, roster, session, state, reporter)
            break
        except TooFewReplies as error:
            if not left:
                raise
            log.warning("%s. It is tried again, %d more times at most", error, left)
            news.append(f"tried again: {error}")
            lost.count_bytes(error.result)
    reporter.begin("averaging")
    roster.count_failures(result)
    result.count_bytes(lost)
    news += roster.news(folder)
    result.warnings += roster.late_replies()
    for client, reason in sorted(result.rejected.items()):
        log.warning("round %d: %s rejected: %s", result.number, name_of(client, settings), reason)
    for warning in result.warnings:
        log.warning("round %d: %s", result.number, warning)
    result.warnings[:0] = news
    outcome = conclude(session.contract, state, result, session.frozen, settings)
    state = replace(outcome.state, round=result.number)
    row = _row(result, session, state.matrices, outcome.mismatch, reporter)
    row["seconds"] = round(time.perf_counter() - started, 3)
    metric = row["metrics"][session.task.metric]
    scores.append(metric)
    if settings.keep_best and metric is not None and record.rounds_since_best(scores) == 0:
        load_common(session.built.model, state.matrices)
        write_adapter(folder / "best", session.built, settings, session.contract.labels)
    length, chain = record.append_round(folder, row, state.record_chain)
    checkpoint.save(folder, replace(state, record_bytes=length, record_chain=chain), settings.keep_checkpoints)
    state = replace(state, record_bytes=length, record_chain=chain, older=False)
    log.info(
        "round %d/%d  %s %s  loss %.4f  clients %d/%d  up %d B  down %d B  %.1f s",
        result.number, settings.num_rounds, session.task.metric, "–" if metric is None else f"{metric:.4f}",
        row["train_loss"], row["clients_valid"], row["clients_asked"], row["payload_up"], row["payload_down"],
        row["seconds"],
    )  # fmt: skip
    reporter.end_round(row["seconds"])
    return state


def _asked(
    grid: Grid, roster: Roster, session: Session, state: checkpoint.State, reporter: Reporter
) -> tuple[Round, float]:
    """Wait for the clients of the next round, ask them; return what came, and when they were asked.

    Raises:
        FederationError: as `Roster.gather` and `run_round`.
    """
    settings = session.settings
    whom = ("waiting for sites", "sites are here") if settings.sites else ("handshake", "nodes agreed")
    reporter.begin(*whom, round=state.round + 1)
    nodes = roster.gather(state.round + 1, reporter.tell)
    started = time.perf_counter()
    opening = Opening(state.round + 1, state.run, state.matrices, state.stack, state.weights)
    reporter.begin("training", "clients", settings.asked_of(len(nodes)), steps_each=settings.local_steps)
    weights = roster.weights(session.sizes)
    try:
        result = run_round(
            grid, roster.inbox, nodes, session.contract, opening, settings, weights, reporter.tell, roster.any_client
        )
    except TooFewReplies as error:
        roster.expect_late(error.result)
        raise
    roster.expect_late(result)
    return result, started


def _row(
    result: Round, session: Session, matrices: Matrices, mismatch: float | None, reporter: Reporter
) -> dict[str, Any]:
    """Make the round's line: evaluate, centrally or, where there is no common model, as the clients did."""
    settings = session.settings
    names = (*session.task.metrics, "loss")
    clients = {
        f"{name}_{when}": result.weighted(f"{name}-{when}", "kept-out")
        for when in ("before", "after")
        for name in names
        if any(f"{name}-{when}" in row for row in result.metrics.values())
    }
    metrics: dict[str, float | None]
    if judged_at_clients(settings.method, settings.head, settings.judging_data):
        if not all(f"{name}_after" in clients for name in names):
            raise FederationError(
                f"round {result.number}: no client kept examples out, by which alone {settings.method} with "
                f"head={settings.head!r} is judged; raise client-holdout or min-examples"
            )
        metrics = {name: clients[f"{name}_after"] for name in names}
    elif result.number % settings.eval_every and result.number != settings.num_rounds:
        metrics = dict.fromkeys((*session.task.judge.metrics, "loss"))
    else:
        metrics = {**_judged(session, matrices, reporter, f"round {result.number}")}
    return {
        "round": result.number,
        "seconds": 0.0,
        "asked": result.asked,
        "clients_asked": len(result.asked),
        "clients_valid": len(result.metrics),
        "clients_rejected": len(result.rejected),
        "clients_replied": len(result.replied),
        "warnings": result.warnings,
        "rejections": {str(client): reason for client, reason in sorted(result.rejected.items())},
        "weights": {str(client): row["num-examples"] for client, row in sorted(result.metrics.items())},  # n_k
        "norms": {str(client): round(norm, 6) for client, norm in sorted(result.norms.items())},  # of their changes
        "examples": sum(int(each.get("examples-used", 0)) for each in result.metrics.values()),
        "train_loss": result.train_loss(),
        "metrics": metrics,
        "client_metrics": clients,
        "payload_up": result.payload_up,
        "payload_down": result.payload_down,
        "message_up": result.message_up,
        "message_down": result.message_down,
        "mismatch": mismatch,
        "digest": records.digest(matrices),
    }


def _judged(session: Session, matrices: Matrices, reporter: Reporter, when: str) -> dict[str, float]:
    """Return the metrics of what all parties hold, on every held-out set.

    Raises:
        FederationError: they are not finite, or the device's memory is too small; says when.
    """
    settings, built = session.settings, session.built
    load_common(session.built.model, matrices)
    device.prepare(device.device_of(built.model), cores(), settings.deterministic)
    metrics: dict[str, float] = {}
    for suffix, encoded in session.held_out.items():
        reporter.begin("evaluating", "examples", len(encoded))
        try:
            found = evaluate(
                built.model, built.processor, encoded, session.task.judge, settings.eval_batch, reporter.tell
            )
        except (FloatingPointError, device.DeviceMemoryError) as error:
            raise FederationError(f"{when}: {error}") from error
        metrics |= {f"{name}_{suffix}" if suffix else name: value for name, value in found.items()}
    return metrics


def initial_state(session: Session) -> checkpoint.State:
    """Return what the first round starts from: the built model's matrices, as every party will hear them."""
    method = METHODS[session.settings.method]
    moved = trainable_state.read(trainable_state.common(session.built.model))
    matrices = {name: moved[name] for name in sorted(method.common(moved))}
    opens = method.sent_schema(session.contract.schema, 1, 0)
    matrices |= records.heard(pick(matrices, opens), opens, codec_of(session.contract.codec))
    return checkpoint.State(
        uuid.uuid4().hex, 0, matrices, {}, 0, session.contract.to_json(), session.settings.run_config()
    )


def _resume(folder: Path, session: Session) -> checkpoint.State:
    """Return the folder's state if it belongs to this run, or the initial one."""
    settings = session.settings.run_config()
    state = checkpoint.load(folder)
    if state is None:
        if record.cut_rounds(folder, 0):
            log.info("%s holds a first round that was not finished; it is done again", folder)
        return initial_state(session)
    free = {*_FREE} if session.settings.schedule == "constant" else {*_FREE} - {"num-rounds"}
    kept = {key: value for key, value in of_any_version(state.settings).items() if key not in free}
    here = {key: value for key, value in settings.items() if key not in free}
    reasons = [other] if (other := session.contract.other_stream(state.contract)) else difference(kept, here)
    if not reasons and (difference_ := session.contract.refusal(state.contract, "checkpoint there, run here")):
        reasons = [difference_]
    if session.settings.num_rounds < state.round:
        reasons.append(f"num-rounds: {state.round} are done there, {session.settings.num_rounds} wanted here")
    elif session.settings.num_rounds == state.round and not reasons and not _judged_last(folder, state.round):
        reasons.append(f"num-rounds: round {state.round} is not evaluated there; set {state.round + 1} or more")
    if reasons:
        raise FederationError(
            f"{folder} holds another run, round {state.round}: {'; '.join(reasons)}. Choose another out or remove it"
        )
    cut = record.cut_rounds(folder, state.record_bytes, state.record_chain, several=state.older)
    again = "; what came after it was not finished or is lost, and is done again" if cut else ""
    log.info("continuing %s after round %d%s", folder, state.round, again)
    return replace(state, settings=settings)


def _judged_last(folder: Path, number: int) -> bool:
    """Say whether the round after which a folder's run stands was evaluated."""
    rows, metric = record.read_rounds(folder)[:number], record.read_json(folder / "config.json")["metric"]
    return bool(rows) and rows[-1]["metrics"][metric] is not None
