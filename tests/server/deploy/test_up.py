"""A real server: sites come in through nginx and nothing else does; what is killed comes back; nothing is left."""

import http.client
import json
import os
import shutil
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from fedasym.ops.app_bundle import PROJECT
from fedasym.ops.processes import end, flower_environment, free_port, start, started, tool
from server.deploy import keys
from server.deploy.home import Home, create_home
from server.deploy.nginx import find_nginx, nginx_command, write_configuration
from server.deploy.status import status

pytestmark = [pytest.mark.slow, pytest.mark.deployed]
SECONDS = 400.0  # a machine may be busy


@dataclass
class Server:
    """A server that runs, as ``python -m server up`` started it."""

    home: Home
    process: subprocess.Popen[bytes]
    log_file: Path

    def said(self, words: str) -> bool:
        return words in self.log_file.read_text()

    def status_of(self, site: str) -> str:
        return next(each["status"] for each in status(self.home)["sites"] if each["name"] == site)

    def children(self) -> dict[str, int]:
        """The processes it keeps alive, by the name of their command."""
        found = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return {name_of(int(pid)): int(pid) for pid in found}


def name_of(pid: int) -> str:
    words = Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    return next((name for name in ("flower-superlink", "flower-superexec", "nginx") if name in words), words)


def until(condition: Callable[[], object], what: str, pause: float = 0.1) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"not within {SECONDS:g} s: {what}"
        time.sleep(pause)


def new_home(folder: Path, *sites: str) -> Home:
    find_nginx()  # fails with what to install
    home = Home(folder, ("127.0.0.1",), free_port(), free_port(), listen="127.0.0.1", sites=sites)
    create_home(home)
    return home


@contextmanager
def running(home: Home) -> Iterator[Server]:
    log_file = home.folder.with_suffix(".log")
    log_file.unlink(missing_ok=True)  # of an earlier start
    command = [sys.executable, "-m", "server", "up", str(home.folder)]
    server = Server(home, start(command, dict(os.environ), PROJECT, log_file), log_file)
    try:
        until(lambda: server.process.poll() is not None or server.said("run . federation"), "the server is up")
        assert server.process.poll() is None, log_file.read_text()
        yield server
    finally:
        end(server.process)


