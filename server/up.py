"""The server, running: SuperLink and SuperExec of Flower on the loopback, nginx in front, all kept alive.

With ``--isolation process`` the ServerApp is a child of the SuperExec and not of the SuperLink, so a SuperLink that is
killed comes back on its database and the federation goes on.
"""

import os
import shlex
import ssl
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from fedasym.bundle import PROJECT
from fedasym.flower import FlowerError, flwr
from fedasym.processes import QUIET, flower_environment, held_alone, listens, stopped_by_signals, tool
from fedasym.supervise import Service, Supervisor
from server import keys
from server.home import CONNECTION, Home, HomeError, read_home, read_nodes, refresh_connection, write_nodes
from server.proxy import find_nginx, nginx_command, write_configuration

_POLL = {"FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.1"}  # seconds; Flower's own 1.0 is a pause before every task
_WARN_DAYS = 30
_RETRY_SECONDS = 10.0  # after a registration that failed


def up(home: Home, listen: str | None, say: Callable[[str], None], *, proxy: bool = True) -> int:
    """Run a server until SIGTERM or Ctrl-C.

    Args:
        home: its folder.
        listen: address for the proxy instead of server.toml's.
        say: called with each line of text.
        proxy: whether nginx is started; without it, something else must publish ``/v1/fleet/``.

    Returns:
        The exit code, 0.

    Raises:
        BlockingIOError: the home is in use.
        HomeError: a port is in use, or the certificate has expired.
        ProxyError: nginx is missing.
        ServiceError: a process does not start, or dies again and again.
        FlowerError: Flower does not register a site.
    """
    alone = held_alone(home.folder, "end the other `python -m server up` first")
    with alone, _private_files(), stopped_by_signals() as stop:
        say(certificate_words(home))
        _refuse_taken_ports(home, listen or home.listen, proxy=proxy)
        supervisor = Supervisor(services(home, listen, proxy=proxy), say, stop)
        refresh_connection(home)
        if proxy:
            write_configuration(home, listen or home.listen)
        try:
            supervisor.start()
            if not stop.is_set():
                register_sites(home, say)
                say(next_words(home))
            supervisor.watch(_Newcomers(home, say).look)
        except FlowerError:
            if not stop.is_set():  # Ctrl-C reaches the `flwr` that we wait for as well
                raise
        finally:
            supervisor.end()
    return 0


def services(home: Home, listen: str | None, *, proxy: bool) -> list[Service]:
    """Return what is started, in its order.

    Raises:
        ProxyError: nginx is wanted and missing.
    """
    internal = f"127.0.0.1:{home.internal_port}"
    folder, secret = home.folder, str(home.folder / "superexec.secret")
    environment = flower_environment(home.flower) | _POLL
    superlink = (
        tool("flower-superlink"),
        "--host", "127.0.0.1", "--port", str(home.internal_port),
        "--ssl-ca-certfile", str(folder / "ca.crt"),
        "--ssl-certfile", str(folder / "server.crt"),
        "--ssl-keyfile", str(folder / "server.key"),
        "--enable-supernode-auth",
        "--isolation", "process",
        "--superexec-auth-secret-file", secret,
        "--database", str(folder / "state.db"),
        "--disable-runtime-dependency-installation",
    )  # fmt: skip
    superexec = (
        tool("flower-superexec"),
        "--runtime-api-address", internal,
        "--root-certificates", str(folder / "ca.crt"),
        "--superexec-auth-secret-file", secret,
    )  # fmt: skip

    def service(name: str, command: tuple[str, ...], ready: Callable[[], bool]) -> Service:
        return Service(name, command, environment, folder, folder / "logs" / f"{name}.log", ready)

    found = [
        service("superlink", superlink, lambda: healthy(home)),
        service("superexec", superexec, lambda: True),
    ]
    if proxy:
        host = listen or home.listen
        command = tuple(nginx_command(home, find_nginx()))
        found.append(service("nginx", command, lambda: listens(host, home.port)))
    return found


def print_words(home: Home, listen: str | None, *, proxy: bool) -> str:
    """Return the commands that `up` would start, with all that is set in their environment, for a shell."""
    ours = {**QUIET, "FLWR_HOME": str(home.flower), **_POLL}
    lines = [f"cd {shlex.quote(str(home.folder))}"]
    lines += [f"export {key}={shlex.quote(value)}" for key, value in ours.items()]
    lines += [f'export PATH={shlex.quote(str(Path(tool("flwr")).parent))}:"$PATH"']
    lines += [shlex.join(each.command) for each in services(home, listen, proxy=proxy)]
    return "\n".join(lines)


