"""The answer to one message: the same function in Flower's process of a client and in a site's warm worker.

A refusal that we can name travels back as a reply of its own. From a site with data of its own nothing else does: an
error becomes a code, and its text a line of the site's own log.
"""

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from flwr.app import ConfigRecord, MetricRecord, RecordDict

from clients.errors import QUERY, TRAIN, WARM, hidden, note, refused
from clients.node import NodeContext
from clients.session import forget_session, holding_of, session_of
from clients.state import remove_earlier_runs
from clients.train_round import (
    Behind,
    Refusal,
    Spoiled,
    handshake,
    require_fit,
    require_pin,
    require_pinned_model,
    train_round,
)
from fedasym.fields import Value
from fedasym.files import WriteError
from fedasym.models.device import DeviceMemoryError, choose_device, resolved
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
        Exception: what is no refusal, in a simulation; at a site with data of its own nothing is raised.
    """
    try:
        settings = _settings_of(tuple((key, type(value), value) for key, value in run_config.items()))
        require_fit(settings, place)
        dtype = str(records.about(content).get("dtype", "auto"))
        ahead = kind == WARM and dtype == "auto" and not place.private
        settings = _here(settings, None if ahead else dtype, place.device)
        return _ANSWERS[kind](content, settings, run_id, place)
    except Refusal as error:
        if isinstance(error, Spoiled):
            forget_session()
        return refused(f"{type(error).__name__}: {error}", behind=isinstance(error, Behind))
    except DeviceMemoryError as error:  # its text holds nothing of the data
        forget_session()
        return refused(f"{type(error).__name__}: {error}", passing=True)
    except WriteError as error:
        if not (place.private or place.state):  # the run's own disk, which is the server's too
            return refused(str(error), ends=True)
        said = hidden(error, place) if place.private else str(error)
        return refused(f"{said}; what it keeps cannot be written ({os.strerror(error.errno or 0)})", passing=True)
    except Exception as error:
        if place.private:
            return refused(hidden(error, place), passing=True)
        if isinstance(error, (ValueError, FloatingPointError)):
            return refused(f"{type(error).__name__}: {error}")
        raise


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
    reply, metrics = train_round(session, holding_of(session, place), content, keep, run)
    reply["metrics"] = MetricRecord({**metrics})
    if place.state:
        for line in remove_earlier_runs(keep, records.about(content)["run"], place.keep_runs, place.keep_days):
            note(line, place)
    return reply


def _folder(settings: Settings, run_id: int, place: NodeContext) -> Path:
    """Return where this node keeps what never leaves it."""
    return Path(place.state) if place.state else run_folder(settings, run_id) / "clients"


_ANSWERS = {QUERY: _query, WARM: _warm, TRAIN: _train}
