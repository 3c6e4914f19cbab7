"""What travels in a real federation under each method, in bytes counted by hand, and what the parties make of it."""

from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from world import TEXTS, Seen, assert_moved, split_values, tiny_settings, watched_run

from fedasym.adapters.projection import frozen_A
from fedasym.methods import METHODS
from fedasym.models.build import build
from fedasym.runs.communication import communication_cost, config_of
from fedasym.runs.record import read_json, read_rounds

CLIENTS, ROUNDS, SCALE = 3, 3, 4.0  # s = alpha / r = 16 / 4
QUERY, DENSE = (f"encoder.encoder.layer.0.{name}" for name in ("attention.self.query", "intermediate.dense"))
LAYERS = {QUERY: (32, 32), DENSE: (64, 32)}  # (d_out, d_in)
HEAD = {"output.weight": (2, 32), "output.bias": (2,)}
SHAPES = {
    **{f"{layer}.A": (4, d_in) for layer, (_, d_in) in LAYERS.items()},
    **{f"{layer}.B": (d_out, 4) for layer, (d_out, _) in LAYERS.items()},
    **HEAD,
}
A, B, H = 4 * 32 + 4 * 32, 32 * 4 + 64 * 4, 2 * 32 + 2  # values of each
# Of the tiny BERT: words, places and types; one norm; four projections; norm; the two dense layers; norm; the head.
FULL = (22 + 64 + 2) * 32 + 64 + 4 * (32 * 32 + 32) + 64 + (32 * 64 + 64) + (64 * 32 + 32) + 64 + H
STACK = CLIENTS * (A + B) + H  # every client's factors, and the mean of the head
TRAVEL = {  # values (down, up) of one client in rounds 1, 2, 3
    "asymmetric": [(B + H, B + H)] * 3,
    "lora": [(A + B + H, A + B + H)] * 3,
    "ffa": [(B, B)] * 3,
    "fedex": [(A + B + H, A + B + H)] + [(STACK, A + B + H)] * 2,
    "flora": [(A + B + H, A + B + H)] + [(STACK, A + B + H)] * 2,
    "flexlora": [(A + B + H, A + B + H)] * 3,
    "rolora": [(B + H, B + H), (B + H, A + H), (A + H, B + H)],
    "fedsa": [(A + H, A + H)] * 3,
    "fedsvd": [(B + H, B + H)] + [(A + B + H, B + H)] * 2,
    "a-only": [(A + H, A + H)] * 3,
    "full": [(FULL, FULL)] * 3,
    "central": [(B + H, B + H)] * 3,
    "local": [(0, 0)] * 3,
}
EXACT = ("asymmetric", "ffa", "a-only", "fedex", "flora", "rolora", "fedsvd", "central")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory):
    """Return a function that runs a method once: settings, run folder, messages."""
    root = tmp_path_factory.mktemp("travel")

    @cache
    def run_once(method: str):
        more = {"client_holdout": 0.2} if METHODS[method].personal else {}
        settings = tiny_settings(
            root, method=method, out=str(root / method), num_clients=1 if method == "central" else CLIENTS,
            num_rounds=ROUNDS, targets="query,intermediate.dense", lr=0.5, head_lr=0.5, **more,
        )  # fmt: skip
        folder, seen = watched_run(settings, workers=1)
        return settings.resolved(), folder, seen

    return run_once


def of_round(seen: list[Seen], number: int) -> list[Seen]:
    return [one for one in seen if one.round == number]


def take(values: np.ndarray, letters: str) -> dict[str, np.ndarray]:
    """Take a message apart that holds these letters and the head."""
    return split_values(values, {n: s for n, s in SHAPES.items() if n[-2:] not in (".A", ".B") or n[-1] in letters})


def mean_of(replies: list[Seen], letters: str) -> dict[str, np.ndarray]:
    """Return the mean of what came up, weighted by examples, in float64."""
    total, parts = sum(one.examples for one in replies), [take(one.up, letters) for one in replies]
    return {
        name: sum(one.examples * part[name].astype(np.float64) for one, part in zip(replies, parts, strict=True))
        / total
        for name in parts[0]
    }


def held(folder: Path, number: int, client: int) -> dict[str, np.ndarray]:
    """Return what a client keeps of what it held at the start of a round."""
    (path,) = folder.glob(f"clients/*/client-{client}/held-{number:06d}.safetensors")
    return load_file(path)


@pytest.mark.parametrize("method", METHODS)
def test_the_bytes_of_every_round_are_those_counted_by_hand(run, method) -> None:
    _, folder, seen = run(method)
    for row, (down, up) in zip(read_rounds(folder), TRAVEL[method], strict=True):
        messages = of_round(seen, row["round"])
        assert len(messages) == row["clients_asked"] == row["clients_valid"]
        assert {(len(one.down), len(one.up)) for one in messages} == {(down, up)}
        assert row["payload_down"] == 4 * down * len(messages)
        assert row["payload_up"] == 4 * up * len(messages)
    assert read_json(folder / "config.json")["head_values"] == (H if method not in ("ffa", "local", "full") else 0)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_moves_the_bytes_computed_from_its_configuration_alone(run, method) -> None:
    settings, folder, _ = run(method)
    assert_moved(folder, communication_cost(settings, config_of(settings.model), 2), settings.num_clients)


