"""The server's home folder: keys, settings and Flower's configuration, and a kit for each site.

HOME/ca.crt ca.key server.crt server.key superexec.secret     keys; ca.key is needed again only to renew server.crt
HOME/server.toml                                              hosts, ports, sites
HOME/nginx.conf                                               made of it
HOME/flwr/config.toml                                         FLWR_HOME: the connection "federation"
HOME/sites/NAME/{ca.crt,site.toml,node.key,node.pub}          the kit that is handed to the site NAME
HOME/state.db nodes.json logs/ runs/ tmp/ .lock .sites.lock   appear when it runs
"""

import json
import os
import re
import secrets
import shutil
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tomli_w
from filelock import FileLock

from fedasym.files import write_atomic
from fedasym.ops.flower_cli import connection
from server.deploy import keys

CONNECTION = "federation"
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?|[0-9a-fA-F:]{2,39}")
_SITE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")  # as the setting `sites` takes them
_KEYS = {"hosts": list, "listen": str, "port": int, "internal-port": int, "sites": list}
_HEADING = """\
# A fedasym server. `python -m server up` reads it; `python -m server add` and `remove` change its sites.
# hosts: by which sites reach it; after a change: python -m server renew
# internal-port: the SuperLink's, on 127.0.0.1 alone
"""
_KIT = ("ca.crt", "site.toml", "node.key", "node.pub")


class HomeError(ValueError):
    """The home folder is missing, taken, or its server.toml is not right."""


@dataclass(frozen=True)
class Home:
    """A server's home folder and what its server.toml says.

    Attributes:
        folder: absolute.
        hosts: names and addresses by which sites reach the server; the first stands in the kits.
        listen: address of this machine on which the proxy listens.
        port: of the proxy, public.
        internal_port: of the SuperLink, on 127.0.0.1 alone.
        sites: names, in the order they joined.
    """

    folder: Path
    hosts: tuple[str, ...]
    port: int
    internal_port: int
    listen: str = "0.0.0.0"
    sites: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check(self)

    @property
    def flower(self) -> Path:
        """Flower's home, ``FLWR_HOME``."""
        return self.folder / "flwr"

    @property
    def address(self) -> str:
        """Where sites reach the server, ``host:port``."""
        host = self.hosts[0]
        return f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"

    @property
    def runs(self) -> Path:
        """Where runs without the setting ``out`` land: the SuperExec works in the home folder."""
        return self.folder / "runs"


def create_home(home: Home) -> None:
    """Make a home folder with all its keys, whole or not at all.

    Raises:
        HomeError: the folder exists and is not empty.
    """
    folder = home.folder
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise HomeError(
            f"{folder} exists and is not empty; choose a new folder, or `python -m server add` a site to it"
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}")
    try:
        work.mkdir(mode=0o700)
        keys.make_authority(work)
        keys.make_server_certificate(work, home.hosts)
        keys.write_private(work / "superexec.secret", secrets.token_hex(32).encode())
        for name in home.sites:
            _make_kit(replace(home, folder=work), name, None)
        (work / "server.toml").write_text(_settings_text(home))
        _write_connection(home, work / "flwr")
        os.rename(work, folder)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise


def read_home(folder: Path) -> Home:
    """Read a home folder's server.toml.

    Raises:
        HomeError: there is none, or it holds what it should not.
    """
    folder = folder.expanduser().absolute()
    path = folder / "server.toml"
    if not path.exists():
        raise HomeError(f"{folder} is not a server's home (no server.toml); make one with `python -m server init`")
    try:
        table: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # no TOML, no UTF-8, a number of thousands of digits
        raise HomeError(f"{path}: {error}; mend the file") from None
    for key in (*table, *_KEYS):
        if key not in _KEYS:
            raise HomeError(f"{path}: {key!r} is unknown; delete or mend its line: the file takes {', '.join(_KEYS)}")
        if type(table.get(key)) is not _KEYS[key]:
            raise HomeError(f"{path}: {key}={table.get(key)!r}; give a {_KEYS[key].__name__}")
    values: dict[str, Any] = {key.replace("-", "_"): tuple(v) if isinstance(v, list) else v for key, v in table.items()}
    return Home(**{"folder": folder, **values})


def add_site(home: Home, name: str, public_key: Path | None = None) -> Home:
    """Make a kit for one more site; a server that runs registers it by itself.

    Args:
        home: of the server.
        name: of the site.
        public_key: the site's own; its private key then never leaves the site. Otherwise a pair is made.

    Raises:
        HomeError: the name is taken or not a name, or another site has the key.
        KeyFileError: the public key is not one.
    """
    with sites_held(home) as home:
        if name in home.sites:
            raise HomeError(f"site {name!r} is there already; choose another name")
        home = replace(home, sites=(*home.sites, name))
        if public_key:
            _refuse_taken_key(home, public_key)
        _make_kit(home, name, public_key)
        write_atomic(home.folder / "server.toml", _settings_text(home).encode())
    return home


