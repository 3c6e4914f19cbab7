"""Flower's engine on a Ray cluster that runs already: its nodes share the clients, with the bits of one process."""

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import ray
from ray._private import state
from ray.cluster_utils import Cluster
from world import simulate, tiny_settings

from fedasym.runs.record import read_rounds
from simulations.engines.ray import run_flower

pytestmark = pytest.mark.slow


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """Two nodes of one core each on this machine; each can hold one client of one thread.

    In a folder of its own, whose path is short enough for Ray's sockets: a run beside it that names no cluster would
    take it for its own.
    """
    with TemporaryDirectory() as folder:
        monkeypatch.setenv("RAY_TMPDIR", folder)
        yield from _nodes(monkeypatch)


def _nodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    cluster.add_node(num_cpus=1)
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def test_the_clients_of_a_run_spread_over_the_nodes_of_a_cluster_and_the_bits_are_the_same(
    cluster: Cluster, tmp_path: Path
) -> None:
    there = run_flower(tiny_settings(tmp_path, out=str(tmp_path / "there")), workers=1)
    ray.init(cluster.address, log_to_driver=False)
    actors = [each for each in state.actors().values() if each["ActorClassName"] == "ClientAppActor"]
    assert len({each["Address"]["NodeID"] for each in actors}) == 2 == len(actors)
    here = simulate(tiny_settings(tmp_path, out=str(tmp_path / "here")))
    assert [row["digest"] for row in read_rounds(there)] == [row["digest"] for row in read_rounds(here)]
