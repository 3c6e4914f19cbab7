"""A party that differs from the contract is refused before anything trains, with the difference named."""

from pathlib import Path

import pytest
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from world import federate, make_model, no_report, tiny_settings, tiny_values

from clients.app import app as honest
from server.app import app as server_app
from server.failure import FederationError
from simulations.engines.grid import RUN_ID, SERVER_NODE, InProcessGrid


@pytest.mark.parametrize(
    ("theirs", "named"),
    [
        ({"seed": 1}, "seed: 0 there, 1 here"),
        ({"rank": 2}, "rank: 4 there, 2 here"),
        ({"kind": "kaiming"}, "kind: 'orthonormal' there, 'kaiming' here"),
        ({"lr": 0.25}, "lr=0.25"),
        ({"split": "iid"}, "data: "),
    ],
)
def test_a_client_with_other_settings_refuses_and_names_the_difference(
    tmp_path: Path, theirs: dict[str, object], named: str
) -> None:
    with pytest.raises(FederationError, match="the contract differs") as raised:
        federate(tmp_path, honest, theirs)
    assert named in str(raised.value)


def test_a_client_with_another_base_model_refuses_and_names_it(tmp_path: Path) -> None:
    other = make_model(tmp_path / "other", seed=1)
    with pytest.raises(FederationError, match="base: '"):
        federate(tmp_path, honest, {"model": str(other)})


def test_a_client_with_a_model_of_another_shape_is_told_which_matrices_differ(tmp_path: Path) -> None:
    with pytest.raises(
        FederationError, match=r"matrix encoder\.encoder\.layer\.0\S+query\.B: \(32, 4\) there, 'absent'"
    ):
        federate(tmp_path, honest, {"targets": "key,value"})


def test_nobody_keeps_the_answers_of_nodes_that_loaded_ahead(tmp_path: Path) -> None:
    config = tiny_settings(tmp_path, out=str(tmp_path / "run"), num_rounds=1).run_config()
    with InProcessGrid(honest, config, nodes=4) as grid, no_report():
        server_app(grid, Context(RUN_ID, SERVER_NODE, {}, RecordDict(), dict(config)))
        assert not grid._replies


def test_an_unknown_setting_is_refused_by_name(tmp_path: Path) -> None:
    values = tiny_values(tmp_path, out=str(tmp_path / "run"))
    with InProcessGrid(honest, {}, nodes=4) as grid, pytest.raises(ValueError, match=r"'rnak' is unknown.*'rank'"):
        server_app(grid, Context(RUN_ID, SERVER_NODE, {}, RecordDict(), {**values, "rnak": 4}))


def test_an_override_of_the_wrong_type_is_refused_by_name(tmp_path: Path) -> None:
    values = tiny_values(tmp_path, out=str(tmp_path / "run"), rank="8")
    with (
        InProcessGrid(honest, {}, nodes=4) as grid,
        pytest.raises(ValueError, match="rank='8' is a str; give a int"),
    ):
        server_app(grid, Context(RUN_ID, SERVER_NODE, {}, RecordDict(), values))


def test_a_node_that_did_not_agree_to_the_contract_or_names_no_share_is_refused(tmp_path: Path) -> None:
    values = tiny_settings(tmp_path, out=str(tmp_path / "run")).run_config()
    app = ClientApp()
    app.query("warm")(lambda message, context: honest(message, context))
    app.query()(lambda message, context: Message(RecordDict(), reply_to=message))
    with (
        InProcessGrid(app, values, nodes=4) as grid,
        pytest.raises(FederationError, match="answered with contract=None"),
    ):
        server_app(grid, Context(RUN_ID, SERVER_NODE, {}, RecordDict(), dict(values)))
    with InProcessGrid(honest, values, nodes=4) as grid:
        for context in grid._contexts.values():
            context.node_config["num-partitions"] = 10**9
        with pytest.raises(FederationError, match=r"num-partitions=1000000000 is no share"):
            server_app(grid, Context(RUN_ID, SERVER_NODE, {}, RecordDict(), dict(values)))


def test_two_nodes_that_hold_the_same_share_are_named(tmp_path: Path) -> None:
    values = tiny_settings(tmp_path, out=str(tmp_path / "run")).run_config()
    with InProcessGrid(honest, values, nodes=4) as grid:
        for context in grid._contexts.values():
            context.node_config["partition-id"] = 0
        with pytest.raises(FederationError, match="nodes 100 and 101 both hold partition-id=0"):
            server_app(grid, Context(RUN_ID, SERVER_NODE, {}, RecordDict(), dict(values)))
