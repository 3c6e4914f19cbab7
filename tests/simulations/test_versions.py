"""Other versions of libraries are told, not refused; what another party says of itself is shown cut and cleaned."""

import dataclasses
import json
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from flwr.app import ConfigRecord, Context, Message
from flwr.clientapp import ClientApp
from rich.console import Console
from world import federate, make_model, tiny_settings

from clients.app import app as honest
from fedasym.reports.run_report import write_report
from fedasym.runs import checkpoint
from fedasym.runs.record import read_json, read_rounds, versions
from server.failure import FederationError
from server.round.node_notes import Said
from simulations.cli.display import Follower
from simulations.versions import VARIABLE, run_environments, seen

OURS = versions()
ESCAPES = "\x1b[31mred\x07 [/b]\n\u202ebold " + "x" * 1_000_000


def saying(**about: object) -> ClientApp:
    """Return the real ClientApp, whose node of partition 1 says something else of itself when it agrees."""
    app = ClientApp()
    app.query("warm")(lambda message, context: honest(message, context))
    app.train()(lambda message, context: honest(message, context))

    @app.query()
    def query(message: Message, context: Context) -> Message:
        reply = honest(message, context)
        if context.node_config["partition-id"] == 1:
            for key, value in about.items():
                reply.content.config_records["about"][key.replace("_", "-")] = value
        return reply

    return app


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """Yield what the server logs, whether or not an earlier run of this process has set its logger up."""
    log = logging.getLogger("fedasym")
    log.addHandler(caplog.handler)
    caplog.set_level(logging.INFO, "fedasym")
    yield caplog
    log.removeHandler(caplog.handler)


def other_versions(**changed: str) -> list[str]:
    return [f"{name}={version}" for name, version in {**OURS, **changed}.items()]


def test_other_versions_are_a_warning_in_the_log_the_record_and_the_report_and_refuse_nobody(
    tmp_path: Path, told: pytest.LogCaptureFixture
) -> None:
    folder = federate(tmp_path, saying(versions=other_versions(torch="2.12.1"), logits_gap=3e-7), num_rounds=2)
    first, second = read_rounds(folder)
    warning = (
        f"partition 1 runs torch 2.12.1, the server torch {OURS['torch']}: their arithmetic may differ in the last "
        "bits; logits agree to 3e-07 of the largest"
    )
    assert first["warnings"] == [warning] and second["warnings"] == []
    assert first["clients_valid"] == second["clients_valid"] == 4
    assert warning in told.messages
    write_report([folder], tmp_path / "report.html")
    assert f"round 1: {warning}" in (tmp_path / "report.html").read_text()
    same, other = read_json(folder / "nodes.json")
    assert same["nodes"] == ["partition 0", "partition 2", "partition 3"] and same["logits_gap"] == 0.0
    assert other["nodes"] == ["partition 1"] and other["versions"]["torch"] == "2.12.1"
    assert other["logits_gap"] == 3e-7


def test_what_cannot_move_a_bit_is_recorded_without_a_warning(tmp_path: Path) -> None:
    folder = federate(tmp_path, saying(versions=other_versions(datasets="0.0.1")))
    assert read_rounds(folder)[0]["warnings"] == []
    assert read_json(folder / "nodes.json")[1]["versions"]["datasets"] == "0.0.1"


def test_nodes_that_say_the_same_are_one_line_and_nothing_is_recorded_twice(tmp_path: Path) -> None:
    said, older = Said(), {"versions": other_versions(torch="1", numpy="2"), "logits-gap": 0.0}
    for share in range(3):
        said.hear(f"partition {share}", {**older, "warnings": ["it is slow"], "notes": ["on a toaster"]})
    found = said.news(tmp_path)
    assert found == [
        "3 nodes (first: partition 0): it is slow",
        f"3 nodes (first: partition 0) run torch 1, numpy 2, the server torch {OURS['torch']}, numpy "
        f"{OURS['numpy']}: their arithmetic may differ in the last bits; logits are equal",
    ]
    assert said.news(tmp_path) == []
    said.hear("partition 0", {**older, "warnings": ["it is slow"], "notes": ["on a toaster"]})
    assert said.news(tmp_path) == []
    continued = Said([{"warnings": found}])
    continued.hear("partition 4", older)
    assert continued.news(tmp_path) == []


def test_what_a_node_says_is_cut_and_cleaned_before_it_is_shown_or_kept(
    tmp_path: Path, told: pytest.LogCaptureFixture
) -> None:
    about = {
        "versions": [f"torch={ESCAPES}", f"{ESCAPES}=1", "x"] + ["numpy=1"] * 1000,
        "notes": [ESCAPES] * 1000,
        "warnings": [ESCAPES],
        "logits_gap": float("inf"),
    }
    folder = federate(tmp_path, saying(**about))
    row = read_rounds(folder)[0]
    shown = [*row["warnings"], *told.messages, (folder / "nodes.json").read_text().replace("\n", "")]
    assert any("red  [/b]" in text for text in row["warnings"])
    assert all(text.isprintable() for text in shown)
    assert max(map(len, row["warnings"])) < 1000 and (folder / "nodes.json").stat().st_size < 10_000
    with (tmp_path / "screen").open("w") as screen, Follower("run", folder, 1, Console(file=screen)) as follower:
        follower._seen = []  # as if the round ended now
    assert "[/b]" in (tmp_path / "screen").read_text() and "the display ended" not in (tmp_path / "screen").read_text()
    write_report([folder], tmp_path / "report.html")


