"""Each method's defining identity: what its round comes to, against the obvious dense computation in float64.

The file is long because every method stands here beside the others, measured by the same federation.
"""

from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fedasym.aggregation.exact import ExactMean
from fedasym.methods import METHODS
from fedasym.methods.base import Frame
from fedasym.runs.checkpoint import State
from fedasym.settings import Settings
from fedasym.wire.contract import Contract
from server.round.outcome import conclude
from server.round.run import Round

EXACT = ("asymmetric", "ffa", "a-only", "fedex", "flora", "rolora", "fedsvd", "central")
INEXACT = ("lora", "flexlora")
SCALE = 2.5  # s = alpha / r, of alpha = 10 and the rank below
RANK = 4
Matrices = dict[str, np.ndarray]


def contract_with(method: str, schema, kind: str) -> Contract:
    """Return a contract of which only the method and the matrices matter."""
    return Contract(
        method, METHODS[method].factors, seed=3, kind=kind, rank=RANK, alpha=10.0, scaling="alpha/r", head="output",
        base="", config=(), tokenizer="", A="", schema=schema, task="", labels=(), data="", local="",
    )  # fmt: skip


@dataclass
class Federation:
    """A federation without models: clients answer with random matrices near those that they hold."""

    method: str
    shapes: dict[str, tuple[int, int]]  # (d_out, d_in) by layer
    rng: np.random.Generator
    weights: tuple[int, ...]

    def __post_init__(self) -> None:
        self.rule, self.number = METHODS[self.method], 0
        everything = {"output.weight": (2, 5), "output.bias": (2,)}
        for layer, (d_out, d_in) in self.shapes.items():
            everything |= {f"{layer}.A": (RANK, d_in), f"{layer}.B": (d_out, RANK)}
        drawn = {name: self.draw(shape) for name, shape in sorted(everything.items())}
        zero = "A" if self.rule.factors == "A" else "B"
        drawn |= {name: np.zeros_like(m) for name, m in drawn.items() if name.endswith(f".{zero}")}
        trains = {name for name in drawn if name[-2:] not in (".A", ".B") or name[-1] in self.rule.factors}
        self.frozen = {name: drawn[name] for name in drawn.keys() - trains}
        schema = tuple((name, drawn[name].shape) for name in sorted(trains))
        kind = self.rule.kind
        self.contract = contract_with(self.method, schema, kind)
        held = {name: drawn[name] for name in trains if name[-2:] != f".{self.rule.private}"}
        if self.rule.fold:
            held |= {f"{layer}.shift": np.zeros(shape, np.float32) for layer, shape in self.shapes.items()}
        self.state = State("0" * 32, 0, held, {}, 0, "", {})
        more = {"num_clients": 1} if self.method == "central" else {"client_holdout": 0.2}
        self.settings = Settings(method=self.method, rank=RANK, alpha=10.0, seed=3, kind=kind, **more)

    def draw(self, shape: tuple[int, ...]) -> np.ndarray:
        return self.rng.standard_normal(shape, np.float32)

    def step(self, spread: float = 1.0) -> tuple[Matrices, list[Matrices], Matrices, float | None]:
        """Do one round; return what was held before, what each client then had, what is held after, the meter."""
        self.number += 1
        before = {**self.frozen, **self.state.matrices}
        letters = self.rule.up(self.number)
        moving = [n for n, _ in self.contract.schema if n[-2:] not in (".A", ".B") or n[-1] in letters]
        mean, replies, clients = ExactMean(), [], []
        for weight in self.weights:
            reply = {n: before[n] + np.float32(spread) * self.draw(before[n].shape) for n in moving}
            mean.add(weight, reply)
            replies.append((weight, reply))
            clients.append({**before, **reply})
        result = Round(self.number, list(range(len(replies))), mean=mean.mean(), mean64=mean.mean64())
        result.replies = replies if len(letters) == 2 else []
        outcome = conclude(self.contract, self.state, result, self.frozen, self.settings)
        self.state = outcome.state
        return before, clients, {**self.frozen, **self.state.matrices}, outcome.mismatch

    def update(self, matrices: Matrices, layer: str) -> np.ndarray:
        """Return what is added to W, float64 ``(d_out, d_in)``: the shift and s B A."""
        B, A = (matrices[f"{layer}.{letter}"].astype(np.float64) for letter in "BA")
        return SCALE * B @ A + matrices.get(f"{layer}.shift", np.zeros((len(B), A.shape[1]))).astype(np.float64)

    def mean(self, clients: list[Matrices], layer: str) -> np.ndarray:
        """Return the mean of the clients' models (less W), float64 ``(d_out, d_in)``."""
        total = sum(self.weights)
        return sum(w / total * self.update(c, layer) for w, c in zip(self.weights, clients, strict=True))

    def distance(self, before: Matrices, clients: list[Matrices], after: Matrices) -> float:
        """Return ‖new model − mean of the clients' models‖_F / ‖mean of the s B_k A_k‖_F over all layers."""
        wrong = right = 0.0
        for layer, shape in self.shapes.items():
            mean = self.mean(clients, layer)
            wrong += np.sum((self.update(after, layer) - mean) ** 2)
            right += np.sum((mean - before.get(f"{layer}.shift", np.zeros(shape))) ** 2)
        return float(np.sqrt(wrong / right))


