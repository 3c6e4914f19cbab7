"""A client's work for one message: check, load, train, reply. Plain functions of a session and a record."""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import MetricRecord, RecordDict
from numpy.typing import NDArray

from clients.errors import Behind, Refusal, Spoiled
from clients.session import Holding, Session
from clients.state import RUN, read_codec, read_held, read_local, write_codec, write_held, write_local
from fedasym.adapters import lora, trainable_state
from fedasym.adapters.frozen_seal import Seal
from fedasym.methods import METHODS
from fedasym.methods.base import letter_of, pick, select
from fedasym.ops.progress import Tell, client_tell, to_nobody
from fedasym.rng import generator
from fedasym.tasks.base import Encoded
from fedasym.training.cohort import Member, train_together
from fedasym.training.loop import Trained, draw_batches, evaluate, train_steps
from fedasym.training.schedule import rate_factor
from fedasym.training.transforms import Change, transformed, transforms_of
from fedasym.wire import records
from fedasym.wire.checks import idle, thawed
from fedasym.wire.codecs import codec_of
from fedasym.wire.contract import frame_of

log = logging.getLogger("fedasym")


@dataclass
class _Work:
    """What a client is to do for a message, and what its reply says of it.

    Attributes:
        client, number: whose work it is, in which round.
        own: folder of what it keeps.
        held: what every party holds at the round's start.
        start: what it starts from: that, and what is private.
        fresh: whether it has private matrices and had none.
        train_set, kept_out: places in its examples.
        encoded: they.
        batches: places of each local step.
        tell: told after every step.
        metrics: of the reply.
        loaded: digest of what was broadcast, as read back from the model.
    """

    client: int
    number: int
    own: Path
    held: dict[str, records.Float32]
    start: dict[str, records.Float32]
    fresh: bool
    train_set: NDArray[np.int64]
    kept_out: NDArray[np.int64]
    encoded: Encoded
    batches: list[NDArray[np.int64]]
    tell: Tell
    metrics: dict[str, int | float]
    loaded: str = ""


def train_round(
    session: Session, holding: Holding, content: RecordDict, keep: Path, run: Path | None = None
) -> RecordDict:
    """Train one client for one round.

    The message names the client whose share of the split is to be trained on. Start and end are proved by digests:
    of the matrices as read back after loading, of A and of W after training (`_frozen` says when anew).

    Args:
        session: model and contract.
        holding: the examples of this node.
        content: the server's message.
        keep: folder of this node for what its clients keep: what never leaves them, and what they were sent.
        run: the run folder, in which how far the client is may be written down; None: nowhere.

    Returns:
        The reply's records, its metrics among them (``num-examples``: n_k; ``loss``: mean over the local steps).

    Raises:
        Refusal: another contract, particulars of another form, or a client that this split does not have.
        Refusal: nothing trained.
        Spoiled: W or A changed while training.
        Behind: the message builds on one that this client did not get.
        ValueError: matrices that do not fit the contract, or what this client keeps is damaged.
        WriteError: what it keeps cannot be written.
        FloatingPointError: the loss is not finite, or the trained model's logits.
    """
    work = _begin(session, holding, content, records.about(content), keep, run)
    _load(session, work)
    work.metrics |= _evaluate(session, work, "before")
    settings, model, task = session.settings, session.built.model, session.task
    moving = {name: session.trained[name] for name in _moving(session, work.number)}
    places = [work.train_set[batch] for batch in work.batches]
    factor = rate_factor(work.number, settings.num_rounds, settings.schedule, settings.warmup_rounds)
    trained = train_steps(
        model, moving, session.built.processor, work.encoded, places, task, settings, work.tell, factor
    )
    frozen = _frozen(session, work.number)
    work.metrics |= _evaluate(session, work, "after")
    return _finish(session, work, trained, trainable_state.read(session.trained), frozen)


def train_cohort(
    session: Session, holding: Holding, content: RecordDict, clients: Sequence[int], keep: Path, run: Path | None = None
) -> dict[int, RecordDict | Exception]:
    """Train several clients for one round in one pass.

    Args:
        session: as `train_round`, and so are all but ``clients``.
        holding: as there.
        content: of one message to them all.
        clients: their numbers.
        keep: as there.
        run: as there.

    Returns:
        For each client its reply's records, or what `train_round` would have raised.
    """
    about = records.about(content)
    outcomes: dict[int, RecordDict | Exception] = {}
    works: dict[int, list[_Work]] = {}  # by their number of steps
    held: dict[str, records.Float32] | None = None  # what came in the message is the same for all
    for client in clients:
        try:
            work = _begin(session, holding, content, {**about, "client": client}, keep, run, held)
            held = work.held
            _load(session, work)
            work.metrics |= _evaluate(session, work, "before")
            works.setdefault(len(work.batches), []).append(work)
        except Exception as error:
            outcomes[client] = error
    for cohort in works.values():
        try:
            ends = _train_members(session, cohort)
            frozen = _frozen(session, cohort[0].number)
        except Exception as error:
            outcomes |= dict.fromkeys([work.client for work in cohort], error)
            continue
        for work, end in zip(cohort, ends, strict=True):
            try:
                if isinstance(end, FloatingPointError):
                    raise end
                trained, after = end
                if len(work.kept_out):
                    trainable_state.load(session.trained, after)
                    work.metrics |= _evaluate(session, work, "after")
                outcomes[work.client] = _finish(session, work, trained, after, frozen)
            except Exception as error:
                outcomes[work.client] = error
    return {client: outcomes[client] for client in clients}