def node_command(home: Home, kit: Path, *more: str) -> list[str]:
    return [
        tool("flower-supernode"),
        "--superlink", home.address,
        "--root-certificates", str(kit / "ca.crt"),
        "--auth-supernode-private-key", str(kit / "node.key"),
        "--port", str(free_port()),
        "--node-config", "partition-id=0 num-partitions=1",
        *more,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with the site north online, south registered."""
    root = tmp_path_factory.mktemp("federation")
    home = new_home(root / "home", "north", "south")
    with running(home) as found:
        command = node_command(home, home.folder / "sites" / "north")
        with started(command, flower_environment(root / "node"), root, root / "north.log"):
            until(lambda: "SuperNode ID" in (root / "north.log").read_text(), "north is let in")
            yield found


def ask(home: Home, method: str, path: str) -> int:
    """Ask the proxy for a path as it is written."""
    context = ssl.create_default_context(cafile=str(home.folder / "ca.crt"))
    connection = http.client.HTTPSConnection("127.0.0.1", home.port, timeout=10, context=context)
    try:
        connection.request(method, path)
        return connection.getresponse().status
    finally:
        connection.close()


def test_a_registered_site_comes_online_through_the_proxy_and_the_others_wait(server: Server) -> None:
    assert {each["name"]: each["status"] for each in now(server.home)["sites"]} == {
        "north": "online",
        "south": "registered",
    }
    assert server.said("site north registered as node") and server.said("site south registered as node")


def test_everything_but_the_fleet_is_refused(server: Server) -> None:
    for path in (
        "/",
        "/health",
        "/docs",
        "/openapi.json",
        "/v1/control/list-nodes",
        "/v1/control/start-run",
        "/v1/runtime/acquire-task",
        "/v1/runtime/responses",
        "/v1/fleet",
        "/v1/fleet/../control/list-nodes",
        "/v1/fleet/%2e%2e/control/list-nodes",
        "/v1/fleet/..%2fcontrol/list-nodes",
        "/v1/fleet//../../control/list-nodes",
        "//v1/control/list-nodes",
    ):
        for method in ("GET", "POST"):
            assert ask(server.home, method, path) == 404, (method, path)
    assert ask(server.home, "POST", "/v1/fleet/%252e%252e/control/list-nodes") == 404  # Flower's own, of no such path
    assert ask(server.home, "GET", "/v1/fleet/pull-messages") == 403
    assert ask(server.home, "POST", "/v1/fleet/pull-messages") == 415  # Flower's own: not its kind of body
    refused = (server.home.folder / "logs" / "refused.log").read_text()
    assert "/v1/control/start-run" in refused and " 200 " not in refused


def test_plain_http_is_refused(server: Server) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.home.port, timeout=10)
    connection.request("POST", "/v1/fleet/pull-messages")
    assert connection.getresponse().status == 400
    connection.close()


def test_a_strange_key_a_strange_authority_plain_http_and_an_expired_certificate_are_refused(
    server: Server, tmp_path: Path
) -> None:
    home = server.home
    kit = home.folder / "sites" / "south"
    strange = tmp_path / "strange"
    keys.make_authority(strange)
    keys.make_node_keys(strange)
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    shutil.copy(kit / "ca.crt", mixed)
    shutil.copy(strange / "node.key", mixed)
    shutil.copy(kit / "node.key", tmp_path / "strange" / "node.key")
    old = replace(home, folder=tmp_path / "old", port=free_port())
    old.folder.mkdir()
    for name in ("ca.key", "ca.crt", "server.key"):
        shutil.copy(home.folder / name, old.folder)
    keys.renew_server_certificate(old.folder, old.hosts, timedelta(days=1), datetime.now(UTC) - timedelta(days=2))
    write_configuration(old, "127.0.0.1")

    plain = node_command(home, kit, "--insecure")
    cut = plain.index("--root-certificates")
    del plain[cut : cut + 2]
    commands = {
        "a key that is not registered": node_command(home, mixed),
        "an authority that is not ours": node_command(home, strange),
        "an expired certificate": node_command(old, kit),
        "plain HTTP": plain,
    }
    with ExitStack() as stack:
        nginx = nginx_command(old, find_nginx())
        stack.enter_context(started(nginx, dict(os.environ), old.folder, tmp_path / "nginx.log"))
        logs, nodes = {}, {}
        for number, (what, command) in enumerate(commands.items()):
            logs[what] = tmp_path / f"{number}.log"
            environment = flower_environment(tmp_path / f"flower-{number}")
            words = [*command, "--max-retries", "1"]
            nodes[what] = stack.enter_context(started(words, environment, tmp_path, logs[what]))
        for what, node in nodes.items():
            until(lambda node=node: node.poll() is not None, f"a node with {what} gives up")
    said = {what: log.read_text() for what, log in logs.items()}
    assert not any("SuperNode ID" in text for text in said.values()), said
    for what in ("an authority that is not ours", "an expired certificate"):
        assert "certificate verify failed" in said[what] or "SSL/TLS handshake error" in said[what], said[what]
    assert server.status_of("south") == "registered"


def now(home: Home) -> dict[str, Any]:
    """What ``python -m server status --json`` says."""
    command = [sys.executable, "-m", "server", "status", str(home.folder), "--json"]
    found: dict[str, Any] = json.loads(subprocess.run(command, cwd=PROJECT, capture_output=True, check=True).stdout)
    return found


def test_a_killed_proxy_is_back_newcomers_are_registered_and_sigterm_leaves_nothing(tmp_path: Path) -> None:
    home = new_home(tmp_path / "home", "north")
    with running(home) as server:
        taken = subprocess.run(
            [sys.executable, "-m", "server", "up", str(home.folder)], cwd=PROJECT, capture_output=True, text=True
        )
        assert taken.returncode == 1 and "in use by another" in taken.stderr
        killed = server.children()["nginx"]
        os.kill(killed, signal.SIGKILL)  # its workers live on and hold the port, until they are ended
        until(lambda: server.said("nginx ready again"), "nginx is back")
        assert ask(home, "GET", "/") == 404
        command = [sys.executable, "-m", "server", "add", str(home.folder), "late"]
        subprocess.run(command, cwd=PROJECT, check=True)
        until(lambda: server.said("site late registered as node"), "the newcomer is registered")
        children = server.children()
        assert set(children) == {"flower-superlink", "flower-superexec", "nginx"}
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(60) == 0
        said = server.log_file.read_text()
        assert said.index("nginx ended") < said.index("superexec ended") < said.index("superlink ended")
    left = [words for words in commands_running() if str(home.folder) in words]
    assert not left
    with running(home) as server:  # the same sites, registered once
        assert not server.said("registered as node")
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(60) == 0


def commands_running() -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found.append(path.read_text(errors="replace").replace("\0", " "))
        except OSError:
            continue  # it ended meanwhile
    return found
