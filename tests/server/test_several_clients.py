"""A message may name several clients of a simulation: each is trained, checked and counted as if asked alone."""

import dataclasses
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from flwr.app import ConfigRecord, Context, Message, MessageType, RecordDict
from flwr.clientapp import ClientApp
from world import no_report, simulate, tiny_settings, what_is_left

from clients.app import app as honest
from clients.errors import refused
from fedasym.ops.processes import held_alone, is_held
from fedasym.runs.record import read_rounds
from fedasym.settings import Settings
from fedasym.wire import records
from server.app import app as server_app
from server.failure import FederationError
from server.round import run
from simulations.engines.grid import RUN_ID, SERVER_NODE, InProcessGrid

CLIENTS = 8
NAMES = ("asymmetric", "fedex", "fedsa", "rolora")


def settings_of(root: Path, name: str, **more: object) -> Settings:
    values: dict[str, object] = {"num_clients": CLIENTS, "min_examples": 1, "split": "quantity:3.0", "num_rounds": 2}
    if more.get("method") == "fedsa":
        values["client_holdout"] = 0.3
    return tiny_settings(root, **{**values, "out": str(root / name), **more})


@pytest.fixture(autouse=True)
def _four_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the eight clients be asked in four messages, as more are in 32."""
    monkeypatch.setattr(run, "_MESSAGES", 4)


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[Message]:
    """Every message to train that is sent from now on."""
    found: list[Message] = []
    push = InProcessGrid.push_messages

    def pushed(grid: InProcessGrid, messages: list[Message]) -> list[str]:
        found.extend(message for message in messages if message.metadata.message_type == MessageType.TRAIN)
        return push(grid, messages)

    monkeypatch.setattr(InProcessGrid, "push_messages", pushed)
    return found


def asked_in(sent: list[Message]) -> list[list[int]]:
    """Return the clients of each message."""
    found = [records.about(message.content) for message in sent]
    return [about["clients"] if "clients" in about else [about["client"]] for about in found]


@pytest.mark.parametrize("method", NAMES)
def test_the_bits_and_the_record_are_those_of_a_message_for_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sent: list[Message], method: str
) -> None:
    several = simulate(settings_of(tmp_path, "several", method=method), workers=2)
    assert asked_in(sent)[0] == [0, 1] and max(map(len, asked_in(sent))) == 2
    sent.clear()
    monkeypatch.setattr(run, "_MESSAGES", CLIENTS)
    one = simulate(settings_of(tmp_path, "one", method=method))
    assert set(map(len, asked_in(sent))) == {1}
    assert what_is_left(several) == what_is_left(one)


def test_few_clients_are_asked_one_by_one(tmp_path: Path, sent: list[Message]) -> None:
    simulate(settings_of(tmp_path, "few", num_clients=4, num_rounds=1))
    assert asked_in(sent) == [[client] for client in range(4)]


def test_bytes_are_counted_as_those_of_one_message_for_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sent: list[Message]
) -> None:
    monkeypatch.setattr(run, "_MESSAGES", 70)
    alone = read_rounds(simulate(settings_of(tmp_path, "alone", num_clients=70, split="iid", num_rounds=1)))
    counted = [records.message_bytes(message) for message in sent]
    assert alone[0]["message_down"] == sum(counted) and len({*counted}) > 1  # larger numbers take more bytes
    monkeypatch.setattr(run, "_MESSAGES", 4)
    several = read_rounds(simulate(settings_of(tmp_path, "several", num_clients=70, split="iid", num_rounds=1)))
    assert several[0]["message_down"] == sum(counted) and len(sent) < 2 * len(counted)


def test_nodes_take_turns(tmp_path: Path, sent: list[Message]) -> None:
    config = settings_of(tmp_path, "run", num_rounds=1).run_config()
    with InProcessGrid(honest, config, nodes=2) as grid, no_report():
        server_app(grid, Context(RUN_ID, SERVER_NODE, {}, RecordDict(), dict(config)))
    assert [message.metadata.dst_node_id for message in sent] == [100, 101, 100, 101]


def test_a_message_names_no_more_than_leave_it_of_a_moderate_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sent: list[Message]
) -> None:
    monkeypatch.setattr(run, "_MOST_BYTES", 2 * 3848 - 1)  # a client sends 962 values
    simulate(settings_of(tmp_path, "large", num_rounds=1))
    assert set(map(len, asked_in(sent))) == {1}


@pytest.mark.parametrize("more", [{}, {"method": "fedsa"}, {"method": "lora"}, {"local_steps": 0, "local_epochs": 2}])
def test_a_cohort_has_the_same_bits_with_one_worker_and_two_and_those_of_each_alone_to_rounding(
    tmp_path: Path, sent: list[Message], more: dict[str, object]
) -> None:
    one = simulate(settings_of(tmp_path, "one", cohort=4, **more))
    assert asked_in(sent)[0] == [*range(4)] and set(map(len, asked_in(sent))) == {4}
    two = simulate(settings_of(tmp_path, "two", cohort=4, **more), workers=2)
    assert what_is_left(two) == what_is_left(one)
    alone = simulate(settings_of(tmp_path, "alone", **more))
    for row, other in zip(read_rounds(one), read_rounds(alone), strict=True):
        assert row["digest"] != other["digest"]  # else nothing was tried
        assert row["train_loss"] == pytest.approx(other["train_loss"], rel=1e-5)  # float32 sums, in another order
        assert row["norms"] == pytest.approx(other["norms"], rel=1e-3)
        for same in ("weights", "examples", "payload_up", "payload_down", "clients_valid"):
            assert row[same] == other[same], same


def test_a_cohort_that_was_stopped_goes_on_with_the_same_bits(tmp_path: Path) -> None:
    whole = simulate(settings_of(tmp_path, "whole", cohort=4, method="fedsa", num_rounds=3))
    simulate(settings_of(tmp_path, "parts", cohort=4, method="fedsa", num_rounds=1))
    parts = simulate(settings_of(tmp_path, "parts", cohort=4, method="fedsa", num_rounds=3), workers=2)
    assert [row["digest"] for row in read_rounds(parts)] == [row["digest"] for row in read_rounds(whole)]


def spoiled(spoil: Callable[[RecordDict], None], client: int) -> ClientApp:
    """Return an app whose reply to the message that names a client is spoiled."""
    app = ClientApp()
    app.query()(lambda message, context: honest(message, context))

    @app.train()
    def train(message: Message, context: Context) -> Message:
        reply = honest(message, context)
        if client in records.about(message.content).get("clients", ()):
            spoil(reply.content)
        return reply

    return app


def federated(app: ClientApp, settings: Settings, **node: object) -> dict[str, str]:
    """Run a federation with an app and nodes of a config; return whom its first round rejected, and why."""
    config = settings.run_config()
    nodes = [{"partition-id": k, "num-partitions": CLIENTS, **node} for k in range(CLIENTS)]
    with InProcessGrid(app, config, nodes) as grid, no_report():
        server_app(grid, Context(RUN_ID, SERVER_NODE, {}, RecordDict(), dict(config)))
    row = read_rounds(Path(settings.out))[0]
    assert row["clients_asked"] == row["clients_valid"] + row["clients_rejected"] == CLIENTS
    rejections: dict[str, str] = row["rejections"]
    return rejections


def other_client(content: RecordDict) -> None:
    content["5/about"] = ConfigRecord({**content.config_records["5/about"], "client": 4})


def not_finite(content: RecordDict) -> None:
    content["5/metrics"]["loss"] = float("nan")


def gone(content: RecordDict) -> None:
    for name in [name for name in content if name.startswith("5/")]:
        del content[name]


def raised(content: RecordDict) -> None:
    raise RuntimeError("the node is ill")


def stranger(content: RecordDict) -> None:
    content["6/about"] = content["5/about"]


def unnamed(content: RecordDict) -> None:
    content["about"] = content["5/about"]


def whole(content: RecordDict) -> None:
    content.clear()
    content["refusal"] = refused("out of memory while loading", passing=True)["refusal"]


@pytest.mark.parametrize("cohort", [1, 2])
@pytest.mark.parametrize(
    ("spoil", "whose", "why"),
    [
        (other_client, ["5"], "client=4, expected 5: it answered as another client"),
        (not_finite, ["5"], "its metric loss is nan"),
        (gone, ["5"], "contract=None, expected"),
        (raised, ["4", "5"], "its process failed: .*the node is ill"),
        (stranger, ["4", "5"], "the reply holds '6/about', which is of no client that was asked"),
        (whole, ["4", "5"], "it refused: out of memory while loading"),
        (unnamed, ["4", "5"], "the reply holds 'about', which is of no client that was asked"),
    ],
)
def test_what_is_wrong_with_one_does_not_touch_the_others(
    tmp_path: Path, spoil: Callable[[RecordDict], None], whose: list[str], why: str, cohort: int
) -> None:
    rejections = federated(spoiled(spoil, 5), settings_of(tmp_path, "run", num_rounds=1, cohort=cohort))
    assert [*rejections] == whose
    assert all(re.search(why, reason) for reason in rejections.values()), rejections


@pytest.mark.parametrize("cohort", [1, 2])
def test_a_client_that_cannot_train_says_so_and_the_others_of_its_message_train(tmp_path: Path, cohort: int) -> None:
    settings = settings_of(tmp_path, "run", num_rounds=2, method="fedsa", cohort=cohort)
    simulate(dataclasses.replace(settings, num_rounds=1))
    (kept,) = (tmp_path / "run/clients").glob("*/client-5/round-000001.safetensors")
    kept.write_bytes(kept.read_bytes()[:-1])
    simulate(settings)
    (reason,) = read_rounds(tmp_path / "run")[1]["rejections"].items()
    assert reason[0] == "5" and "is damaged" in reason[1]


@pytest.mark.parametrize("cohort", [1, 2])
def test_a_run_whose_disk_refuses_one_clients_file_ends_by_its_name(tmp_path: Path, cohort: int) -> None:
    settings = settings_of(tmp_path, "run", num_rounds=2, method="fedsa", cohort=cohort)
    simulate(dataclasses.replace(settings, num_rounds=1))
    (kept,) = (tmp_path / "run/clients").glob("*/client-4")
    shutil.rmtree(kept)
    kept.write_text("a file in the folder's place")
    with pytest.raises(FederationError, match=r"round 2, client 4: .*client-4"):
        simulate(settings)
    assert len(read_rounds(tmp_path / "run")) == 1


def test_a_node_that_keeps_what_is_one_clients_own_is_asked_for_one(tmp_path: Path, sent: list[Message]) -> None:
    state = {"state-dir": str(tmp_path / "state"), "log-file": str(tmp_path / "log")}
    assert federated(honest, settings_of(tmp_path, "run", num_rounds=1), **state) == {}
    assert asked_in(sent) == [[client] for client in range(CLIENTS)]
    with pytest.raises(FederationError, match=r"cohort=2: a node of this federation does not see"):
        federated(honest, settings_of(tmp_path, "cohort", cohort=2), **state)


def test_a_run_folder_that_nobody_holds_shows_that_it_is_not_the_servers(tmp_path: Path) -> None:
    assert not is_held(tmp_path / "nowhere") and not is_held(tmp_path)
    with held_alone(tmp_path, ""):
        assert is_held(tmp_path)
    assert (tmp_path / ".lock").exists() and not is_held(tmp_path)


def test_a_cohort_where_there_is_one_for_all_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cohort=2: method='full' trains W itself"):
        settings_of(tmp_path, "run", cohort=2, method="full")
    with pytest.raises(ValueError, match=r"cohort=2: a client of method='fedex' that is behind is asked again, alone"):
        settings_of(tmp_path, "run", cohort=2, method="fedex")
    with pytest.raises(ValueError, match=r"cohort=2 does nothing with sites"):
        Settings(sites="a,b", labels="0,1", data="none", client_holdout=0.2, model="minilm", cohort=2)