def _train_members(
    session: Session, cohort: Sequence[_Work]
) -> list[tuple[Trained, dict[str, records.Float32]] | FloatingPointError]:
    """Train clients of as many steps in one pass; see `train_together`."""
    settings, built, number = session.settings, session.built, cohort[0].number
    members = [
        Member(
            {name: work.start[name] for name in session.trained},
            work.encoded,
            [work.train_set[batch] for batch in work.batches],
            work.tell,
        )
        for work in cohort
    ]
    factor = rate_factor(number, settings.num_rounds, settings.schedule, settings.warmup_rounds)
    moving = _moving(session, number)
    return train_together(
        built.model, session.trained, moving, built.processor, members, session.task, settings, factor
    )


def _moving(session: Session, number: int) -> list[str]:
    """Return the names of what trains in a round, sorted."""
    letters = {*METHODS[session.settings.method].trains(number), ""}
    return [name for name in session.trained if letter_of(name) in letters]


def _begin(
    session: Session,
    holding: Holding,
    content: RecordDict,
    about: dict[str, Any],
    keep: Path,
    run: Path | None,
    held: dict[str, records.Float32] | None = None,
) -> _Work:
    """Check what the message asks of a client, and gather what its work needs; nothing is loaded yet.

    Args:
        session: as `train_round`, and so are all but these.
        holding: as there.
        content: as there.
        about: particulars of the message to this client.
        keep: as there.
        run: as there.
        held: what the message holds, where it has been unpacked before.

    Raises:
        Exception: as `train_round`.
    """
    if about.get("contract") != session.contract.hash:
        raise Refusal(
            f"round {about.get('round')}: the contract's hash is {about.get('contract')}, ours is "
            f"{session.contract.hash}; run the handshake (query) to see the difference"
        )
    client, number = _order(about)
    if client not in holding.indices:
        raise Refusal(f"client {client} is not here; this place holds the data of clients {_span(holding.indices)}")
    settings = session.settings
    own = _own_folder(keep, about["run"], client)
    held = _receive(session, content, about, own) if held is None else held
    kept = read_local(own, number) if session.private else None
    train_set, kept_out = session.shares(holding, client)
    encoded = session.encoded(holding, client)
    batches = draw_batches(
        encoded.lengths[train_set],
        settings.batch_size,
        settings.local_steps,
        settings.local_epochs,
        generator(settings.seed, "batches", number, client),
    )
    start = {**held, **(kept or session.private)} if session.private else held
    return _Work(
        client, number, own, held, start, bool(session.private) and kept is None,
        train_set, kept_out, encoded, batches, client_tell(run, number, client) if run else to_nobody,
        {"num-examples": len(train_set)},
    )  # fmt: skip


def _load(session: Session, work: _Work) -> None:
    """Load what a client starts from into the model, and prove by a digest what of it was broadcast."""
    everything = {**session.common, **session.trained}
    trainable_state.load(everything, work.start)
    work.loaded = records.digest(trainable_state.read({name: everything[name] for name in work.held}))


def _finish(
    session: Session, work: _Work, trained: Trained, ends: dict[str, records.Float32], frozen: dict[str, str]
) -> RecordDict:
    """Make the reply of a client that has trained, and keep what it keeps.

    Args:
        session: of the client.
        work: what it has done.
        trained: what its training reports.
        ends: all that trains, after it.
        frozen: fingerprints of what does not.

    Raises:
        Refusal: nothing trained.
        ValueError: what this client keeps is damaged.
        WriteError: what it keeps cannot be written.
    """
    settings, number, method = session.settings, work.number, METHODS[session.settings.method]
    schema = select(session.contract.schema, method.up(number))
    after, before = {name: ends[name] for name, _ in schema}, pick(work.held, schema)
    if reason := idle(before, after):
        raise Refusal(f"round {number}, client {work.client}: its {reason}")
    if transforms := transforms_of(settings.transforms):
        change = Change(before, after, len(work.train_set))
        after = transformed(transforms, change, generator(settings.seed, "transforms", number, work.client))
    if method.remembers:  # only now: of a message that was refused nothing is left
        write_held(work.own, number, work.held, settings.keep_checkpoints)
    if session.private:
        private = {name: ends[name] for name in session.private}
        write_local(work.own, number, private, settings.keep_checkpoints)
    particulars: records.About = {
        "contract": session.contract.hash,
        "round": number,
        "client": work.client,
        "loaded": work.loaded,
        "fresh": work.fresh,
        **frozen,
    }
    codec = codec_of(settings.codec)
    before_that = read_codec(work.own, number)
    reply, rest = records.pack_with_rest(after, schema, particulars, codec, before_that)
    if rest or before_that:
        write_codec(work.own, number, rest, settings.keep_checkpoints)
    metrics = {**work.metrics, "loss": trained.loss, "steps": trained.steps, "examples-used": trained.examples}
    reply["metrics"] = MetricRecord({**metrics})
    return reply