SIZES = st.tuples(st.integers(RANK, 11), st.integers(RANK, 13))
WEIGHTS = st.lists(st.integers(1, 5000), min_size=1, max_size=5).map(tuple)
few = settings(max_examples=15, deadline=None)


def federation(method, shapes, seed, weights) -> Federation:
    named = {f"layer{i}": shape for i, shape in enumerate(shapes)}
    return Federation(method, named, np.random.default_rng(seed), weights[:1] if method == "central" else weights)


@pytest.mark.parametrize("method", EXACT)
@few
@given(st.lists(SIZES, min_size=1, max_size=2), st.integers(0, 99), WEIGHTS)
def test_the_new_model_is_the_mean_of_the_clients_models_round_after_round(method, shapes, seed, weights) -> None:
    made = federation(method, shapes, seed, weights)
    for _ in range(4):
        before, clients, after, mismatch = made.step()
        found = made.distance(before, clients, after)
        # One float32 rounding (6e-8) of each factor, and of a shift that may be some times this round's update.
        assert found < 1e-6
        if METHODS[method].fold:
            assert mismatch is None  # what is relayed are the replies themselves
        else:
            assert mismatch == pytest.approx(found, abs=1e-6)


def test_a_rule_that_is_not_the_mean_has_no_mismatch_from_it() -> None:
    made = federation("asymmetric", [(5, 6)], 0, (3, 1, 2))
    made.settings = replace(made.settings, aggregation="median")
    *_, mismatch = made.step()
    assert mismatch is None


@pytest.mark.parametrize("method", INEXACT)
@few
@given(st.lists(SIZES, min_size=1, max_size=2), st.integers(0, 99))
def test_what_is_broadcast_is_not_the_mean_where_factors_or_ranks_are_lost_and_the_meter_says_how_far(
    method, shapes, seed
) -> None:
    made = federation(method, [(shape[0] + RANK, shape[1] + RANK) for shape in shapes], seed, (7, 1, 30))
    for _ in range(2):
        before, clients, after, mismatch = made.step()
        found = made.distance(before, clients, after)
        assert found > 1e-3
        assert mismatch == pytest.approx(found, abs=1e-6)


@pytest.mark.parametrize("method", [name for name in METHODS if METHODS[name].factors != "W"])
def test_the_output_layer_is_the_mean_of_the_clients(method) -> None:
    made = federation(method, [(6, 7)], 0, (5, 2, 9))
    _, clients, after, _ = made.step()
    for name in ("output.weight", "output.bias"):
        parts = [w * c[name].astype(np.float64) for w, c in zip(made.weights, clients, strict=True)]
        mean = sum(parts) / sum(made.weights)
        np.testing.assert_allclose(after[name], mean, rtol=1e-7, atol=1e-12)  # half a unit in float32's last place


