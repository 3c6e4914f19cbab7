"""The same run gives the same bits in every engine, with any number of workers and nodes."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from flwr.app import Context, RecordDict
from world import no_report, simulate, tiny_settings, what_is_left

from clients.app import app as client_app
from fedasym.ops.flower_cli import FlowerError
from fedasym.runs.record import read_json, read_rounds
from fedasym.settings import Settings, from_run_config
from server.app import app as server_app
from simulations.engines.grid import RUN_ID, SERVER_NODE, InProcessGrid
from simulations.engines.in_process import run_local
from simulations.engines.ray import run_flower
from simulations.engines.superlink import Superlink, superlink

# The real MiniLM and reviews, few small steps, in the dtype that every processor computes in.
DEMO = {"num-rounds": 2, "local-steps": 2, "num-clients": 4, "batch-size": 4, "test-cap": 50, "dtype": "float32"}


def digests(folder: Path) -> list[str]:
    return [row["digest"] for row in read_rounds(folder)]


def demo_settings(out: Path, **more: object) -> Settings:
    return from_run_config({**DEMO, **more, "out": str(out)})


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_local(demo_settings(tmp_path_factory.mktemp("reference") / "run"), workers=1)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("world")


@pytest.fixture(scope="module")
def plain(world: Path) -> Path:
    """A run of the tiny world with the defaults, one client after the other."""
    return simulate(tiny_settings(world, out=str(world / "plain")))


def test_two_runs_in_process_give_the_same_bits_and_the_same_record(plain: Path, world: Path) -> None:
    again = simulate(tiny_settings(world, out=str(world / "again")))
    assert what_is_left(again) == what_is_left(plain)


def test_a_run_leaves_what_its_readers_count_on(reference: Path) -> None:
    assert {
        "round", "seconds", "clients_asked", "clients_valid", "clients_rejected", "train_loss", "metrics", "payload_up",
        "payload_down", "message_up", "message_down", "mismatch", "digest",
    } <= read_rounds(reference)[0].keys()  # fmt: skip
    assert {
        "task", "model", "method", "split", "seed", "rounds", "metric", "final", "best", "payload_up_per_client_round",
        "payload_down_per_client_round", "payload_total", "digest", "seconds",
    } <= read_json(reference / "summary.json").keys()  # fmt: skip
    assert {"settings", "versions", "contract", "partition"} <= read_json(reference / "config.json").keys()
    assert read_json(reference / "config.json")["partition"]["digest"]
    page = (reference / "report.html").read_text()
    assert read_rounds(reference)[-1]["digest"] in page and "<img" in page
    assert {path.suffix for path in reference.rglob("*")} >= {".png", ".html", ".safetensors", ".json", ".jsonl"}


def test_two_concurrent_clients_in_process_give_the_same_bits(plain: Path, world: Path, tmp_path: Path) -> None:
    two = simulate(tiny_settings(world, out=str(tmp_path / "two")), workers=2)
    assert what_is_left(two) == what_is_left(plain)


@pytest.fixture(scope="module")
def link(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Superlink]:
    """A SuperLink with Flower's simulation engine, for one run after the other."""
    with superlink(tmp_path_factory.mktemp("link") / "flower.log", "--simulation") as link:
        yield link


@pytest.mark.slow  # on MiniLM; the tiny world's are in test_plugins.py and test_readme.py
@pytest.mark.parametrize("workers", [1, 2])
def test_flowers_engine_gives_the_same_bits(reference: Path, link: Superlink, tmp_path: Path, workers: int) -> None:
    folder = run_flower(demo_settings(tmp_path / "flower"), workers, link=link)
    assert digests(folder) == digests(reference)
    here, there = read_json(folder / "config.json"), read_json(reference / "config.json")
    here["settings"]["out"] = there["settings"]["out"] = ""
    assert here == there
    # Flower draws node and run ids at random and writes them with as many bytes as they need.
    assert what_is_left(folder, "message") == what_is_left(reference, "message")


def test_fewer_nodes_than_clients_give_the_same_bits(plain: Path, world: Path, tmp_path: Path) -> None:
    config = tiny_settings(world, out=str(tmp_path / "two")).run_config()
    with InProcessGrid(client_app, config, nodes=2) as grid, no_report():
        server_app(grid, Context(RUN_ID, SERVER_NODE, {}, RecordDict(), dict(config)))
    assert digests(tmp_path / "two") == digests(plain)


def test_another_seed_gives_other_bits(plain: Path, world: Path, tmp_path: Path) -> None:
    other = simulate(tiny_settings(world, out=str(tmp_path / "other"), num_rounds=1, seed=1))
    assert digests(other)[0] != digests(plain)[0]