def _order(about: dict[str, Any]) -> tuple[int, int]:
    """Return client and round of a message; what is a number of another type, or a text, is none.

    Raises:
        Refusal: one of the particulars has another form.
    """
    wanted = {"client": int, "round": int, "run": str, "whole": bool}
    wrong = [f"{key}={about.get(key)!r:.60}" for key, kind in wanted.items() if type(about.get(key)) is not kind]
    weights = about.get("weights", [])
    if not isinstance(weights, list) or any(type(weight) is not int for weight in weights):
        wrong.append(f"weights={weights!r:.60}")
    if wrong or about["round"] < 1:
        raise Refusal(
            f"the message states {', '.join(wrong) or 'round={}'.format(about['round'])}; client and round are whole "
            "numbers, from 0 and 1, weights a list of them, run a text and whole a truth value; run one fedasym at both"
        )
    return about["client"], about["round"]


def _frozen(session: Session, number: int) -> dict[str, str]:
    """Return the fingerprints of W and, where it never moves, of A.

    They are computed anew in the run's last round, and whenever the seal is broken; else those of the contract hold.

    Raises:
        Spoiled: one is not the contract's.
    """
    contract, model, settings = session.contract, session.built.model, session.settings
    sealed = session.seal.holds()
    if sealed and number < settings.num_rounds:
        return {"base": contract.base, "A": contract.A} if contract.factors in ("A", "B") else {"base": contract.base}
    found = {"base": lora.fingerprint_base(model)}
    if contract.factors in ("A", "B"):
        found["A"] = lora.fingerprint_A(model, settings.kind)
    if reason := thawed(contract, found):
        raise Spoiled(reason)
    if not sealed:
        session.seal = Seal(model)
    return found


def _receive(session: Session, content: RecordDict, about: dict[str, Any], own: Path) -> dict[str, records.Float32]:
    """Return what this client holds now: as sent, or what it held in the round before moved by what was sent."""
    method, number, schema = METHODS[session.settings.method], about["round"], session.contract.schema
    codec = codec_of(session.contract.codec)
    if about["whole"]:
        held = records.unpack(content, method.held_schema(schema), codec_of("identity"))
    else:
        weights = about.get("weights", [])
        if bool(weights) != bool(method.fold and number > 1) or min(weights, default=1) < 1:
            raise Refusal(
                f"round {number} of {method.name} came with the weights {weights}; a stack needs one positive weight a "
                "client, and nothing else has any"
            )
        sent = records.unpack(content, method.sent_schema(schema, number, len(weights)), codec)
        before = session.initial
        if method.remembers and number > 1:
            try:
                before = read_held(own, number - 1) or {}
            except ValueError as error:  # what was sent once can be sent again
                log.warning("%s", error)  # with its path, which stays here
                raise Behind(f"round {number}: what this client was sent in the round before is damaged") from error
            if not before:
                raise Behind(f"round {number} builds on round {number - 1}, which this client was not sent")
        held = method.receive(before, sent, weights, number, frame_of(session.settings))
    return held


def _own_folder(keep: Path, run: str, client: int) -> Path:
    """Return where a client keeps what is its own in a run; the name comes from outside, so its form is checked."""
    if not RUN.fullmatch(run):
        raise Refusal(f"the run's name {run!r} is not 32 hexadecimal digits")
    return keep / run / f"client-{client}"


def _span(clients: Iterable[int]) -> str:
    return f"{min(clients)} to {max(clients)}"


def _evaluate(session: Session, work: _Work, when: str) -> dict[str, float]:
    """Evaluate on the client's kept-out examples, if it keeps any: ``accuracy-before`` and the like."""
    if not len(work.kept_out):
        return {}
    built, examples = session.built, work.encoded.take(work.kept_out)
    scores = evaluate(built.model, built.processor, examples, session.task, session.settings.eval_batch)
    return {"kept-out": len(examples), **{f"{name}-{when}": value for name, value in scores.items()}}
