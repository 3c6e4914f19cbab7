"""What a client requires before it trains: a run that it can take part in, and the contract."""

import hashlib
import json
from pathlib import Path

from flwr.app import RecordDict

from clients.errors import Refusal
from clients.node import NodeContext
from clients.session import Session
from fedasym.fields import difference
from fedasym.files import write_atomic
from fedasym.models import device
from fedasym.models.party_equivalence import logits_gap, logits_refusal
from fedasym.runs.record import versions
from fedasym.settings import Settings
from fedasym.tasks import task_of
from fedasym.wire import records
from fedasym.wire.contract import named_model


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