def test_a_run_leaves_everything_a_run_leaves(reference: Path) -> None:
    names = {path.name for path in reference.iterdir()}
    assert {"config.json", "rounds.jsonl", "summary.json", "adapter", "report.html", "plots"} <= names
    summary = read_json(reference / "summary.json")
    last = json.loads((reference / "rounds.jsonl").read_text().splitlines()[-1])
    assert summary["digest"] == last["digest"]
    assert summary["final"] == last["metrics"]["accuracy"]
    config = read_json(reference / "config.json")
    assert summary["payload_up_per_client_round"] == 4 * config["trainable_values"]
    assert summary["payload_down_per_client_round"] == 4 * config["trainable_values"]


def test_only_B_and_the_output_layer_travel_each_way(reference: Path) -> None:
    config = read_json(reference / "config.json")
    names = [name for name, _ in json.loads(config["contract"])["schema"]]
    assert all(name.endswith(".B") or name.startswith("output.") for name in names)
    for row in read_rounds(reference):
        for way in ("up", "down"):
            payload, message = row[f"payload_{way}"], row[f"message_{way}"]
            assert payload == 4 * config["trainable_values"] * row["clients_asked"]
            assert payload < message < payload + 4000 * row["clients_asked"]  # metadata of a few kB a message


def test_the_mean_of_B_is_the_mean_of_the_updates_and_that_of_A_and_B_is_not(
    plain: Path, world: Path, tmp_path: Path
) -> None:
    apart = simulate(tiny_settings(world, out=str(tmp_path / "ab"), method="lora", lr=0.5))
    # 2**-24 is float32's relative rounding of a value of the mean; rows of A are orthonormal.
    assert all(row["mismatch"] <= 2**-24 for row in read_rounds(plain))
    assert all(row["mismatch"] > 1e-4 for row in read_rounds(apart))


@pytest.mark.slow
def test_a_run_that_fails_in_flowers_engine_is_not_called_a_success(link: Superlink, tmp_path: Path) -> None:
    settings = tiny_settings(tmp_path, out=str(tmp_path / "run"), data=str(tmp_path / "nowhere"))
    with pytest.raises(FlowerError, match="there is no such folder"):
        run_flower(settings, workers=1, link=link)


def test_a_head_that_stays_local_never_travels_and_is_judged_at_the_clients(world: Path, tmp_path: Path) -> None:
    settings = tiny_settings(world, out=str(tmp_path / "run"), head="local", client_holdout=0.25)
    folder = simulate(settings, workers=2)
    config = read_json(folder / "config.json")
    assert config["head_values"] == 0
    for row in read_rounds(folder):
        assert row["metrics"]["accuracy"] == row["client_metrics"]["accuracy_after"]


@pytest.mark.parametrize("optimizer", ["momentum", "adam"])
def test_a_server_optimizer_moves_the_global_B_elsewhere(
    plain: Path, world: Path, tmp_path: Path, optimizer: str
) -> None:
    moved = simulate(tiny_settings(world, out=str(tmp_path / "moved"), server_optimizer=optimizer))
    assert digests(plain)[-1] != digests(moved)[-1]


def test_sampled_clients_are_the_same_in_every_run(world: Path, tmp_path: Path) -> None:
    one = simulate(tiny_settings(world, out=str(tmp_path / "one"), clients_per_round=2), workers=1)
    two = simulate(tiny_settings(world, out=str(tmp_path / "two"), clients_per_round=2), workers=2)
    assert digests(one) == digests(two)
    assert all(row["clients_asked"] == 2 for row in read_rounds(one))


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_flowers_engine_gives_the_same_bits_where_clients_fold_what_they_are_sent(tmp_path: Path, workers: int) -> None:
    more = {"method": "fedex", "clients_per_round": 3, "num_rounds": 4}
    here = simulate(tiny_settings(tmp_path, out=str(tmp_path / "here"), **more))
    there = run_flower(tiny_settings(tmp_path, out=str(tmp_path / "there"), **more), workers)
    assert digests(here) == digests(there)
    for row, other in zip(read_rounds(here), read_rounds(there), strict=True):
        assert (row["payload_up"], row["payload_down"]) == (other["payload_up"], other["payload_down"])


@pytest.mark.slow
@pytest.mark.parametrize(("clients", "cohort"), [(12, 4), (130, 1)], ids=["in one pass", "two a message"])
def test_flowers_engine_gives_the_same_bits_where_a_message_names_several_clients(
    tmp_path: Path, clients: int, cohort: int
) -> None:
    more = {"num_clients": clients, "min_examples": 1, "split": "iid", "num_rounds": 2, "cohort": cohort}
    here = simulate(tiny_settings(tmp_path, out=str(tmp_path / "here"), **more))
    there = run_flower(tiny_settings(tmp_path, out=str(tmp_path / "there"), **more), workers=2)
    assert what_is_left(here, "message") == what_is_left(there, "message")
