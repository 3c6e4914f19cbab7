"""Many clients: none is lost, and what the server holds does not grow with the rounds."""

import copy
import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from direct_superlink import DirectSuperlink, Part, parts_of
from flwr.app import Context, Message, Metadata, RecordDict
from world import make_data, no_report, tiny_settings

from clients.app import app as honest
from fedasym.runs.record import read_rounds
from server.app import app as server_app
from simulations.engines.grid import SERVER_NODE

CLIENTS, ROUNDS = 500, 6
GROWTH_MB = 1.0  # a round: as long a line of the record would be read twice; a reply kept of each client is 2 MB


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """Let nobody log: pytest keeps every line, of which Flower says thousands a round."""
    logging.disable(logging.ERROR)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.slow
def test_five_hundred_nodes_of_a_superlink_are_all_heard_and_the_servers_memory_stays(tmp_path: Path) -> None:
    settings = tiny_settings(
        tmp_path, num_clients=CLIENTS, num_rounds=ROUNDS, local_steps=1, batch_size=4, split="iid", min_examples=1,
        eval_every=ROUNDS, out=str(tmp_path / "run"),
    )  # fmt: skip
    make_data(tmp_path / "data", train=4 * CLIENTS)
    config, link, held = settings.run_config(), DirectSuperlink(CLIENTS), list[float]()
    nodes = {
        node: {"partition-id": k, "num-partitions": CLIENTS, "state-dir": str(tmp_path / "state")}
        for k, node in enumerate(link.nodes)
    }
    # A site keeps its log beside its state; here both are one folder for all.
    contexts = {node: Context(link.run_id, node, own, RecordDict(), dict(config)) for node, own in nodes.items()}

    def answer(message: Message) -> tuple[Metadata, Part]:
        received = copy.copy(message)
        received.__dict__["_content"] = copy.copy(message.content)
        reply = honest(received, contexts[message.metadata.dst_node_id])
        if message.metadata.message_type == "train" and message.metadata.dst_node_id == link.nodes[0]:
            held.append(psutil.Process().memory_info().rss / 1e6)  # as a round begins
        return reply.metadata, parts_of(reply)

    with link.answered(answer), no_report():
        server_app(link.grid, Context(link.run_id, SERVER_NODE, {}, RecordDict(), dict(config)))
    rows = read_rounds(tmp_path / "run")
    assert len(rows) == ROUNDS
    for row in rows:
        assert (row["clients_asked"], row["clients_valid"], row["clients_rejected"]) == (CLIENTS, CLIENTS, 0)
    assert not link.state.object_store.store
    slope = np.polyfit(range(len(held) - 1), held[1:], 1)[0]  # the first round loads what the later ones have
    print(f"server and all its clients: {', '.join(f'{size:.0f}' for size in held)} MB; {slope:+.2f} MB a round")
    assert slope < GROWTH_MB