def healthy(home: Home) -> bool:
    """Answer whether the SuperLink answers on the loopback with a certificate of ours."""
    trusted = ssl.create_default_context(cafile=str(home.folder / "ca.crt"))
    try:
        with urllib.request.urlopen(
            f"https://127.0.0.1:{home.internal_port}/health", timeout=2.0, context=trusted
        ) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def register_sites(home: Home, say: Callable[[str], None]) -> None:
    """Register those sites with Flower that are not yet; doing it twice does nothing.

    Raises:
        FlowerError: Flower refuses a key.
    """
    environment = flower_environment(home.flower)
    listed = {node["node-id"]: node["status"] for node in flwr(["supernode", "list", CONNECTION], environment)["nodes"]}
    living = {node for node, status in listed.items() if status != "unregistered"}
    nodes = read_nodes(home)
    for name in home.sites:
        if nodes.get(name) in living:
            continue
        public = home.folder / "sites" / name / "node.pub"
        arguments = ["supernode", "register", str(public), CONNECTION, "--name", name]
        try:
            nodes[name] = str(flwr(arguments, environment)["node-id"])
        except FlowerError as error:
            # A crash between Flower's register and our note of it: the one node that nobody claims is the site's.
            unclaimed = living - set(nodes.values())
            if len(unclaimed) != 1:
                raise FlowerError(
                    f"site {name!r} is not registered: {error} If its key is registered already, end that node with "
                    f"`flwr supernode unregister NODE-ID {CONNECTION}` and give the site a new key"
                ) from None
            nodes[name] = unclaimed.pop()
        write_nodes(home, nodes)
        say(f"site {name} registered as node {nodes[name]}")


def next_words(home: Home) -> str:
    """Say what the engineer does next."""
    kits = shlex.quote(str(home.folder / "sites"))
    return (
        f"up: sites reach {home.address}; logs in {home.folder / 'logs'}; Ctrl-C or SIGTERM ends all\n"
        f"next, hand each site its folder of {kits} by a safe way, and when `python -m server status "
        f"{shlex.quote(str(home.folder))}` shows them online:\n"
        f"  export FLWR_HOME={shlex.quote(str(home.flower))}\n"
        f"  cd {shlex.quote(str(PROJECT))}\n"
        f"  {shlex.quote(tool('flwr'))} run . {CONNECTION} --stream"
    )


def certificate_words(home: Home) -> str:
    """Say how long the server's certificate lasts.

    Raises:
        HomeError: it has expired.
    """
    end = keys.expiry(home.folder / "server.crt")
    left = end - datetime.now(UTC)
    renew = f"python -m server renew {shlex.quote(str(home.folder))}"
    if left.total_seconds() <= 0:
        raise HomeError(f"server.crt expired on {end:%Y-%m-%d}; sites refuse it. Renew it: {renew}")
    soon = f"; renew it soon: {renew}" if left.days < _WARN_DAYS else ""
    return f"server certificate lasts until {end:%Y-%m-%d}{soon}"


class _Newcomers:
    """Registers sites that `python -m server add` writes to server.toml while the server runs."""

    def __init__(self, home: Home, say: Callable[[str], None]) -> None:
        self._path, self._say = home.folder / "server.toml", say
        self._seen, self._not_before = self._path.stat().st_mtime_ns, 0.0

    def look(self) -> None:
        """Look whether server.toml has changed; a failure is told and tried again."""
        written = self._path.stat().st_mtime_ns
        if written == self._seen or time.monotonic() < self._not_before:
            return
        try:
            register_sites(read_home(self._path.parent), self._say)
            self._seen = written
        except (FlowerError, HomeError, keys.KeyFileError) as error:
            self._say(f"new sites are not registered yet: {error}")
            self._not_before = time.monotonic() + _RETRY_SECONDS


@contextmanager
def _private_files() -> Iterator[None]:
    """Let database, logs and runs be as private as the keys."""
    before = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(before)


def _refuse_taken_ports(home: Home, listen: str, *, proxy: bool) -> None:
    wanted = {"internal-port": ("127.0.0.1", home.internal_port), "port": (listen, home.port)}
    for key, (host, port) in wanted.items():
        if (proxy or key != "port") and listens(host, port):
            raise HomeError(f"{key}={port} is in use on {host}; end who listens there or change it in server.toml")