@pytest.mark.parametrize("value", [7, "text", b"bytes", [1.5], []])
def test_a_node_may_say_nothing_that_can_be_read(tmp_path: Path, value: object) -> None:
    folder = federate(tmp_path, saying(versions=value, notes=value, warnings=value, logits_gap=value))
    assert read_rounds(folder)[0]["clients_valid"] == 4


def test_a_refusal_is_cut_and_cleaned_too(tmp_path: Path) -> None:
    refusing = ClientApp()
    refusing.query("warm")(lambda message, context: honest(message, context))

    @refusing.query()
    def query(message: Message, context: Context) -> Message:
        reply = honest(message, context)
        reply.content["refusal"] = ConfigRecord({"reason": ESCAPES})
        return reply

    with pytest.raises(FederationError, match=r"red  \[/b\]") as raised:
        federate(tmp_path, refusing)
    assert str(raised.value).isprintable() and len(str(raised.value)) < 11_000


def changed_model(tmp_path: Path, name: str, change: dict[str, object]) -> str:
    """Return a copy of the tiny model in which a JSON file has other values."""
    make_model(tmp_path / "other")
    path = tmp_path / "other" / name
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    return str(path.parent)


def test_a_tokenizer_that_differs_in_one_token_is_refused_by_name(tmp_path: Path) -> None:
    path = make_model(tmp_path / "other") / "tokenizer.json"
    text = path.read_text()
    assert text.count('"music"') == 1
    path.write_text(text.replace('"music"', '"musik"'))
    with pytest.raises(FederationError, match=r"the contract differs .*: tokenizer: '[0-9a-f]{64}' there") as raised:
        federate(tmp_path, honest, {"model": str(path.parent)})
    assert "base" not in str(raised.value) and "config" not in str(raised.value)


def test_a_tokenizer_with_another_normaliser_is_refused_by_name(tmp_path: Path) -> None:
    other = changed_model(tmp_path, "tokenizer.json", {"normalizer": {"type": "Lowercase"}})
    with pytest.raises(FederationError, match=r"the contract differs .*: tokenizer: '"):
        federate(tmp_path, honest, {"model": other})


def test_the_same_weights_with_another_number_of_heads_are_refused_by_name(tmp_path: Path) -> None:
    other = changed_model(tmp_path, "config.json", {"num_attention_heads": 4})
    with pytest.raises(FederationError, match="config num_attention_heads: '2' there, '4' here"):
        federate(tmp_path, honest, {"model": other})


def test_a_config_that_another_version_of_transformers_wrote_is_no_difference(tmp_path: Path) -> None:
    change = {"transformers_version": "4.40.0", "_name_or_path": "x", "dtype": None, "architectures": ["Bert"]}
    other = changed_model(tmp_path, "config.json", change)
    assert read_rounds(federate(tmp_path, honest, {"model": other}))[0]["clients_valid"] == 4


def test_logits_beyond_the_tolerance_are_refused_with_the_numbers(tmp_path: Path) -> None:
    stating = ClientApp()
    stating.query("warm")(lambda message, context: honest(message, context))

    @stating.query()
    def query(message: Message, context: Context) -> Message:
        logits = message.content.config_records["about"]["logits"]
        logits[0] += 0.01 * max(map(abs, logits))
        return honest(message, context)

    with pytest.raises(FederationError, match=r"logits on the fixed input differ by 0\.01 of the largest, tol"):
        federate(tmp_path, stating)


def test_a_run_folder_of_an_earlier_version_is_refused_in_words(tmp_path: Path) -> None:
    folder = federate(tmp_path, honest)
    state = checkpoint.load(folder)
    assert state is not None
    contract = json.loads(state.contract)
    del contract["tokenizer"]
    older = json.dumps(contract | {"config": "c" * 64, "versions": "torch=2.9.0"})
    checkpoint.save(folder, dataclasses.replace(state, contract=older))
    with pytest.raises(FederationError, match=r"is of another version of fedasym .*versions is there alone"):
        federate(tmp_path, honest, num_rounds=2)


@pytest.mark.slow
@pytest.mark.other_env
def test_nodes_of_two_versions_of_torch_train_with_a_warning_and_hold_what_the_server_holds(tmp_path: Path) -> None:
    settings = tiny_settings(tmp_path, num_clients=2, num_rounds=2, out=str(tmp_path / "run"))
    found = seen(run_environments(settings, [Path(sys.prefix), Path(os.environ[VARIABLE])]))
    ours, theirs = sorted(found["nodes"], key=lambda group: group["nodes"])
    assert ours["versions"]["torch"] == found["server"]["torch"] != theirs["versions"]["torch"]
    (warning,) = found["warnings"]
    assert warning.startswith(f"partition 1 runs torch {theirs['versions']['torch']}, the server torch ")
    # A valid reply is one whose digest of what it loaded is the server's (server/round/reply.py).
    assert found["clients_valid"] == [2, 2] and len(set(found["digests"])) == 2
