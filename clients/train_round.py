"""A client's work for one message: check, load, train, reply. Plain functions of a session and a record."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from flwr.app import RecordDict

from clients.node import NodeContext
from clients.session import Holding, Session
from clients.state import RUN, read_codec, read_held, read_local, write_codec, write_held, write_local
from fedasym.adapters import lora, trainable_state
from fedasym.adapters.frozen_seal import Seal
from fedasym.fields import difference
from fedasym.files import write_atomic
from fedasym.methods import METHODS
from fedasym.methods.base import letter_of, pick, select
from fedasym.models import device
from fedasym.models.party_equivalence import logits_gap, logits_refusal
from fedasym.ops.progress import client_tell, to_nobody
from fedasym.rng import generator
from fedasym.runs.record import versions
from fedasym.settings import Settings
from fedasym.tasks import task_of
from fedasym.tasks.base import Encoded
from fedasym.training.loop import draw_batches, evaluate, train_steps
from fedasym.training.schedule import rate_factor
from fedasym.training.transforms import Change, transformed, transforms_of
from fedasym.wire import records
from fedasym.wire.checks import idle, thawed
from fedasym.wire.codecs import codec_of
from fedasym.wire.contract import frame_of, named_model


class Refusal(Exception):
    """The client will not do what was asked; the text says why and what to do."""


class Behind(Refusal):
    """The client lacks what the message builds on; it must be sent everything."""


class Spoiled(Refusal):
    """What is frozen has changed while training: neither the reply nor the model may be used."""


def require_fit(settings: Settings, place: NodeContext) -> None:
    """Require a run that a node can take part in; called before anything that the run names is built or read.

    Args:
        settings: of the run, resolved.
        place: the node's context.

    Raises:
        Refusal: a site in a run that splits its data, a node without data in a run of sites, a site that the run does
            not list, or one whose data the run would read otherwise than the site lends them.
    """
    if bool(settings.sites) != place.private:
        here = f"site {place.site!r} has data of its own" if place.private else "this node has no data of its own"
        raise Refusal(f"{here}, and the run's sites={settings.sites!r}; give every node its data-dir, or none")
    if place.private and place.site not in settings.site_names:
        raise Refusal(f"site {place.site!r} is none of the run's sites={settings.sites!r}; add it there")
    if place.lends and (differences := difference(place.lends, task_of(settings).reads)):
        raise Refusal(
            f"the run would read the data of site {place.site!r} otherwise than the site lends them (there: the site, "
            f"here: the run): {'; '.join(differences)}; change the run's settings, or bring the site up with others"
        )


def handshake(session: Session, content: RecordDict, place: NodeContext) -> records.About:
    """Check the server's contract and logits against our own, and our contract against the pinned one.

    Returns:
        What we agree to, and what we say of ourselves: how far our logits are from the server's, the versions that we
        run, what computes (``notes``), and whether it is slow at it (``warnings``), which the server shows.

    Raises:
        Refusal: the contracts differ; names each difference. Or the logits differ by more than rounding does, or the
            message holds neither.
    """
    about = records.about(content)
    stated, logits = about.get("contract"), about.get("logits")
    stated = stated if isinstance(stated, str) else ""
    if not stated or not isinstance(logits, list) or any(type(logit) is not float for logit in logits):
        raise Refusal(
            "the query carries no contract, or no logits; server and client must run the same version of fedasym"
        )
    try:
        reason = session.contract.refusal(stated)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise Refusal(
            f"the stated contract is none ({type(error).__name__}: {error!s:.200}); server and client must run the "
            "same version of fedasym"
        ) from error
    if reason := reason or logits_refusal(logits, session.built.logits, session.settings.dtype):
        raise Refusal(reason)
    require_pin(session, place)
    settings, where = session.settings, device.device_of(session.built.model)
    return {
        "contract": session.contract.hash,
        "logits-gap": logits_gap(logits, session.built.logits),
        "versions": [f"{name}={version}" for name, version in versions().items() if name != "machine"],
        "notes": [device.describe(where, settings.dtype)],
        "warnings": [slow] if (slow := device.slow_choice(where, settings.dtype)) else [],
    }


def require_pinned_model(content: RecordDict, settings: Settings, place: NodeContext, keep: Path) -> None:
    """Require that a pinned node is about to load the model of its contract; called before anything is loaded.

    The pinned contract's text comes with the handshake and is kept, by its hash, for the messages after it.

    Args:
        content: the message's.
        settings: of the run, resolved.
        place: the node's context.
        keep: folder of this node for what it keeps.

    Raises:
        Refusal: another contract, another model than that of the contract, or no handshake yet.
    """
    if not place.contract:
        return
    stated = str(records.about(content).get("contract", ""))
    found = hashlib.sha256(stated.encode()).hexdigest() if stated.startswith("{") else stated
    if found != place.contract:
        raise Refusal(
            f"site {place.site!r} works under the contract {place.contract} alone, and this run's is "
            f"{records.clean(found, 64)}; agree on it with the site, which pins it anew"
        )
    kept = keep / f"contract-{place.contract}.json"
    if stated.startswith("{"):
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(kept, stated.encode())
    terms = kept.read_bytes() if kept.exists() else b""
    if hashlib.sha256(terms).hexdigest() != place.contract:
        raise Refusal(f"site {place.site!r} has not heard the contract {place.contract} yet; run the handshake first")
    if (model := json.loads(terms).get("model")) != named_model(settings):
        raise Refusal(
            f"the run names model {named_model(settings)!r}, and its contract, to which site {place.site!r} is pinned, "
            f"{model!r}; nothing was loaded"
        )


def require_pin(session: Session, place: NodeContext) -> None:
    """Require the contract that the node is pinned to, if it is; called before any data are read.

    Raises:
        Refusal: another contract.
    """
    if place.contract not in ("", session.contract.hash):
        raise Refusal(
            f"site {place.site!r} works under the contract {place.contract} alone, and this run's is "
            f"{session.contract.hash}; agree on it with the site, which pins it anew"
        )


def train_round(
    session: Session, holding: Holding, content: RecordDict, keep: Path, run: Path | None = None
) -> tuple[RecordDict, dict[str, int | float]]:
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
        The reply's records, and its metrics (``num-examples``: n_k; ``loss``: mean over the local steps).

    Raises:
        Refusal: another contract, particulars of another form, or a client that this split does not have.
        Refusal: nothing trained.
        Spoiled: W or A changed while training.
        Behind: the message builds on one that this client did not get.
        ValueError: matrices that do not fit the contract, or what this client keeps is damaged.
        WriteError: what it keeps cannot be written.
        FloatingPointError: the loss is not finite, or the trained model's logits.
    """
    about = records.about(content)
    if about.get("contract") != session.contract.hash:
        raise Refusal(
            f"round {about.get('round')}: the contract's hash is {about.get('contract')}, ours is "
            f"{session.contract.hash}; run the handshake (query) to see the difference"
        )
    client, number = _order(about)
    if client not in holding.indices:
        raise Refusal(f"client {client} is not here; this place holds the data of clients {_span(holding.indices)}")
    settings, model, method = session.settings, session.built.model, METHODS[session.settings.method]
    own = _own_folder(keep, about["run"], client)
    held = _receive(session, content, about, own)
    everything = {**session.common, **session.trained}
    private = {name: everything[name] for name in session.private}
    kept = read_local(own, number)
    trainable_state.load(everything, {**held, **(kept or session.private)})
    loaded = records.digest(trainable_state.read({name: everything[name] for name in held}))
    moving = {n: p for n, p in session.trained.items() if letter_of(n) in {*method.trains(number), ""}}
    train_set, kept_out = session.shares(holding, client)
    encoded = session.encoded(holding, client)
    metrics: dict[str, int | float] = {"num-examples": len(train_set)}
    metrics.update(_evaluate(session, encoded.take(kept_out), "before"))
    batches = draw_batches(
        encoded.lengths[train_set],
        settings.batch_size,
        settings.local_steps,
        settings.local_epochs,
        generator(settings.seed, "batches", number, client),
    )
    places = [train_set[batch] for batch in batches]
    tell = client_tell(run, number, client) if run else to_nobody
    factor = rate_factor(number, settings.num_rounds, settings.schedule, settings.warmup_rounds)
    trained = train_steps(model, moving, session.built.processor, encoded, places, session.task, settings, tell, factor)
    frozen = _frozen(session, number)
    metrics.update(_evaluate(session, encoded.take(kept_out), "after"))
    schema = select(session.contract.schema, method.up(number))
    after = trainable_state.read({name: session.trained[name] for name, _ in schema})
    if reason := idle(pick(held, schema), after):
        raise Refusal(f"round {number}, client {client}: its {reason}")
    change = Change(pick(held, schema), after, len(train_set))
    after = transformed(
        transforms_of(settings.transforms), change, generator(settings.seed, "transforms", number, client)
    )
    if method.remembers:  # only now: of a message that was refused nothing is left
        write_held(own, number, held, settings.keep_checkpoints)
    if private:
        write_local(own, number, trainable_state.read(private), settings.keep_checkpoints)
    particulars: records.About = {
        "contract": session.contract.hash,
        "round": number,
        "client": client,
        "loaded": loaded,
        "fresh": bool(private) and kept is None,
        **frozen,
    }
    codec = codec_of(settings.codec)
    reply, rest = records.pack_with_rest(after, schema, particulars, codec, read_codec(own, number))
    if rest:
        write_codec(own, number, rest, settings.keep_checkpoints)
    metrics.update({"loss": trained.loss, "steps": trained.steps, "examples-used": trained.examples})
    return reply, metrics


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
    if number < settings.num_rounds and session.seal.holds():
        return {"base": contract.base, "A": contract.A} if contract.factors in ("A", "B") else {"base": contract.base}
    found = {"base": lora.fingerprint_base(model)}
    if contract.factors in ("A", "B"):
        found["A"] = lora.fingerprint_A(model, settings.kind)
    if reason := thawed(contract, found):
        raise Spoiled(reason)
    session.seal = Seal(model)
    return found


def _receive(session: Session, content: RecordDict, about: dict[str, Any], own: Path) -> dict[str, records.Float32]:
    """Return what this client holds now: as sent, or what it held in the round before moved by what was sent."""
    method, number, schema = METHODS[session.settings.method], about["round"], session.contract.schema
    codec = codec_of(session.contract.codec)
    if about["whole"]:
        held = records.unpack(content, method.held_schema(schema), codec)
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
                raise Behind(f"round {number}: {error}") from error
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


def _evaluate(session: Session, kept_out: Encoded, when: str) -> dict[str, float]:
    """Evaluate on the client's kept-out examples, if it keeps any: ``accuracy-before`` and the like."""
    if not len(kept_out):
        return {}
    scores = evaluate(session.built.model, session.built.processor, kept_out, session.task, session.settings.eval_batch)
    return {"kept-out": len(kept_out), **{f"{name}-{when}": value for name, value in scores.items()}}
