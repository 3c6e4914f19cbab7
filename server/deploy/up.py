"""The server, running: SuperLink and SuperExec of Flower on the loopback, nginx in front, all kept alive.

With ``--isolation process`` the ServerApp is a child of the SuperExec and not of the SuperLink, so a SuperLink that is
killed comes back on its database and the federation goes on.
"""

import os
import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from fedasym.ops.app_bundle import PROJECT
from fedasym.ops.processes import QUIET, flower_environment, held_alone, listens, stopped_by_signals, tool
from fedasym.ops.supervisor import Service, Supervisor
from server.deploy import keys
from server.deploy.home import CONNECTION, Home, HomeError, refresh_connection
from server.deploy.nginx import find_nginx, nginx_command, write_configuration
from server.deploy.registrar import Registrar, healthy

_WARN_DAYS = 30


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
    """
    alone = held_alone(home.folder, "end the other `python -m server up` first")
    with alone, _private_files(), stopped_by_signals() as stop:
        say(certificate_words(home))
        _refuse_taken_ports(home, listen or home.listen, proxy=proxy)
        supervisor = Supervisor(services(home, listen, proxy=proxy), say, stop)
        registrar = Registrar(home, say, stop)
        refresh_connection(home)
        if proxy:
            write_configuration(home, listen or home.listen)
        try:
            supervisor.start()
            if not stop.is_set():
                registrar.look()
            if not stop.is_set():
                say(next_words(registrar.home, registrar.sites))
            supervisor.watch(registrar.look)
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
    environment = flower_environment(home.flower)
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
    ours = {**QUIET, "FLWR_HOME": str(home.flower)}
    lines = [f"cd {shlex.quote(str(home.folder))}"]
    lines += [f"export {key}={shlex.quote(value)}" for key, value in ours.items()]
    lines += [f'export PATH={shlex.quote(str(Path(tool("flwr")).parent))}:"$PATH"']
    lines += [shlex.join(each.command) for each in services(home, listen, proxy=proxy)]
    return "\n".join(lines)


def next_words(home: Home, sites: Sequence[str]) -> str:
    """Say what the engineer does next.

    Args:
        home: of the server that is up.
        sites: names of those that may take part.
    """
    folder = shlex.quote(str(home.folder))
    settings = f'sites="{",".join(sites) or "SITES"}" labels="LABELS" data="DATA" model="MODEL"'
    none = "" if sites else f"\nthere is no site yet: `python -m server add {folder} NAME`, then name it for SITES"
    return (
        f"up: sites reach {home.address}; logs in {home.folder / 'logs'}; Ctrl-C or SIGTERM ends all{none}\n"
        f"next, hand each site its folder of {shlex.quote(str(home.folder / 'sites'))} by a safe way, and when "
        f"`python -m server status {folder}` shows them online:\n"
        f"  export FLWR_HOME={shlex.quote(str(home.flower))} FLWR_TELEMETRY_ENABLED=0 FLWR_DISABLE_UPDATE_CHECK=1\n"
        f"  cd {shlex.quote(str(PROJECT))}\n"
        f"  {shlex.quote(tool('flwr'))} run . {CONNECTION} --stream -c {shlex.quote(settings)}\n"
        "with your classes for LABELS: by commas, in the order of their ids, as every site gives them to --labels; for "
        "DATA where this server has held-out examples, or none; for MODEL a hub id, or minilm for the packaged one"
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