def test_standard_LoRA_broadcasts_the_mean_A_and_the_mean_B() -> None:
    made = federation("lora", [(6, 7), (9, 5)], 0, (5, 2, 9))
    for _ in range(2):
        _, clients, after, _ = made.step()
        for name in made.state.matrices:
            parts = [w * c[name].astype(np.float64) for w, c in zip(made.weights, clients, strict=True)]
            np.testing.assert_allclose(after[name], sum(parts) / 16, rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize(("method", "moves"), [("asymmetric", "B"), ("ffa", "B"), ("a-only", "A")])
def test_one_factor_moves_and_the_other_never_does(method, moves) -> None:
    made = federation(method, [(6, 7)], 0, (5, 2, 9))
    fixed = "layer0." + {"A": "B", "B": "A"}[moves]
    for _ in range(2):
        before, _, after, _ = made.step()
        assert np.array_equal(before[fixed], after[fixed]) and fixed not in made.state.matrices
        assert not np.array_equal(before[f"layer0.{moves}"], after[f"layer0.{moves}"])


def test_RoLoRA_moves_B_alone_in_odd_rounds_and_A_alone_in_even_ones() -> None:
    made = federation("rolora", [(6, 7)], 0, (5, 2, 9))
    for moves, stays in ("BA", "AB", "BA", "AB"):
        before, _, after, _ = made.step()
        assert np.array_equal(before[f"layer0.{stays}"], after[f"layer0.{stays}"])
        assert not np.array_equal(before[f"layer0.{moves}"], after[f"layer0.{moves}"])


def test_FedEx_holds_the_mean_A_and_the_mean_B_and_puts_what_they_lack_into_the_shift() -> None:
    made = federation("fedex", [(6, 7)], 0, (5, 2, 9))
    total = np.zeros((6, 7))
    for _ in range(3):
        _, clients, after, _ = made.step()
        A, B = (
            sum(w * c[f"layer0.{x}"].astype(np.float64) for w, c in zip(made.weights, clients, strict=True)) / 16
            for x in "AB"
        )
        products = [
            w / 16 * c["layer0.B"].astype(np.float64) @ c["layer0.A"].astype(np.float64)
            for w, c in zip(made.weights, clients, strict=True)
        ]
        total += SCALE * (sum(products) - B @ A)
        np.testing.assert_allclose(after["layer0.A"], A, rtol=1e-7, atol=1e-12)
        np.testing.assert_allclose(after["layer0.B"], B, rtol=1e-7, atol=1e-12)
        # B̄ and Ā are taken as rounded to float32, so that the model is right: 6e-8 of sums of a few terms of size one.
        np.testing.assert_allclose(after["layer0.shift"], total, atol=1e-5)


def test_FLoRA_adds_the_mean_product_to_the_shift_and_starts_anew() -> None:
    made = federation("flora", [(6, 7)], 0, (5, 2, 9))
    seen = []
    for _ in range(3):
        before, clients, after, _ = made.step()
        seen.append(after["layer0.A"])
        products = [
            w / 16 * c["layer0.B"].astype(np.float64) @ c["layer0.A"].astype(np.float64)
            for w, c in zip(made.weights, clients, strict=True)
        ]
        # Half a unit in float32's last place of a shift below 64.
        np.testing.assert_allclose(after["layer0.shift"], before["layer0.shift"] + SCALE * sum(products), atol=4e-6)
        assert not after["layer0.B"].any()
        assert np.abs(after["layer0.A"]).max() <= 1 / np.sqrt(7)  # Kaiming's law
        assert np.linalg.matrix_rank(after["layer0.A"]) == RANK
    assert len({A.tobytes() for A in seen}) == 3  # a new A each round, of (seed, round) alone:
    again = federation("flora", [(6, 7)], 1, (3,))
    assert [again.step()[2]["layer0.A"].tobytes() for _ in range(3)] == [A.tobytes() for A in seen]


@few
@given(SIZES, st.integers(0, 99), WEIGHTS)
@example((2, 9), 0, (1, 2))  # fewer outputs than r
@example((9, 3), 0, (1, 2))  # fewer inputs than r
def test_FlexLoRA_sends_the_best_approximation_of_rank_r_of_the_mean_product(shape, seed, weights) -> None:
    made = federation("flexlora", [shape], seed, weights)
    for _ in range(2):
        _, clients, after, _ = made.step()
        U, S, V = np.linalg.svd(made.mean(clients, "layer0") / SCALE)
        best = (U[:, : len(S)][:, :RANK] * S[:RANK]) @ V[: len(S)][:RANK]
        A, B = (after[f"layer0.{letter}"].astype(np.float64) for letter in "AB")
        # float32's rounding of both factors, 6e-8 of the largest singular value, some times.
        np.testing.assert_allclose(B @ A, best, atol=1e-6 * S[0])
        np.testing.assert_allclose(B.T @ B, A @ A.T, atol=1e-6 * S[0])  # the square roots in both


@few
@given(SIZES, st.integers(0, 99), WEIGHTS)
@example((2, 9), 0, (1, 2))
def test_FedSVD_takes_new_factors_of_the_same_product_with_orthonormal_rows_in_the_row_space_of_A(
    shape, seed, weights
) -> None:
    made = federation("fedsvd", [shape], seed, weights)
    for _ in range(3):
        before, clients, after, _ = made.step()
        mean = made.mean(clients, "layer0") / SCALE
        A, old, B = (m.astype(np.float64) for m in (after["layer0.A"], before["layer0.A"], after["layer0.B"]))
        # float32's rounding of entries below one, and of B.
        np.testing.assert_allclose(A @ A.T, np.eye(RANK), atol=1e-6)
        np.testing.assert_allclose(B @ A, mean, atol=1e-6 * np.linalg.norm(mean, 2))
        Q, _ = np.linalg.qr(old.T)
        np.testing.assert_allclose(A @ Q @ Q.T, A, atol=1e-6)
        gram = B.T @ B
        np.testing.assert_allclose(gram - np.diag(np.diag(gram)), 0, atol=1e-5 * gram.max())  # B is U Σ


def test_a_layer_with_fewer_than_r_inputs_keeps_its_product_under_FedSVD() -> None:
    made = federation("fedsvd", [(9, 3)], 0, (1, 2))
    for _ in range(3):
        before, clients, after, _ = made.step()
        assert made.distance(before, clients, after) < 1e-6
        A = after["layer0.A"].astype(np.float64)
        np.testing.assert_allclose(A @ A.T, np.diag([1, 1, 1, 0]), atol=1e-6)


@pytest.mark.parametrize(("method", "common"), [("fedsa", "A"), ("local", "")])
def test_a_personal_method_holds_nothing_private_and_has_no_mismatch(method, common) -> None:
    made = federation(method, [(6, 7)], 0, (5, 2, 9))
    for _ in range(2):
        _, clients, after, mismatch = made.step()
        assert mismatch is None
        assert {name[-1] for name in made.state.matrices if name[-2:] in (".A", ".B")} == set(common)
        for letter in common:
            parts = [w * c[f"layer0.{letter}"].astype(np.float64) for w, c in zip(made.weights, clients, strict=True)]
            np.testing.assert_allclose(after[f"layer0.{letter}"], sum(parts) / 16, rtol=1e-7, atol=1e-12)


def test_full_fine_tuning_holds_the_mean_of_every_parameter() -> None:
    rng = np.random.default_rng(0)
    shapes = {"embeddings.weight": (5, 3), "norm.bias": (3,), "output.weight": (2, 3)}
    names = tuple(sorted(shapes.items()))
    contract = contract_with("full", names, "orthonormal")
    held = {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    mean, weights, replies = ExactMean(), (5, 2, 9), []
    for weight in weights:
        replies.append({name: m + rng.standard_normal(m.shape, np.float32) for name, m in held.items()})
        mean.add(weight, replies[-1])
    result = Round(1, [0, 1, 2], mean=mean.mean(), mean64=mean.mean64())
    outcome = conclude(contract, State("", 0, held, {}, 0, "", {}), result, {}, Settings(method="full").resolved())
    wrong = right = 0.0
    for name in shapes:
        dense = sum(w * r[name].astype(np.float64) for w, r in zip(weights, replies, strict=True)) / 16
        np.testing.assert_allclose(outcome.state.matrices[name], dense, rtol=1e-7, atol=1e-12)
        wrong += np.sum((outcome.state.matrices[name] - dense) ** 2)
        right += np.sum(dense**2)  # relative to the mean W itself: float32 rounds W, not its change
    # The meter's mean is the exact one; this one rounds at 1e-16, which is 1e-8 of the distance.
    assert outcome.mismatch == pytest.approx(np.sqrt(wrong / right), rel=1e-6)
    assert outcome.mismatch < 1e-6


@pytest.mark.parametrize("method", ["fedex", "flora"])
def test_server_and_clients_fold_a_stack_to_the_same_bits(method) -> None:
    made = federation(method, [(6, 7)], 0, (5, 2, 9))
    rule, client = METHODS[method], dict(made.state.matrices)
    for number in (2, 3, 4):
        made.step()
        state = made.state
        names = [name for name, _ in rule.sent_schema(made.contract.schema, number, 3)]
        sent = {name: {**state.matrices, **state.stack}[name] for name in names}
        client = rule.receive(client, sent, state.weights, number, Frame(3, made.settings.kind, RANK, SCALE))
        assert client.keys() == state.matrices.keys()
        assert all(client[name].tobytes() == m.tobytes() for name, m in state.matrices.items())


@pytest.mark.parametrize("optimizer", ["momentum", "adam"])
def test_the_servers_optimizer_remembers_a_factor_over_the_rounds_in_which_the_other_moves(optimizer) -> None:
    made = federation("rolora", [(6, 7)], 0, (5, 2, 9))
    made.settings = Settings(method="rolora", rank=RANK, alpha=10.0, kind="kaiming", server_optimizer=optimizer)
    made.step()
    first = made.state.optimizer["first/layer0.B"]
    made.step()
    assert np.array_equal(made.state.optimizer["first/layer0.B"], first)
    assert "first/layer0.A" in made.state.optimizer