@pytest.mark.parametrize("method", METHODS)
def test_the_verdict_is_exact_for_the_exact_methods_alone(run, method) -> None:
    _, folder, _ = run(method)
    found = [row["mismatch"] for row in read_rounds(folder)]
    if METHODS[method].personal or METHODS[method].fold:  # no common model; a relay, which is exact by construction
        assert found == [None] * ROUNDS
    elif method in EXACT or method == "full":
        assert max(found) <= 1e-6
    else:
        assert min(found) > 1e-6


@pytest.mark.parametrize(("method", "letters"), [("asymmetric", "B"), ("lora", "AB"), ("fedsa", "A"), ("a-only", "A")])
def test_what_is_broadcast_is_the_mean_of_what_came_up(run, method, letters) -> None:
    _, _, seen = run(method)
    for number in range(1, ROUNDS):
        mean = mean_of(of_round(seen, number), letters)
        for one in of_round(seen, number + 1):
            for name, matrix in take(one.down, letters).items():
                np.testing.assert_allclose(matrix, mean[name], rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize("method", ["fedex", "flora"])
def test_the_model_that_every_client_holds_is_the_mean_of_all_the_clients_models(run, method) -> None:
    _, folder, seen = run(method)
    number = ROUNDS - 1  # of it and the round after a client keeps what it held
    before = held(folder, number, 0)
    replies = of_round(seen, number)
    total, wrong, right = sum(one.examples for one in replies), 0.0, 0.0
    for layer, shape in LAYERS.items():
        shift = before[f"{layer}.shift"].astype(np.float64)
        assert shift.shape == shape and shift.any()  # of the rounds before
        mean = np.zeros(shape)
        for one in replies:
            factors = {name: m.astype(np.float64) for name, m in take(one.up, "AB").items()}
            mean += one.examples / total * (shift + SCALE * factors[f"{layer}.B"] @ factors[f"{layer}.A"])
        for client in range(CLIENTS):
            after = {name: m.astype(np.float64) for name, m in held(folder, number + 1, client).items()}
            model = after[f"{layer}.shift"] + SCALE * after[f"{layer}.B"] @ after[f"{layer}.A"]
            wrong += np.sum((model - mean) ** 2)
            right += np.sum((mean - shift) ** 2)
    found = np.sqrt(wrong / right)
    assert found < 1e-6


def test_FLoRA_opens_each_round_with_B_zero_and_one_new_A_for_all(run) -> None:
    _, folder, _ = run("flora")
    states = [[held(folder, number, client) for client in range(CLIENTS)] for number in (2, 3)]
    for layer in LAYERS:
        assert not any(state[f"{layer}.B"].any() for each in states for state in each)
        assert len({state[f"{layer}.A"].tobytes() for each in states for state in each}) == len(states)


def test_FFA_draws_a_gaussian_A_and_freezes_the_head(run) -> None:
    settings, folder, _ = run("ffa")
    stored = load_file(folder / "adapter" / "adapter_model.safetensors")
    for layer, (_, d_in) in LAYERS.items():
        found = stored[f"base_model.model.{layer.removeprefix('encoder.')}.lora_A.weight"]
        assert np.array_equal(found, frozen_A(settings.seed, layer, 4, d_in, "gaussian"))
        assert found.std() == pytest.approx(1 / 4, rel=0.2)  # 128 values with standard deviation 1 / r
    output = load_file(folder / "adapter" / "output.safetensors")
    assert np.array_equal(output["weight"], build(settings, 2, TEXTS).model.output.weight.detach().numpy())


def test_FedSA_keeps_a_B_of_its_own_at_each_client(run) -> None:
    _, folder, _ = run("fedsa")
    kept = [load_file(path) for path in sorted(folder.glob(f"clients/*/client-*/round-{ROUNDS:06d}.safetensors"))]
    assert len(kept) == CLIENTS
    assert all(own.keys() == {f"{layer}.B" for layer in LAYERS} for own in kept)
    for layer in LAYERS:
        assert len({own[f"{layer}.B"].tobytes() for own in kept}) == CLIENTS
        assert all(own[f"{layer}.B"].any() for own in kept)


def test_without_federation_every_client_keeps_its_B_and_head_to_itself(run) -> None:
    _, folder, _ = run("local")
    kept = [load_file(path) for path in sorted(folder.glob(f"clients/*/client-*/round-{ROUNDS:06d}.safetensors"))]
    names = {*HEAD, *(f"{layer}.B" for layer in LAYERS)}
    assert len(kept) == CLIENTS and all(own.keys() == names for own in kept)
    assert all(len({own[name].tobytes() for own in kept}) == CLIENTS for name in names)


def test_full_fine_tuning_moves_every_parameter_to_the_mean_of_the_clients(run) -> None:
    settings, _, seen = run("full")
    shapes = {name: tuple(p.shape) for name, p in build(settings, 2, TEXTS).model.named_parameters()}
    opened = [split_values(of_round(seen, number)[0].down, shapes) for number in (1, 2, 3)]
    for number, (start, after) in enumerate(pairwise(opened), start=1):
        replies = of_round(seen, number)
        ups = [split_values(one.up, shapes) for one in replies]
        for name in shapes:
            parts = [one.examples * up[name].astype(np.float64) for one, up in zip(replies, ups, strict=True)]
            mean = sum(parts) / sum(one.examples for one in replies)
            np.testing.assert_allclose(after[name], mean, rtol=1e-7, atol=1e-12)
            assert not np.array_equal(start[name], after[name])


def test_all_data_in_one_place_is_one_clients_training(run) -> None:
    _, _, seen = run("central")
    for number in range(1, ROUNDS):
        (before,), (after,) = of_round(seen, number), of_round(seen, number + 1)
        assert np.array_equal(before.up, after.down)
