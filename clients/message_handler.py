"""The answer to one message: the same function in Flower's process of a client and in a site's warm worker.

A refusal that we can name travels back as a reply of its own. From a site with data of its own nothing else does: an
error becomes a code, and its text a line of the site's own log.
"""

import os
import traceback
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from flwr.app import ConfigRecord, RecordDict

from clients.errors import QUERY, TRAIN, WARM, Behind, Refusal, Spoiled, hidden, note, refused
from clients.handshake import handshake, require_fit, require_pin, require_pinned_model
from clients.node import NodeContext
from clients.session import forget_session, holding_of, session_of
from clients.state import remove_earlier_runs
from clients.train_round import train_cohort, train_round
from fedasym.fields import Value
from fedasym.files import WriteError
from fedasym.models.device import DeviceMemoryError, choose_device, resolved
from fedasym.ops.processes import is_held
from fedasym.runs.record import run_folder
from fedasym.settings import Settings, from_run_config
from fedasym.wire import records
from fedasym.wire.contract import as_stated


def answer(
    kind: str, content: RecordDict, run_config: Mapping[str, Value], run_id: int, place: NodeContext
) -> RecordDict:
    """Work on one message.

    Args:
        kind: ``query`` (the handshake), ``query.warm`` (load ahead of it) or ``train``.
        content: the message's.
        run_config: Flower's flat run config.
        run_id: Flower's id of the run.
        place: the node's context.

    Returns:
        The reply's records; a refusal is a record ``refusal`` with its ``reason``.

    Raises:
        Exception: what is no refusal, in a simulation that asks for one client; at a site with data of its own
            nothing is raised.
    """
    try:
        settings = _settings_of(tuple((key, type(value), value) for key, value in run_config.items()))
        require_fit(settings, place)
        dtype = str(records.about(content).get("dtype", "auto"))
        ahead = kind == WARM and dtype == "auto" and not place.private
        settings = _here(settings, None if ahead else dtype, place.device)
        return _ANSWERS[kind](content, settings, run_id, place)
    except Exception as error:
        if (no := _said(error, place)) is None:
            raise
        return no


def _said(error: Exception, place: NodeContext) -> RecordDict | None:
    """Return the reply that says no for a reason; None where the reason is no refusal."""
    if isinstance(error, Spoiled | DeviceMemoryError):
        forget_session()
    if isinstance(error, Refusal):
        return refused(f"{type(error).__name__}: {error}", behind=isinstance(error, Behind))
    if isinstance(error, DeviceMemoryError):  # its text holds nothing of the data
        return refused(f"{type(error).__name__}: {error}", passing=True)
    if isinstance(error, WriteError):
        if not (place.private or place.state):  # the run's own disk, which is the server's too
            return refused(str(error), ends=True)
        said = hidden(error, place) if place.private else str(error)
        return refused(f"{said}; what it keeps cannot be written ({os.strerror(error.errno or 0)})", passing=True)
    if place.private:
        return refused(hidden(error, place), passing=True)
    if isinstance(error, ValueError | FloatingPointError):
        return refused(f"{type(error).__name__}: {error}")
    return None


@lru_cache(1)  # the messages of a run come with one config
def _settings_of(items: tuple[tuple[str, type, Value], ...]) -> Settings:
    """Return a run's settings; of equal values of two types one may be wrong, so types count."""
    return from_run_config({key: value for key, _, value in items}).resolved()


@lru_cache(1)
def _here(settings: Settings, dtype: str | None, device: str) -> Settings:
    """Return settings with the dtype that the server has stated, and the node's own device if it names one.

    None: a simulation's server has not stated one yet, and will state the same for this machine as for its own.
    """
    here = replace(settings, device=device) if device else settings
    return resolved(here, choose_device(here.device)) if dtype is None else as_stated(here, {"dtype": dtype})


