"""Sites are registered as they come; what is wrong with one, or with Flower, stops neither the others nor the server.

The fast tests speak to a stand-in for Flower's command line, the slow one to Flower.
"""

import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from flower_stand_in import Flower
from test_up import new_home, now, running, until

from fedasym.ops.app_bundle import PROJECT
from fedasym.ops.flower_cli import flwr
from fedasym.ops.processes import flower_environment, free_port
from server.__main__ import main
from server.deploy.home import Home, add_site, create_home, read_home, read_nodes
from server.deploy.registrar import Registrar


@pytest.fixture
def flower(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Flower:
    made = Flower(tmp_path / "bin")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bin" / "python"))  # `flwr` is looked for beside it
    return made


@pytest.fixture
def home(tmp_path: Path) -> Home:
    made = Home(tmp_path / "home", ("fed.example.org",), 8443, free_port(), sites=("north", "south"))
    create_home(made)
    return made


@pytest.fixture
def superlink(home: Home) -> Iterator[None]:
    """Answer at the SuperLink's port that it is well."""

    class Well(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(home.folder / "server.crt", home.folder / "server.key")
    with ThreadingHTTPServer(("127.0.0.1", home.internal_port), Well) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield
        server.shutdown()
        thread.join()


class Started:
    """A registrar as a start of the server makes it, and what it says."""

    def __init__(self, home: Home) -> None:
        self.said: list[str] = []
        self.registrar = Registrar(home, self.said.append, threading.Event())

    def looks(self) -> str:
        """Let it look; return what it said."""
        before = len(self.said)
        self.registrar.look()
        return "\n".join(self.said[before:])


@pytest.fixture
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let what failed be tried again at the next look."""
    monkeypatch.setattr("server.deploy.registrar._FIRST_PAUSE", 0.0)


def test_sites_are_registered_once_and_nothing_is_asked_while_nothing_changes(home: Home, flower: Flower) -> None:
    server = Started(home)
    said = server.looks()
    assert "site north registered as node 100" in said and "site south registered as node 101" in said
    calls = flower.calls()
    assert not server.looks() and flower.calls() == calls
    assert not Started(home).looks() and flower.nodes() == {"100": "registered", "101": "registered"}


def test_a_site_that_is_added_while_the_server_starts_is_registered(home: Home, flower: Flower) -> None:
    server = Started(home)
    add_site(home, "late")  # after server.toml was read, before the first look
    assert "site late registered as node 102" in server.looks()
    assert server.registrar.sites == ("north", "south", "late")


def test_a_revoked_site_is_told_once_and_stops_nobody(home: Home, flower: Flower) -> None:
    Started(home).looks()
    flower.does("unregister", read_nodes(home)["north"])
    server = Started(home)
    said = server.looks()
    assert "site north is revoked" in said and f"python -m server remove {home.folder} north" in said
    assert server.registrar.sites == ("south",)
    add_site(home, "east")
    assert server.looks() == "site east registered as node 102"
    assert flower.nodes() == {"100": "unregistered", "101": "registered", "102": "registered"}


def test_a_site_whose_key_was_registered_before_is_given_no_node_and_stops_nobody(
    home: Home, flower: Flower, no_pause: None
) -> None:
    flower.does("register", str(home.folder / "sites" / "north" / "node.pub"))
    server = Started(home)
    said = server.looks()
    assert "site north is not registered" in said and f"python -m server remove {home.folder} north" in said
    assert "node 100, which no site here is known by" in said
    assert "site south registered as node 101" in said
    assert read_nodes(home) == {"south": "101"}
    calls = flower.calls()
    assert not server.looks() and flower.calls() > calls  # it is tried again, and not told again


def test_a_failure_is_not_tried_again_at_once(home: Home, flower: Flower) -> None:
    flower.instead.write_text("no")
    server = Started(home)
    assert server.looks()
    calls = flower.calls()
    assert not server.looks() and flower.calls() == calls
    flower.instead.unlink()
    add_site(home, "east")  # a change is looked at whatever failed before
    assert "site east registered as node 102" in server.looks()


def away(home: Home, flower: Flower) -> None:
    (home.folder / "server.toml").unlink()


def cut(home: Home, flower: Flower) -> None:
    (home.folder / "server.toml").write_text('hosts = ["fed')


def foreign(home: Home, flower: Flower) -> None:
    (home.folder / "server.toml").write_bytes(b"\xff\xfe")


def no_json(home: Home, flower: Flower) -> None:
    flower.instead.with_name("flwr").write_text("#!/bin/sh\necho '{ 503 }'\n")


def other_json(home: Home, flower: Flower) -> None:
    flower.instead.with_name("flwr").write_text("#!/bin/sh\necho '{\"success\": true}'\n")


def failing(home: Home, flower: Flower) -> None:
    flower.instead.write_text("the SuperLink is unavailable")


def spoilt_nodes(home: Home, flower: Flower) -> None:
    (home.folder / "nodes.json").write_text("{")


@pytest.mark.parametrize("spoil", [away, cut, foreign, no_json, other_json, failing, spoilt_nodes])
def test_whatever_befalls_server_toml_or_flower_is_told_once_and_ends_nothing(
    spoil, home: Home, flower: Flower, no_pause: None
) -> None:
    kept = {path: path.read_bytes() for path in (home.folder / "server.toml", *flower.instead.parent.iterdir())}
    server = Started(home)
    spoil(home, flower)
    assert server.looks().startswith("server.toml's sites are not registered: ")
    assert not server.looks() and not server.looks()
    for path in (flower.instead, home.folder / "nodes.json"):
        path.unlink(missing_ok=True)
    for path, text in kept.items():
        path.write_bytes(text)
    said = server.looks()
    assert "site north registered" in said and "site south registered" in said


def test_sites_that_are_added_at_the_same_time_are_all_there(home: Home) -> None:
    names = [f"site{i}" for i in range(6)]
    with ThreadPoolExecutor(len(names)) as pool:
        list(pool.map(lambda name: add_site(home, name), names))
    assert {*read_home(home.folder).sites} == {"north", "south", *names}


def test_the_key_of_another_site_is_refused_by_that_sites_name(
    home: Home, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    key = tmp_path / "north.pub"
    key.write_bytes((home.folder / "sites" / "north" / "node.pub").read_bytes().rstrip() + b" me@north\n")
    assert main(["add", str(home.folder), "north2", "--public-key", str(key)]) == 1
    assert f"{key} is the key of site 'north' already" in capsys.readouterr().err
    assert read_home(home.folder).sites == ("north", "south")
    assert not (home.folder / "sites" / "north2").exists()


def test_a_removed_site_is_barred_and_its_name_is_free_for_a_new_key(
    home: Home, flower: Flower, superlink: None, capsys: pytest.CaptureFixture[str]
) -> None:
    server = Started(home)
    server.looks()
    assert main(["remove", str(home.folder), "north"]) == 0
    said = capsys.readouterr().out
    assert "node 100 is unregistered, and its key stays barred for good" in said and "is deleted" in said
    assert flower.nodes() == {"100": "unregistered", "101": "registered"}
    assert read_home(home.folder).sites == ("south",) and read_nodes(home) == {"south": "101"}
    assert not (home.folder / "sites" / "north").exists()
    assert not server.looks()
    add_site(home, "north")
    assert server.looks() == "site north registered as node 102"


def test_a_site_that_is_revoked_already_or_has_no_node_can_be_removed(
    home: Home, flower: Flower, superlink: None, capsys: pytest.CaptureFixture[str]
) -> None:
    flower.does("register", str(home.folder / "sites" / "south" / "node.pub"))
    Started(home).looks()
    flower.does("unregister", read_nodes(home)["north"])
    (home.folder / "sites" / "south" / "notes.txt").write_text("not ours")
    for name in ("north", "south"):
        assert main(["remove", str(home.folder), name]) == 0
    assert "it had no node yet" in capsys.readouterr().out
    assert read_home(home.folder).sites == () and read_nodes(home) == {}
    assert [path.name for path in (home.folder / "sites").glob("*/*")] == ["notes.txt"]


def test_a_site_is_removed_by_a_server_that_runs_alone_and_not_by_half(
    home: Home, flower: Flower, capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest
) -> None:
    Started(home).looks()
    before = {path: path.read_bytes() for path in home.folder.rglob("*") if path.is_file()}
    assert main(["remove", str(home.folder), "north"]) == 1
    said = capsys.readouterr().err
    assert "the server does not run" in said and f"python -m server up {home.folder}" in said
    request.getfixturevalue("superlink")
    assert main(["remove", str(home.folder), "nort"]) == 1
    assert "there is no site 'nort'; the sites are north, south" in capsys.readouterr().err
    flower.instead.write_text("the SuperLink is unavailable")
    assert main(["remove", str(home.folder), "north"]) == 1
    assert "the SuperLink is unavailable" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in home.folder.rglob("*") if path.is_file()} == before


def command(home: Home, *words: str) -> str:
    """What a command of ``python -m server`` prints."""
    whole = [sys.executable, "-m", "server", words[0], str(home.folder), *words[1:]]
    return subprocess.run(whole, cwd=PROJECT, capture_output=True, text=True, check=True).stdout


@pytest.mark.slow
@pytest.mark.deployed
def test_flower_itself_bars_a_revoked_and_a_removed_site_and_the_server_starts_and_goes_on(tmp_path: Path) -> None:
    home = new_home(tmp_path / "home", "north", "south")
    key = tmp_path / "north.pub"
    key.write_bytes((home.folder / "sites" / "north" / "node.pub").read_bytes())
    with running(home):
        flwr(["supernode", "unregister", read_nodes(home)["north"], "federation"], flower_environment(home.flower))
    with running(home) as server:
        assert server.said("site north is revoked") and server.said('sites="south"')
        assert "stays barred for good" in command(home, "remove", "north")
        command(home, "add", "again", "--public-key", str(key))
        until(lambda: server.said("site again is not registered"), "the barred key is refused")
        assert server.said("already in use") and server.said(f"python -m server remove {home.folder} again")
        assert "it had no node yet" in command(home, "remove", "again")
        command(home, "add", "north")
        until(
            lambda: server.said("site north registered as node"),
            "a new key is registered under the old name",
        )
        south = read_nodes(home)["south"]
        assert f"node {south} is unregistered" in command(home, "remove", "south")
        assert {each["name"]: each["status"] for each in now(home)["sites"]} == {"north": "registered"}
        assert server.process.poll() is None
