"""The sites as Flower knows them: registered by their keys, and unregistered when they are removed.

Flower's command line lists nodes by id, with neither name nor key, so ``nodes.json`` keeps which node is whose. Flower
takes a key once and never again, not even when its node is unregistered: that is what bars a site that was removed.
"""

import math
import shlex
import ssl
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

from fedasym.ops.flower_cli import FlowerError, flwr
from fedasym.ops.processes import flower_environment
from server.deploy.home import (
    CONNECTION,
    Home,
    HomeError,
    read_nodes,
    remove_kit,
    sites_held,
    without_site,
    write_nodes,
)

_UNREGISTERED = "unregistered"
ANSWER_SECONDS = 30.0  # of Flower's command line: while it is asked, nothing else is looked after
_FIRST_PAUSE, _LONGEST_PAUSE = 10.0, 300.0  # seconds between two tries; each is a process of about 2 s of one core


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


def remove_site(home: Home, name: str) -> str:
    """Unregister a site's node at the running server, and take the site out of the home with its kit.

    Returns:
        The node's id; "" if the site was not registered.

    Raises:
        HomeError: there is no such site, or the server does not run.
        FlowerError: Flower does not unregister the node; the site stays.
    """
    with sites_held(home) as home:
        if name not in home.sites:
            raise HomeError(f"there is no site {name!r}; the sites are {', '.join(home.sites) or '(none yet)'}")
        if not healthy(home):
            raise HomeError(
                f"the server does not run, and only a server that runs can bar the key of site {name!r}; start "
                f"`python -m server up {shlex.quote(str(home.folder))}` and remove the site then"
            )
        nodes = read_nodes(home)
        node = nodes.pop(name, "")
        if _listed(home).get(node, _UNREGISTERED) != _UNREGISTERED:
            flwr(["supernode", "unregister", node, CONNECTION], flower_environment(home.flower), ANSWER_SECONDS)
        # In this order a crash leaves a site that can be removed again.
        remove_kit(home, name)
        write_nodes(home, nodes)
        without_site(home, name)
        return node


class Registrar:
    """Registers the sites of server.toml: those of the start, and those that ``python -m server add`` writes later.

    Args:
        home: of the server.
        say: called with each line of text.
        stop: set when the server shall end.
    """

    def __init__(self, home: Home, say: Callable[[str], None], stop: threading.Event) -> None:
        self.home = home  # as last read
        self._say, self._stop = say, stop
        self._seen: int | None = None  # when server.toml was written that was read last
        self._pause, self._not_before = _FIRST_PAUSE, 0.0
        self._revoked: set[str] = set()
        self._wrong: set[str] = set()  # as told last

    @property
    def sites(self) -> tuple[str, ...]:
        """The names of the sites that are not revoked."""
        return tuple(name for name in self.home.sites if name not in self._revoked)

    def look(self) -> None:
        """Register who is not yet, where server.toml has changed or something failed a while ago; raise nothing."""
        written = _written(self.home.folder / "server.toml")
        if written == self._seen and time.monotonic() < self._not_before:
            return
        if written != self._seen:
            self._seen, self._pause = written, _FIRST_PAUSE
        try:
            wrong = self._register()
        except Exception as error:  # an editor at work, an odd answer of Flower: neither may end a federation
            wrong = {f"server.toml's sites are not registered: {type(error).__name__}: {error}"}
        if self._stop.is_set():  # Ctrl-C reaches the `flwr` that we wait for as well
            return
        for text in sorted(wrong - self._wrong):
            self._say(f"{text}\nit is tried again at every change of server.toml, and now and then")
        self._wrong = wrong
        self._not_before = time.monotonic() + self._pause if wrong else math.inf
        self._pause = min(2 * self._pause, _LONGEST_PAUSE)

    def _register(self) -> set[str]:
        """Register each site that Flower does not list; return what is wrong."""
        wrong, revoked = set(), set()
        with sites_held(self.home) as home:
            self.home, listed, nodes = home, _listed(home), read_nodes(home)
            for name in home.sites:
                status = listed.get(nodes.get(name, ""))
                if status == _UNREGISTERED:
                    revoked.add(name)
                    if name not in self._revoked:
                        self._say(_revoked_words(home, name, nodes[name]))
                elif status is None and not self._stop.is_set():
                    key = home.folder / "sites" / name / "node.pub"
                    arguments = ["supernode", "register", str(key), CONNECTION, "--name", name]
                    try:
                        nodes[name] = str(flwr(arguments, flower_environment(home.flower))["node-id"])
                    except (FlowerError, ValueError, LookupError) as error:  # the other sites wait for their turn
                        wrong.add(_wrong_words(home, name, str(error), listed, nodes))
                        continue
                    write_nodes(home, nodes)
                    self._say(f"site {name} registered as node {nodes[name]}")
        self._revoked = revoked
        return wrong


def _listed(home: Home) -> dict[str, str]:
    """Return the status of every node that Flower has ever registered, by id."""
    answer = flwr(["supernode", "list", CONNECTION], flower_environment(home.flower), ANSWER_SECONDS)
    return {str(node["node-id"]): str(node["status"]) for node in answer["nodes"]}


def _revoked_words(home: Home, name: str, node: str) -> str:
    remove = f"python -m server remove {shlex.quote(str(home.folder))} {name}"
    return f"site {name} is revoked: its node {node} is unregistered; `{remove}` takes it out of server.toml"


def _wrong_words(home: Home, name: str, error: str, listed: dict[str, str], nodes: dict[str, str]) -> str:
    """Say why a site is not registered, and what to do."""
    said = f"site {name} is not registered: {error.strip()}"
    if "already in use" not in error:
        return said
    remove = f"python -m server remove {shlex.quote(str(home.folder))} {name}"
    said += f"\nFlower takes a key once: `{remove}`, and add the site again with a new key"
    free = {node for node, status in listed.items() if status != _UNREGISTERED} - {*nodes.values()}
    if free:
        flower = shlex.quote(str(home.flower))
        said += (
            f"; if the old key is that of node {' or '.join(sorted(free))}, which no site here is known by, bar it: "
            f"`FLWR_HOME={flower} flwr supernode unregister NODE-ID {CONNECTION}`"
        )
    return said


def _written(path: Path) -> int | None:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return None