def remove_kit(home: Home, name: str) -> None:
    """Delete a site's kit, our copy of its key included; what else lies in its folder stays."""
    kit = home.folder / "sites" / name
    for file in _KIT:
        (kit / file).unlink(missing_ok=True)
    if kit.exists() and not any(kit.iterdir()):
        kit.rmdir()


def without_site(home: Home, name: str) -> Home:
    """Take a site's name out of server.toml; call it with the sites held."""
    home = replace(home, sites=tuple(each for each in home.sites if each != name))
    write_atomic(home.folder / "server.toml", _settings_text(home).encode())
    return home


@contextmanager
def sites_held(home: Home) -> Iterator[Home]:
    """Wait until no other process changes the sites or registers them; yield the home as server.toml says it now.

    Raises:
        HomeError: as `read_home`.
    """
    with FileLock(home.folder / ".sites.lock"):  # it ends with the process
        yield read_home(home.folder)


def refresh_connection(home: Home) -> None:
    """Write Flower's connection anew where it is missing: Flower takes absolute paths only, and a folder may move."""
    expected = _connection(home)
    path = home.flower / "config.toml"
    if not path.exists() or tomllib.loads(path.read_text()) != tomllib.loads(expected):
        _write_connection(home, home.flower)


def read_nodes(home: Home) -> dict[str, str]:
    """Return Flower's node id of each site that was registered, by name: its command line lists ids alone."""
    path = home.folder / "nodes.json"
    return dict(json.loads(path.read_text())) if path.exists() else {}


def write_nodes(home: Home, nodes: dict[str, str]) -> None:
    """Keep the node ids of the registered sites."""
    write_atomic(home.folder / "nodes.json", (json.dumps(nodes, indent=1) + "\n").encode())


def _refuse_taken_key(home: Home, public_key: Path) -> None:
    """Refuse the key of another site: Flower takes a key once."""
    line = keys.read_public_key(public_key)
    for name in home.sites:
        path = home.folder / "sites" / name / "node.pub"
        if path.exists() and path.read_bytes() == line:
            raise HomeError(f"{public_key} is the key of site {name!r} already; every site makes a key of its own")


def _make_kit(home: Home, name: str, public_key: Path | None) -> None:
    kit = home.folder / "sites" / name
    if kit.exists():
        raise HomeError(f"{kit} exists but server.toml does not name it; move it away")
    line = keys.read_public_key(public_key) if public_key else b""
    (home.folder / "sites").mkdir(exist_ok=True, mode=0o700)
    kit.mkdir(mode=0o700)
    if public_key:
        keys.write_public(kit / "node.pub", line)
    else:
        keys.make_node_keys(kit)
    keys.write_public(kit / "ca.crt", (home.folder / "ca.crt").read_bytes())
    keys.write_public(kit / "site.toml", tomli_w.dumps({"name": name, "server": home.address}).encode())


def _settings_text(home: Home) -> str:
    """Write server.toml, with what a reader must know above it."""
    return _HEADING + tomli_w.dumps({key: getattr(home, key.replace("-", "_")) for key in _KEYS})


def _connection(home: Home) -> str:
    return connection(CONNECTION, home.internal_port, home.folder / "ca.crt")


def _write_connection(home: Home, folder: Path) -> None:
    folder.mkdir(exist_ok=True, mode=0o700)
    write_atomic(folder / "config.toml", _connection(home).encode())


def _check(home: Home) -> None:
    if not home.hosts:
        raise HomeError("hosts is empty; name the host by which sites reach the server")
    _check_names("host", home.hosts, _HOST, "a DNS name or an IP address")
    _check_names("listen address", (home.listen,), _HOST, "an IP address of this machine")
    _check_names("site", home.sites, _SITE, "letters, digits, '.', '_' and '-', 63 at most")
    for key, port in (("port", home.port), ("internal-port", home.internal_port)):
        if not 0 < port < 65536:
            raise HomeError(f"{key}={port} is not a port; choose one from 1 to 65535")
    if home.port == home.internal_port:
        raise HomeError(f"port and internal-port are both {home.port}; the proxy and the SuperLink need one each")


def _check_names(what: str, names: Sequence[Any], form: re.Pattern[str], expected: str) -> None:
    for name in names:
        if not isinstance(name, str) or not form.fullmatch(name):
            raise HomeError(f"{what} {name!r} is not one; use {expected}")
    if len(set(names)) != len(names):
        raise HomeError(f"{what}s {', '.join(names)} hold a name twice; name each once")
