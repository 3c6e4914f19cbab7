"""The kinds of messages, and the replies that say no; free of torch, for the processes that must start at once."""

import os
import sys
import time
import traceback
from contextlib import suppress

from flwr.app import ConfigRecord, RecordDict

from clients.node import NodeContext

QUERY, WARM, TRAIN = "query", "query.warm", "train"


class Refusal(Exception):
    """The client will not do what was asked; the text says why and what to do."""


class Behind(Refusal):
    """The client lacks what the message builds on; it must be sent everything."""


class Spoiled(Refusal):
    """What is frozen has changed while training: neither the reply nor the model may be used."""


def refused(reason: str, *, behind: bool = False, passing: bool = False, ends: bool = False) -> RecordDict:
    """Return a reply that says no, and why.

    Args:
        reason: in words.
        behind: whether the client would say yes if it were sent everything.
        passing: whether the same question may be answered otherwise after a while.
        ends: whether the run cannot go on; of a site with data of its own the server does not hear it.
    """
    flags = {"behind": behind, "passing": passing, "ends": ends}
    return RecordDict({"refusal": ConfigRecord({"reason": reason, **flags})})


def hidden(error: Exception, place: NodeContext) -> str:
    """Write an error with its traceback to the site's log and return what may be told: a code to find it by."""
    code = os.urandom(4).hex()
    note(f"error {code}\n{''.join(traceback.format_exception(error))}", place)
    return f"error {code} at site {place.site}; the log of the site says which"


def note(text: str, place: NodeContext) -> None:
    """Add a dated entry to the site's log, or say it on standard error if the node keeps none or its disk is full.

    Its further lines are indented, so that no text of another party looks like an entry of its own.
    """
    lines = ["".join(c if c.isprintable() else " " for c in line) for line in text.rstrip().splitlines()]
    line = f"{time.strftime('%Y-%m-%d %H:%M:%S')} " + "\n    ".join(lines) + "\n"
    if place.log:
        with suppress(OSError), open(place.log, "a", encoding="utf-8") as log:
            log.write(line)
            return
    with suppress(OSError):  # which may lie on the same disk: the site works on
        sys.stderr.write(line)
        sys.stderr.flush()
