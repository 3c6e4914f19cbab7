"""What training must move and what it must not, seen by the client itself before it replies."""

from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, Context, Message
from flwr.clientapp import ClientApp
from hypothesis import given
from hypothesis import strategies as st
from world import federate

from clients.app import app as honest
from clients.session import Session, session_of
from fedasym.adapters import trainable_state
from fedasym.runs.record import read_rounds
from fedasym.settings import from_run_config
from fedasym.wire import records
from fedasym.wire.checks import idle
from fedasym.wire.codecs.identity import PACKED
from server.failure import FederationError

FLOATS = st.floats(-4, 4, width=32)


@given(st.lists(FLOATS, min_size=4, max_size=4), st.integers(0, 3), FLOATS)
def test_training_that_moves_any_one_value_is_not_idle(values: list[float], place: int, new: float) -> None:
    before = {"x.B": np.asarray(values, np.float32).reshape(2, 2)}
    after = {"x.B": before["x.B"].copy()}
    after["x.B"].reshape(-1)[place] = new
    assert ("nothing trained" in idle(before, after)) == (values[place] == new)


def test_a_matrix_that_one_client_leaves_at_zero_is_no_fault_and_one_that_all_leave_there_is_said(
    tmp_path: Path,
) -> None:
    app = ClientApp()
    app.query()(lambda message, context: honest(message, context))
    whose: set[int] = {1}

    @app.train()
    def train(message: Message, context: Context) -> Message:
        reply = honest(message, context)
        if records.about(message.content)["client"] in whose:
            packed = reply.content.array_records["matrices"]
            values = packed[PACKED].numpy().copy()
            values[: 4 * 32] = 0.0  # the first matrix of the schema
            reply.content["matrices"] = ArrayRecord({PACKED: Array(values)})
        return reply

    (row,) = read_rounds(federate(tmp_path, app))
    assert row["clients_valid"] == 4 and row["warnings"] == []
    whose |= {0, 2, 3}
    federate(tmp_path, app, out=str(tmp_path / "all"))
    (row,) = read_rounds(tmp_path / "all")
    assert row["clients_valid"] == 4
    (warning,) = row["warnings"]
    assert warning.startswith("no client has moved encoder.encoder.layer.0.attention.output.dense.B: the model")


def spoiling(part: str) -> ClientApp:
    """Return the real ClientApp on a model that changes its own frozen W or A in client 2's first round."""
    app = ClientApp()
    app.query()(lambda message, context: honest(message, context))

    @app.train()
    def train(message: Message, context: Context) -> Message:
        about = records.about(message.content)
        if (about["client"], about["round"]) == (2, 1):
            _, layer = next(iter(trainable_state.adapted_layers(site(context).built.model)))
            frozen = layer.base.weight if part == "W" else layer.A
            layer.register_forward_hook(lambda *_: setattr(frozen, "data", frozen.data + 0.5))
        return honest(message, context)

    return app


def site(context: Context) -> Session:
    return session_of(from_run_config(context.run_config).resolved())


@pytest.mark.parametrize(("part", "named"), [("W", "its base model W changed"), ("A", "its A changed")])
def test_a_client_whose_frozen_part_changed_refuses_and_starts_again_with_a_whole_one(
    tmp_path: Path, part: str, named: str
) -> None:
    first, second = read_rounds(federate(tmp_path, spoiling(part), num_rounds=2))
    assert list(first["rejections"]) == ["2"]
    assert "it refused: Spoiled: " in first["rejections"]["2"] and named in first["rejections"]["2"]
    assert second["clients_valid"] == 4 and not second["rejections"]


def test_a_client_in_which_nothing_trained_refuses_itself(tmp_path: Path) -> None:
    app = ClientApp()
    app.query()(lambda message, context: honest(message, context))

    @app.train()
    def train(message: Message, context: Context) -> Message:
        model = site(context).built.model
        handles = [p.register_hook(torch.zeros_like) for p in model.parameters() if p.is_leaf and p.requires_grad]
        try:
            return honest(message, context)
        finally:
            for handle in handles:
                handle.remove()

    with pytest.raises(FederationError, match=r"it refused: Refusal: round 1, client \d: its matrices equal what was"):
        federate(tmp_path, app)


def test_a_global_model_that_diverged_ends_the_run_by_name(tmp_path: Path) -> None:
    with pytest.raises(FederationError, match=r"round 1: the model's logits are not finite on \d+ of \d+ .*server-lr"):
        federate(tmp_path, honest, lr=1e30, head_lr=1e30, clip=0.0, local_steps=1, max_value=3e38)
    assert read_rounds(tmp_path / "run") == []
