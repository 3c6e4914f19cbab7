"""Whatever is wrong with a reply ends in an error or a rejection that names it.

One honest reply is spoiled in many ways and shown to the server's checks; whole federations show what a rejection does.
The file is long since every way to spoil a reply has a name.
"""

import copy
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MessageType, RecordDict
from flwr.clientapp import ClientApp
from world import federate, no_report, tiny_settings

from clients.app import app as honest
from clients.session import session_of
from fedasym.aggregation.exact import ExactMean
from fedasym.methods.base import Matrices
from fedasym.runs.record import read_json, read_rounds
from fedasym.settings import from_run_config
from fedasym.wire import records
from fedasym.wire.codecs.identity import PACKED
from fedasym.wire.contract import Contract
from server.app import app as server_app
from server.failure import FederationError
from server.round.reply import Checked, Rejection, check_reply
from simulations.engines.grid import RUN_ID, SERVER_NODE, InProcessGrid

Tamper = Callable[[Message, Message], Message | None]
BAD_CLIENT = 2


def tampered(tamper: Tamper) -> ClientApp:
    """Return the real ClientApp behind a hand that tampers with one client's training replies."""
    app = ClientApp()

    @app.query()
    def query(message: Message, context: Context) -> Message:
        return honest(message, context)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        reply = honest(message, context)
        if records.about(message.content)["client"] != BAD_CLIENT:
            return reply
        return tamper(message, reply) or reply

    return app


@dataclass(frozen=True)
class Exchange:
    """A training message of the first round, its honest reply, and what the server holds against it."""

    message: Message
    reply: Message
    contract: Contract
    held: Matrices

    def check(self, tamper: Tamper = lambda message, reply: None) -> Checked:
        """Let the server check a copy of the reply that was tampered with."""
        reply = copy.deepcopy(self.reply)
        tamper(self.message, reply)
        return check_reply(reply, BAD_CLIENT, 1, self.contract, self.held, records.digest(self.held), 1e4)


@pytest.fixture(scope="module")
def exchange(tmp_path_factory: pytest.TempPathFactory) -> Exchange:
    settings = tiny_settings(tmp_path_factory.mktemp("exchange"))
    site = session_of(settings.resolved())
    about: records.About = {
        "contract": site.contract.hash, "round": 1, "run": "0" * 32, "whole": False, "client": BAD_CLIENT,
    }  # fmt: skip
    content = records.pack(site.initial, site.contract.schema, about)
    with InProcessGrid(honest, settings.run_config(), nodes=4) as grid:
        message = Message(content, 100 + BAD_CLIENT, MessageType.TRAIN)
        (reply,) = grid.send_and_receive([message])
    return Exchange(message, reply, site.contract, site.initial)


def assert_says_what_to_do(reason: str) -> None:
    assert re.search(r"; [a-z][^;]+$", reason), f"{reason!r} does not end with what to do"


def values_of(reply: Message) -> np.ndarray:
    return reply.content.array_records["matrices"][PACKED].numpy().copy()


def with_values(reply: Message, values: np.ndarray) -> None:
    reply.content["matrices"] = ArrayRecord({PACKED: Array(values)})


def nan_reply(_: Message, reply: Message) -> None:
    values = values_of(reply)
    values[3] = np.nan
    with_values(reply, values)


def huge_value(_: Message, reply: Message) -> None:
    values = values_of(reply)
    values[7] = 3e38
    with_values(reply, values)


def wordy_refusal(_: Message, reply: Message) -> None:
    reply.content["refusal"] = ConfigRecord({"reason": "\x1b[31m[/b] no\n" * 100_000})


def other_dtype(_: Message, reply: Message) -> None:
    reply.content.array_records["matrices"][PACKED].dtype = "(1000000,)no-such-type"


def short_reply(_: Message, reply: Message) -> None:
    with_values(reply, values_of(reply)[:-1])


def double_reply(_: Message, reply: Message) -> None:
    with_values(reply, values_of(reply).astype(np.float64))


def extra_tensor(_: Message, reply: Message) -> None:
    reply.content.array_records["matrices"]["extra.B"] = Array(np.zeros(2, np.float32))


def missing_tensor(_: Message, reply: Message) -> None:
    reply.content["matrices"] = ArrayRecord({})


def untrained(message: Message, reply: Message) -> None:
    reply.content["matrices"] = message.content.array_records["matrices"]


def set_weight(value: int | float) -> Tamper:
    def tamper(_: Message, reply: Message) -> None:
        reply.content.metric_records["metrics"]["num-examples"] = value

    return tamper


def set_about(key: str, value: str | int) -> Tamper:
    def tamper(_: Message, reply: Message) -> None:
        reply.content.config_records["about"][key] = value

    return tamper


