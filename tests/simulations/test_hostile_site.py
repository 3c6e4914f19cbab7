"""One site of three is hostile, on a real deployment: behind nginx, with TLS and a key of its own, on a real SuperLink.

It sends bytes that name another message, that no record is made of, that declare 15 MB in 0.2, values that no logit can
bear, and weights that would buy the mean. The run ends with the bits of the two honest sites alone.
"""

import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import pytest
import spoiled_replies as spoiled
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from direct_superlink import Part, parts_of
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents, iterate_object_tree, pull_objects
from flwr.supernode.fleet_http_connection import http_request_response
from world import make_sites, simulate, site_settings

from clients.message_handler import answer
from clients.node import NodeContext
from fedasym.runs.record import read_rounds
from fedasym.settings import Settings
from fedasym.wire import records
from fedasym.wire.codecs.identity import PACKED
from simulations.engines.superlink import run_app
from simulations.federation import Server, await_sites, has_nginx, server_up, site_up

pytestmark = [pytest.mark.slow, pytest.mark.deployed]
NAMES = ("north", "south", "east")  # the last one lies
ESCAPES = "\x1b[2J[/b]\nround 99/99  accuracy 1.0000\n" * 20_000


def huge_values(content: RecordDict) -> None:
    values = content.array_records["matrices"][PACKED].numpy().copy()
    values[:] = 3e38
    content["matrices"] = ArrayRecord({PACKED: Array(values)})


def weighing(examples: int) -> Callable[[RecordDict], None]:
    def tamper(content: RecordDict) -> None:
        content.metric_records["metrics"]["num-examples"] = examples

    return tamper


def refuse_at_length(content: RecordDict) -> None:
    content["refusal"] = ConfigRecord({"reason": ESCAPES})


def as_it_is(anything: object) -> object:
    return anything


# By round: what is done to the reply's records, to the bytes that are made of them, and what the record says.
LIES: list[tuple[Callable, Callable[[Part], Part], str]] = [
    (as_it_is, spoiled.other_message, "and the SuperLink that it is node"),
    (as_it_is, spoiled.malformed_record, "it cannot be decoded (DecodeError"),
    (as_it_is, spoiled.many_times_one_piece, "bytes of values"),
    (huge_values, as_it_is, "holds a value of magnitude 3e+38, max-value=10000"),
    (weighing(10**6), as_it_is, "num-examples=1000000 is above max-weight=10 times the median"),
    (weighing(2**53 - 1), as_it_is, "num-examples=9007199254740991 is above 2147483647"),
    (refuse_at_length, as_it_is, "bytes or more, expected at most"),
]


def lie(server: Server, settings: Settings, data: Path, stop: threading.Event, errors: list[Exception]) -> None:
    """Be the site that lies until it is told to stop; Flower's connection swallows errors, so they are kept."""
    kit = server.home / "sites" / NAMES[2]
    private = load_ssh_private_key((kit / "node.key").read_bytes(), None)
    place = NodeContext(site=NAMES[2], data=str(data), state=str(data / "state"), log=str(data / "log"))
    with http_request_response(
        f"127.0.0.1:{server.port}", False, (kit / "ca.crt").read_bytes(), (private, private.public_key())
    ) as (_, receive, send, _, _, pull_object, push_object, confirm):

        def serve_one() -> None:
            found = receive()
            if found is None:
                return
            outer, tree = found
            run_id, name = outer.metadata.run_id, outer.metadata.message_id
            parts = [node.object_id for node in iterate_object_tree(tree)]
            contents = pull_objects(parts, lambda part: pull_object(run_id, part))
            confirm(run_id, name)
            asked = inflate_object_from_contents(name, contents)
            asked.metadata.__dict__["_message_id"] = name
            kind, number = asked.metadata.message_type, int(records.about(asked.content).get("round", 0))
            content = answer(kind, asked.content, settings.run_config(), run_id, place)
            of_records, of_bytes = LIES[number - 1][:2] if kind == "train" else (as_it_is, as_it_is)
            of_records(content)
            reply = Message(content, reply_to=asked)
            whole = of_bytes(parts_of(reply))
            reply.metadata.__dict__["_message_id"] = whole.name
            missing, session = send(reply, whole.tree, 0.1)
            for part in whole.all()[::-1]:
                if part.name in missing:
                    push_object(run_id, session, part.name, part.content)

        while not stop.wait(0.3):
            try:
                serve_one()
            except Exception as error:
                errors.append(error)


@contextmanager
def lying(server: Server, settings: Settings, data: Path) -> Iterator[None]:
    stop, errors = threading.Event(), list[Exception]()
    thread = threading.Thread(target=lie, args=(server, settings, data, stop, errors))
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        if errors:
            print("".join(traceback.format_exception(errors[0])))
    assert not errors, errors


def test_the_run_completes_with_the_bits_of_the_honest_sites_and_says_what_was_sent(tmp_path: Path) -> None:
    assert has_nginx(), "nginx is missing: apt-get install nginx-light"
    data = make_sites(tmp_path / "world", NAMES)
    more = {"num_rounds": len(LIES), "min_valid": 2, "quorum": 3, "round_timeout": 30.0}
    settings = site_settings(tmp_path / "world", out=str(tmp_path / "deployed"), **more)
    with ExitStack() as stack:
        server = stack.enter_context(server_up(tmp_path / "d", NAMES, proxy=True))
        for name in NAMES[:2]:
            stack.enter_context(site_up(server, name, data / name, "--labels", "bad,good"))
        await_sites(server, 2)
        stack.enter_context(lying(server, settings, data / NAMES[2]))
        run_app(server.link, settings)
    rows = read_rounds(tmp_path / "deployed")
    for row, (_, _, named) in zip(rows, LIES, strict=True):
        assert row["clients_valid"] == 2 and list(row["rejections"]) == ["2"], row
        reason = row["rejections"]["2"]
        assert named in reason and len(reason) <= 600 and reason.isprintable()
    more = {"num_rounds": len(LIES), "sites": ",".join(NAMES[:2])}
    honest = simulate(site_settings(tmp_path / "world", out=str(tmp_path / "honest"), **more), 1, data)
    assert [row["digest"] for row in rows] == [row["digest"] for row in read_rounds(honest)]
    assert np.isfinite([row["metrics"]["loss"] for row in rows]).all()
