"""A client's work for one message: check, load, train, reply. Plain functions of a site and a record."""

import re
from pathlib import Path

import numpy as np
from flwr.app import RecordDict
from numpy.typing import NDArray

from clients.local import read_local, write_local
from clients.site import Site
from fedasym import lora, wire
from fedasym.chance import generator
from fedasym.train import draw_batches, evaluate, train_steps


class Refusal(Exception):
    """The client will not do what was asked; the text says why and what to do."""


def handshake(site: Site, content: RecordDict) -> wire.About:
    """Check the server's contract against our own.

    Raises:
        Refusal: the contracts differ; names each difference.
    """
    stated = str(wire.about(content).get("contract", ""))
    if not stated:
        raise Refusal("the query carries no contract; server and client must run the same version of fedasym")
    reason = site.contract.refusal(stated)
    if reason:
        raise Refusal(reason)
    return {"contract": site.contract.hash}


def train_round(site: Site, content: RecordDict, keep: Path) -> tuple[RecordDict, dict[str, int | float]]:
    """Train one client for one round.

    The message names the client whose share of the split is to be trained on. Start and end are proved by digests:
    of the matrices as read back after loading, of A and of W after training.

    Args:
        site: model, data and contract.
        content: the server's message.
        keep: folder of this site for what never leaves it (a head under the policy ``local``).

    Returns:
        The reply's records, and its metrics (``num-examples``: n_k; ``loss``: mean over the local steps).

    Raises:
        Refusal: another contract, or a client that this split does not have.
        ValueError: matrices that do not fit the contract.
        FloatingPointError: the loss is not finite.
    """
    about = wire.about(content)
    if about.get("contract") != site.contract.hash:
        raise Refusal(
            f"round {about.get('round')}: the contract's hash is {about.get('contract')}, ours is "
            f"{site.contract.hash}; run the handshake (query) to see the difference"
        )
    client, number = int(about["client"]), int(about["round"])
    if not 0 <= client < len(site.split.indices):
        raise Refusal(f"client {client} is not in the split of {len(site.split.indices)} clients")
    settings, model = site.settings, site.built.model
    parameters, private = lora.trainable(model), lora.local_only(model)
    lora.load(parameters, wire.unpack(content, site.contract.schema))
    loaded = wire.digest(lora.read(parameters))
    own = _own_folder(keep, str(about.get("run")), client)
    lora.load(private, read_local(own, number) or site.private)
    train_set, kept_out = site.shares(client)
    metrics: dict[str, int | float] = {"num-examples": len(train_set), **_evaluate(site, kept_out, "before")}
    batches = draw_batches(
        site.tokens.lengths[train_set],
        settings.batch_size,
        settings.local_steps,
        settings.local_epochs,
        generator(settings.seed, "batches", number, client),
    )
    places = [train_set[batch] for batch in batches]
    trained = train_steps(
        model, {**parameters, **private}, site.built.tokenizer, site.tokens, places, site.task, settings
    )
    metrics.update(_evaluate(site, kept_out, "after"))
    if private:
        write_local(own, number, lora.read(private))
    particulars: wire.About = {
        "contract": site.contract.hash,
        "round": number,
        "client": client,
        "loaded": loaded,
        "base": lora.fingerprint_base(model),
    }
    if site.contract.factors == "B":
        particulars["A"] = lora.fingerprint_A(model, settings.kind)
    reply = wire.pack(lora.read(parameters), site.contract.schema, particulars)
    metrics.update({"loss": trained.loss, "steps": trained.steps, "examples-used": trained.examples})
    return reply, metrics


def _own_folder(keep: Path, run: str, client: int) -> Path:
    """Return where a client keeps what is its own in a run; the name comes from outside, so its form is checked."""
    if not re.fullmatch("[0-9a-f]{32}", run):
        raise Refusal(f"the run's name {run!r} is not 32 hexadecimal digits")
    return keep / run / f"client-{client}"


def _evaluate(site: Site, kept_out: NDArray[np.int64], when: str) -> dict[str, float]:
    """Evaluate on the client's kept-out examples, if it keeps any: ``accuracy-before`` and the like."""
    if not len(kept_out):
        return {}
    tokens = site.tokens.take(kept_out)
    scores = evaluate(site.built.model, site.built.tokenizer, tokens, site.task)
    return {"kept-out": len(kept_out), **{f"{name}-{when}": value for name, value in scores.items()}}
