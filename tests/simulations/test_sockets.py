"""The counting proxy passes everything on and counts it; a deployment moves little more than its payload."""

import gc
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from rich.console import Console
from world import simulate, tiny_settings

from fedasym.files import read_lines
from fedasym.runs.record import read_rounds
from simulations.cost.counting_proxy import CountingProxy, Passed, counting_proxy
from simulations.cost.measured_bytes import measure
from simulations.study.results import RESULTS


@pytest.fixture
def echo() -> Iterator[int]:
    """Yield the port of a server that reads to the end and then answers with everything twice."""
    server = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                peer, _ = server.accept()
            except OSError:
                return
            threading.Thread(target=answer, args=(peer,), daemon=True).start()

    def answer(peer: socket.socket) -> None:
        with closing(peer):
            heard = read_all(peer)
            peer.sendall(heard + heard)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield server.getsockname()[1]
    server.shutdown(socket.SHUT_RDWR)
    server.close()
    thread.join()


def read_all(peer: socket.socket) -> bytes:
    return b"".join(iter(lambda: peer.recv(4096), b""))


def talk(proxy: CountingProxy, said: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", proxy.port)) as here:
        here.sendall(said)
        here.shutdown(socket.SHUT_WR)
        return read_all(here)


def test_every_byte_passes_and_is_counted_by_connection_and_way(echo: int) -> None:
    said = [os.urandom(size) for size in (1, 1000, 3_000_000)]
    with counting_proxy(echo) as proxy:
        heard = [talk(proxy, each) for each in said]
        assert heard == [each + each for each in said]
        assert proxy.connections == [Passed(len(each), 2 * len(each)) for each in said]
        assert proxy.totals() == Passed(3_001_001, 6_002_002)


def test_connections_at_the_same_time_do_not_mix_while_garbage_is_collected(
    echo: int, request: pytest.FixtureRequest
) -> None:
    said = [bytes([i]) * (200_000 + i) for i in range(8)]
    heard: dict[int, bytes] = {}
    gc.freeze()  # not what was there before: each collection would look through all imported libraries
    request.addfinalizer(gc.unfreeze)
    with counting_proxy(echo) as proxy:
        threads = [
            threading.Thread(target=lambda i=i: heard.update({i: talk(proxy, said[i])})) for i in range(len(said))
        ]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            gc.collect()  # a connection that nothing but its own parts holds would end here
        assert heard == {i: each + each for i, each in enumerate(said)}
        assert proxy.totals().up == sum(map(len, said))


def test_a_proxy_that_ends_leaves_neither_port_nor_thread(echo: int) -> None:
    with counting_proxy(echo) as proxy, socket.create_connection(("127.0.0.1", proxy.port)) as idle:
        idle.sendall(b"never finished")
        assert "counting-proxy" in [thread.name for thread in threading.enumerate()]
    assert "counting-proxy" not in [thread.name for thread in threading.enumerate()]
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", proxy.port))


def test_a_server_that_is_not_there_ends_the_connection_and_not_the_proxy(echo: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    with counting_proxy(port) as proxy:
        assert talk(proxy, b"") == b""
        assert proxy.totals() == Passed(0, 0)


def test_a_used_run_folder_or_a_single_round_is_refused(tmp_path: Path) -> None:
    settings = tiny_settings(tmp_path, out=str(tmp_path / "runs"))
    (tmp_path / "runs" / "lora").mkdir(parents=True)
    (tmp_path / "runs" / "lora" / "rounds.jsonl").touch()
    with pytest.raises(ValueError, match="hold runs already"):
        measure(settings, ["lora"], 2, tmp_path / "lines.jsonl", Console())
    with pytest.raises(ValueError, match="use at least 2"):
        measure(tiny_settings(tmp_path, num_rounds=1), ["lora"], 2, tmp_path / "lines.jsonl", Console())


@pytest.mark.slow
def test_a_deployment_moves_its_payload_and_gives_the_bits_of_the_run_in_process(tmp_path: Path) -> None:
    settings = tiny_settings(tmp_path, out=str(tmp_path / "runs"), num_rounds=2, num_clients=2)
    measure(settings, ["asymmetric"], 2, tmp_path / "lines.jsonl", Console())
    (line,) = read_lines(tmp_path / "lines.jsonl")
    here = simulate(tiny_settings(tmp_path, out=str(tmp_path / "here"), num_rounds=2, num_clients=2), workers=1)
    rows = read_rounds(here)
    assert line["digest"] == rows[-1]["digest"]
    for way in ("up", "down"):
        assert line[f"payload_{way}_per_client_round"] == rows[1][f"payload_{way}"] / 2
        assert line[f"socket_{way}_per_client_round"] > line[f"message_{way}_per_client_round"]


def test_the_committed_lines_show_sockets_within_a_tenth_of_the_payload() -> None:
    lines = read_lines(RESULTS / "sockets.jsonl")
    assert {"asymmetric", "lora"} <= {line["method"] for line in lines}
    for line in lines:
        for way in ("up", "down"):
            payload, passed = (line[f"{kind}_{way}_per_client_round"] for kind in ("payload", "socket"))
            assert payload < passed < 1.1 * payload, (line["method"], way)