def _query(content: RecordDict, settings: Settings, run_id: int, place: NodeContext) -> RecordDict:
    """Compare the server's contract with our own and say which data we hold."""
    require_pinned_model(content, settings, place, _folder(settings, run_id, place))
    session = session_of(settings)
    about = handshake(session, content, place)
    holding = holding_of(session, place)  # data that cannot be used are found before the first round
    # Whoever sees the server's run folder sees what every client keeps: a simulation's node can do any one's work.
    if not (place.private or place.state) and is_held(run_folder(settings, run_id)):
        about["any-client"] = True
    if place.share >= 0:
        about |= {"partition-id": place.share, "num-partitions": place.shares}
    if place.site:
        about["site"] = place.site
        train_set, _ = session.shares(holding, session.settings.site_names.index(place.site))
        about["num-examples"] = len(train_set)
    return RecordDict({"about": ConfigRecord({**about})})


def _warm(content: RecordDict, settings: Settings, run_id: int, place: NodeContext) -> RecordDict:
    """Load the model ahead of the handshake, while the server loads its own; what fails is said there."""
    with suppress(ValueError, OSError):
        if not place.contract:  # a pinned node loads nothing before it has seen what
            session_of(settings)
    return RecordDict()


def _train(content: RecordDict, settings: Settings, run_id: int, place: NodeContext) -> RecordDict:
    """Load the broadcast matrices, train them on the client's data, reply with them."""
    keep = _folder(settings, run_id, place)
    require_pinned_model(content, settings, place, keep)
    session = session_of(settings)
    require_pin(session, place)
    run = None if place.private or place.state else run_folder(settings, run_id)  # a site's steps are its own affair
    clients = records.about(content).get("clients")
    if clients is not None:
        return _train_several(content, clients, settings, place, keep, run)
    reply = train_round(session, holding_of(session, place), content, keep, run)
    if place.state:
        for line in remove_earlier_runs(keep, records.about(content)["run"], place.keep_runs, place.keep_days):
            note(line, place)
    return reply


def _train_several(
    content: RecordDict, clients: object, settings: Settings, place: NodeContext, keep: Path, run: Path | None
) -> RecordDict:
    """Train the clients that one message names: each answers as it would alone, whatever becomes of the others."""
    if place.private or place.state:
        raise Refusal("the message names several clients, and this node keeps what is one's own; ask it for one")
    if not isinstance(clients, list) or len({*clients}) < len(clients) or any(type(k) is not int for k in clients):
        raise Refusal(f"the message states clients={clients!r:.100}, expected different whole numbers")
    parts: dict[int, RecordDict] = {}
    for start in range(0, len(clients), settings.cohort):
        group = clients[start : start + settings.cohort]
        for client, end in _outcomes(content, group, settings, place, keep, run).items():
            if isinstance(end, WriteError):  # of the run's own disk, for there is no other here: nobody trains on
                raise end
            if isinstance(end, Exception):
                if (no := _said(end, place)) is None:  # alone, Flower would say it in its log
                    note("".join(traceback.format_exception(end)), place)
                    no = refused(f"its process failed: {type(end).__name__}: {end}")
                end = no
            parts[client] = end
    return records.joined(parts)


def _outcomes(
    content: RecordDict, group: list[int], settings: Settings, place: NodeContext, keep: Path, run: Path | None
) -> dict[int, RecordDict | Exception]:
    """Train a group of clients, in one pass where they are several; return each one's reply or error."""
    try:
        session = session_of(settings)  # anew for every group: an error may have ended the one before
        holding = holding_of(session, place)
        if settings.cohort > 1:
            return train_cohort(session, holding, content, group, keep, run)
        about = {**records.about(content), "client": group[0]}
        del about["clients"]
        own = RecordDict({**content, "about": ConfigRecord(about)})
        return {group[0]: train_round(session, holding, own, keep, run)}
    except Exception as error:
        return dict.fromkeys(group, error)


def _folder(settings: Settings, run_id: int, place: NodeContext) -> Path:
    """Return where this node keeps what never leaves it."""
    return Path(place.state) if place.state else run_folder(settings, run_id) / "clients"


_ANSWERS = {QUERY: _query, WARM: _warm, TRAIN: _train}