def infinite_loss(_: Message, reply: Message) -> None:
    reply.content.metric_records["metrics"]["loss"] = float("inf")


def set_metrics(**values: int | float) -> Tamper:
    def tamper(_: Message, reply: Message) -> None:
        for name, value in values.items():
            reply.content.metric_records["metrics"][name.replace("_", "-")] = value

    return tamper


def huge_shape(_: Message, reply: Message) -> None:
    reply.content.array_records["matrices"][PACKED].shape = (10**12,)


def no_bytes(_: Message, reply: Message) -> None:
    reply.content.array_records["matrices"][PACKED].data = b""


def speechless_refusal(_: Message, reply: Message) -> None:
    reply.content["refusal"] = ConfigRecord({})


def crash(_: Message, reply: Message) -> None:
    raise ZeroDivisionError("a bug of the client")


@pytest.mark.parametrize(
    ("tamper", "named"),
    [
        (nan_reply, "holds nan at (0, 3): not a finite value"),
        (huge_value, "holds a value of magnitude 3e+38, max-value=10000"),
        (other_dtype, "is (1000000,)no-such-type (962,), by its header <f4"),
        (short_reply, "the contract's"),
        (double_reply, "float64"),
        (extra_tensor, "arrays ['extra.B']"),
        (missing_tensor, "arrays none"),
        (untrained, "equal what was sent: nothing trained"),
        (set_weight(0), "num-examples=0 is not a positive integer"),
        (set_weight(-3), "num-examples=-3"),
        (set_weight(2.0), "num-examples=2.0"),
        (infinite_loss, "its metric loss is inf, not a finite number of at most 1e+30"),
        (set_about("base", "0" * 64), "its base model W changed"),
        (set_about("A", "0" * 64), "its A changed"),
        (set_about("loaded", "0" * 64), "it did not load what was broadcast"),
        (set_about("contract", "0" * 64), "another contract"),
        (set_about("round", 7), "of another round"),
        (set_about("client", 0), "answered as another client"),
        (set_metrics(loss=1e308), "its metric loss is 1e+308, not a finite number of at most 1e+30"),
        (set_metrics(accuracy_after=0.5), "an evaluation on kept-out=None examples"),
        (set_metrics(accuracy_after=0.5, kept_out=0), "an evaluation on kept-out=0 examples"),
        (set_metrics(accuracy_after=float("nan"), kept_out=5), "its metric accuracy-after is nan"),
        (huge_shape, "is float32 (1000000000000,), by its header <f4 (962,)"),
        (no_bytes, "the array 'packed' cannot be read"),
        (speechless_refusal, "it refused: no reason given"),
    ],
)
def test_a_bad_reply_is_rejected_by_name(exchange: Exchange, tamper: Tamper, named: str) -> None:
    with pytest.raises(Rejection) as raised:
        exchange.check(tamper)
    assert named in str(raised.value)
    assert_says_what_to_do(str(raised.value))


def test_the_honest_reply_counts(exchange: Exchange) -> None:
    checked = exchange.check()
    assert checked.weight == checked.metrics["num-examples"] > 0
    assert records.digest(checked.matrices) != records.digest(exchange.held)
    changes = [checked.matrices[name].astype(np.float64) - exchange.held[name] for name in checked.matrices]
    assert checked.norm == pytest.approx(np.linalg.norm(np.concatenate([change.ravel() for change in changes])))


def test_what_a_client_says_is_cut_and_cleaned(exchange: Exchange) -> None:
    with pytest.raises(Rejection) as raised:
        exchange.check(wordy_refusal)
    assert len(str(raised.value)) < 700 and str(raised.value).isprintable()


@pytest.mark.parametrize(
    ("tamper", "named"),
    [
        (nan_reply, "holds nan at (0, 3): not a finite value"),  # by the checks above
        (set_weight(2**53), "num-examples=9007199254740992 is not what the split gives it, "),  # by its known size
        (crash, "a bug of the client"),  # by Flower, before there is a reply
    ],
)
def test_a_rejected_reply_does_not_count_and_the_record_names_its_client_and_the_reason(
    tmp_path: Path, tamper: Tamper, named: str
) -> None:
    row = read_rounds(federate(tmp_path, tampered(tamper)))[0]
    assert (row["clients_valid"], row["clients_rejected"]) == (3, 1)
    assert list(row["rejections"]) == [str(BAD_CLIENT)]
    assert named in row["rejections"][str(BAD_CLIENT)]
    assert_says_what_to_do(row["rejections"][str(BAD_CLIENT)])


def test_the_bytes_of_a_rejected_message_are_counted_and_shared_by_all_that_replied(tmp_path: Path) -> None:
    folder = federate(tmp_path, tampered(set_weight(0)))
    (row,), summary = read_rounds(folder), read_json(folder / "summary.json")
    assert row["clients_replied"] == 4 and row["clients_valid"] == 3
    assert summary["message_up_per_client_round"] == row["message_up"] / 4
    assert summary["payload_up_per_client_round"] == row["payload_up"] / 3
    # What goes up is packed as what came down: the whole messages differ by the particulars beside the values.
    assert summary["message_up_per_client_round"] == pytest.approx(summary["message_down_per_client_round"], rel=0.2)


def test_the_global_B_moves_by_the_valid_replies_alone(tmp_path: Path) -> None:
    seen: dict[int, tuple[int, dict[str, np.ndarray]]] = {}
    app = ClientApp()
    app.query()(lambda message, context: honest(message, context))

    @app.train()
    def train(message: Message, context: Context) -> Message:
        reply = honest(message, context)
        client = int(records.about(message.content)["client"])
        if client == BAD_CLIENT:
            nan_reply(message, reply)
        else:
            schema = session_of(from_run_config(context.run_config).resolved()).contract.schema
            weight = int(reply.content.metric_records["metrics"]["num-examples"])
            seen[client] = (weight, records.unpack(reply.content, schema))
        return reply

    folder = federate(tmp_path, app)
    valid = ExactMean()
    for weight, matrices in seen.values():
        valid.add(weight, matrices)
    assert valid.count == 3
    assert read_rounds(folder)[0]["digest"] == records.digest(valid.mean())


def test_a_round_with_too_few_valid_replies_fails_and_names_every_client(tmp_path: Path) -> None:
    with pytest.raises(FederationError, match=r"3 of 4 replies are valid, min-valid=4. client 2: .*nan"):
        federate(tmp_path, tampered(nan_reply), min_valid=4)
    assert read_rounds(tmp_path / "run") == []


def test_a_round_with_fewer_replies_than_the_rule_needs_fails_and_names_every_client(tmp_path: Path) -> None:
    more = {"num_clients": 5, "aggregation": "krum:1", "min_valid": 1}
    with pytest.raises(FederationError, match=r"4 of 5 replies are valid, aggregation='krum:1' needs 5. client 2: .*n"):
        federate(tmp_path, tampered(nan_reply), **more)
    assert read_rounds(tmp_path / "run") == []


def test_a_diverging_client_is_rejected_with_the_rate_to_lower(tmp_path: Path) -> None:
    with pytest.raises(FederationError, match=r"the training loss is (nan|inf) at local step .*lower lr="):
        federate(tmp_path, honest, lr=1e30, head_lr=1e30, clip=0.0, local_steps=6)


def test_a_client_seen_twice_in_a_round_counts_once(tmp_path: Path) -> None:
    class Echoing(InProcessGrid):
        """Delivers the bad client's reply a second time."""

        def pull_messages(self, message_ids: list[str]) -> list[Message]:  # type: ignore[override]
            replies = list(super().pull_messages(message_ids))
            training = [r for r in replies if r.metadata.message_type == MessageType.TRAIN]
            return replies + training[:1]

    values = tiny_settings(tmp_path, out=str(tmp_path / "run"), num_rounds=1).run_config()
    with Echoing(honest, values, nodes=4) as grid, no_report():
        server_app(grid, Context(RUN_ID, SERVER_NODE, {}, RecordDict(), dict(values)))
    row = read_rounds(tmp_path / "run")[0]
    assert row["clients_valid"] == 4
    plain = tmp_path / "plain"
    values["out"] = str(plain)
    with InProcessGrid(honest, values, nodes=4) as grid, no_report():
        server_app(grid, Context(RUN_ID, SERVER_NODE, {}, RecordDict(), dict(values)))
    assert row["digest"] == read_rounds(plain)[0]["digest"]
    assert "twice" in " ".join(row["warnings"])


def test_a_reply_that_does_not_come_in_time_is_named(tmp_path: Path) -> None:
    class Losing(InProcessGrid):
        """Never delivers the training reply of the first client asked."""

        def pull_messages(self, message_ids: list[str]) -> list[Message]:  # type: ignore[override]
            replies = super().pull_messages(message_ids)
            return [r for r in replies if records.about(r.content).get("client") != 0]

    values = tiny_settings(tmp_path, out=str(tmp_path / "run"), num_rounds=1, round_timeout=3.0).run_config()
    with Losing(honest, values, nodes=4) as grid, no_report():
        server_app(grid, Context(RUN_ID, SERVER_NODE, {}, RecordDict(), dict(values)))
    assert read_rounds(tmp_path / "run")[0]["rejections"] == {
        "0": "no reply within round-timeout=3.0 s; raise it, or look at the client's log"
    }
