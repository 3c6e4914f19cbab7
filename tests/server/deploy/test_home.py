"""A server's home is made whole or not at all, its kits hold what a site needs, its proxy passes the fleet alone."""

import json
import os
import re
import shlex
import shutil
import stat
import subprocess
import tomllib
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from world import tiny_settings

from fedasym.ops.app_bundle import PROJECT, bundle_digest, stage
from fedasym.wire import records
from server.__main__ import main
from server.deploy import keys
from server.deploy.home import Home, HomeError, create_home, read_home, refresh_connection
from server.deploy.nginx import find_nginx, limits_for, nginx_command, nginx_configuration, write_configuration
from server.deploy.up import certificate_words, next_words, services
from server.session import prepare


@pytest.fixture
def home(tmp_path: Path) -> Home:
    made = Home(tmp_path / "home", ("fed.example.org", "192.0.2.7"), 8443, 8444, sites=("north", "south"))
    create_home(made)
    return made


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def test_init_makes_a_home_with_a_kit_for_each_site(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "deep" / "home"
    words = ["init", str(folder), "--host", "fed.example.org,192.0.2.7", "--port", "9443", "--sites", "north,south"]
    assert main(words) == 0
    assert f"python -m server up {folder}" in capsys.readouterr().out
    home = read_home(folder)
    assert (home.hosts, home.sites) == (("fed.example.org", "192.0.2.7"), ("north", "south"))
    assert (home.port, home.internal_port) == (9443, 9444)
    assert {"nginx.conf", "superexec.secret", "ca.key", "server.key", "flwr/config.toml"} <= files(folder)
    for name in home.sites:
        kit = folder / "sites" / name
        assert files(kit) == {"ca.crt", "node.key", "node.pub", "site.toml"}
        assert tomllib.loads((kit / "site.toml").read_text()) == {"name": name, "server": "fed.example.org:9443"}
        assert (kit / "ca.crt").read_bytes() == (folder / "ca.crt").read_bytes()
    assert len({(folder / "sites" / name / "node.pub").read_bytes() for name in home.sites}) == 2
    assert [path.name for path in folder.parent.iterdir()] == ["home"]
    assert main(words) == 1
    assert "exists and is not empty" in capsys.readouterr().err


def test_everything_private_in_a_home_is_its_owners_alone(home: Home) -> None:
    for path in (home.folder, *home.folder.rglob("*")):
        mode = stat.S_IMODE(path.stat().st_mode)
        if path.is_dir() or path.suffix in (".key", ".secret"):
            assert not mode & 0o077, path


def test_a_home_that_cannot_be_made_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home").chmod(0o700)
    create_home(Home(tmp_path / "home", ("a",), 1, 2))  # an empty folder is as good as none
    with pytest.raises(HomeError, match="not empty"):
        create_home(Home(tmp_path / "home", ("a",), 1, 2))
    with pytest.raises(ValueError):
        create_home(Home(tmp_path / "other", ("a." + 80 * "b" + "é",), 1, 2))
    assert [path.name for path in tmp_path.iterdir()] == ["home"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"sites": ("north", "no/rth")}, "site 'no/rth' is not one"),
        ({"sites": ("..",)}, "site '..' is not one"),
        ({"sites": ("north", "north")}, "twice"),
        ({"hosts": ()}, "hosts is empty"),
        ({"hosts": ("fed.example.org; include x",)}, "host 'fed.example.org; include x' is not one"),
        ({"listen": "a b"}, "listen address 'a b' is not one"),
        ({"port": 0}, "port=0 is not a port"),
        ({"internal_port": 8443}, "both 8443"),
    ],
)
def test_what_a_home_may_not_say_is_named(home: Home, change: dict[str, object], words: str) -> None:
    with pytest.raises(HomeError, match=re.escape(words)):
        replace(home, **change)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("colour = 1", "'colour' is unknown; delete or mend its line"),
        ("payload-bytes = 0", "'payload-bytes' is unknown; delete or mend its line"),
        ("ports = = 1", "mend the file"),
        ('listen = "127.0.0.1"', "mend the file"),
    ],
)
def test_a_spoilt_server_toml_is_named(home: Home, line: str, words: str) -> None:
    path = home.folder / "server.toml"
    assert read_home(home.folder) == home
    whole = path.read_text()
    path.write_text(whole.replace("\nport = 8443", '\nport = "8443"'))
    with pytest.raises(HomeError, match="port='8443'; give a int"):
        read_home(home.folder)
    path.write_text(whole + line + "\n")
    with pytest.raises(HomeError, match=re.escape(words)):
        read_home(home.folder)
    path.unlink()
    with pytest.raises(HomeError, match="python -m server init"):
        read_home(home.folder)


def test_a_site_is_added_with_keys_of_ours_or_with_its_own(home: Home, tmp_path: Path) -> None:
    keys.make_node_keys(tmp_path / "theirs")
    assert main(["add", str(home.folder), "east"]) == 0
    assert main(["add", str(home.folder), "west", "--public-key", str(tmp_path / "theirs" / "node.pub")]) == 0
    assert read_home(home.folder).sites == ("north", "south", "east", "west")
    assert files(home.folder / "sites" / "east") == {"ca.crt", "node.key", "node.pub", "site.toml"}
    west = home.folder / "sites" / "west"
    assert files(west) == {"ca.crt", "node.pub", "site.toml"}
    assert (west / "node.pub").read_bytes() == (tmp_path / "theirs" / "node.pub").read_bytes()
    before = files(home.folder)
    assert main(["add", str(home.folder), "west"]) == 1
    assert main(["add", str(home.folder), "../x"]) == 1
    assert main(["add", str(home.folder), "cold", "--public-key", str(tmp_path / "theirs" / "node.key")]) == 1
    assert files(home.folder) == before and "cold" not in read_home(home.folder).sites


def test_a_moved_home_gets_its_connection_anew(home: Home, tmp_path: Path) -> None:
    home.folder.rename(tmp_path / "moved")
    moved = read_home(tmp_path / "moved")
    refresh_connection(moved)
    connection = tomllib.loads((moved.flower / "config.toml").read_text())["superlink"]["federation"]
    assert connection == {"address": "127.0.0.1:8444", "root-certificates": str(tmp_path / "moved" / "ca.crt")}
    written = (moved.flower / "config.toml").stat().st_mtime_ns
    refresh_connection(moved)
    assert (moved.flower / "config.toml").stat().st_mtime_ns == written


def test_the_proxys_limits_grow_with_the_sites() -> None:
    least, large = limits_for(0), limits_for(5)
    assert large.requests == 5 * least.requests and large.connections == 5 * least.connections


def test_a_message_of_any_size_is_sent_in_requests_that_the_proxy_takes() -> None:
    schema = [("layer.B", (3 * 2**20,))]  # 12 MiB
    content = records.pack({"layer.B": np.arange(3 * 2**20, dtype=np.float32)}, schema, {})
    sizes, pending = [], [content]
    while pending:
        each = pending.pop()  # what Flower sends in one request, with some ids
        sizes.append(len(each.deflate()))
        pending.extend((each.children or {}).values())
    limit = limits_for(1).body_bytes
    assert max(sizes) + 2**16 < limit < sum(sizes)


def test_the_proxy_passes_the_fleet_alone_and_writes_inside_its_home(home: Home) -> None:
    text = nginx_configuration(home, "::", limits_for(2))
    assert re.findall(r"location (.+) {", text) == ["/v1/fleet/", "= /v1/fleet", "/"]
    assert text.count("proxy_pass ") == 1 and "server 127.0.0.1:8444;" in text
    assert "listen [::]:8443 ssl;" in text and "proxy_ssl_verify on;" in text and "daemon off;" in text
    paths = re.findall(
        r"^\s*(?:pid|\w+_temp_path|access_log|ssl_certificate\w*|\w+_trusted_certificate) (\S+)", text, re.M
    )
    assert len(paths) == 11 and not any(path.startswith("/") for path in paths)


def test_printed_commands_hold_every_flag_and_nothing_starts(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    before = files(home.folder)
    assert main(["up", str(home.folder), "--print", "--no-proxy"]) == 0
    said = capsys.readouterr().out
    for words in (
        "flower-superlink --host 127.0.0.1 --port 8444",
        "--enable-supernode-auth",
        "--isolation process",
        "--disable-runtime-dependency-installation",
        f"--database {home.folder / 'state.db'}",
        "flower-superexec --runtime-api-address 127.0.0.1:8444",
        f"export FLWR_HOME={home.flower}",
        "export FLWR_TELEMETRY_ENABLED=0",
        "export FLWR_DISABLE_UPDATE_CHECK=1",
    ):
        assert words in said
    assert "--insecure" not in said and "nginx" not in said
    assert files(home.folder) == before


def test_the_next_command_names_the_sites_and_what_the_engineer_fills_in_and_keeps_flower_quiet(home: Home) -> None:
    said = next_words(home, home.sites)
    run = shlex.split(next(line for line in said.splitlines() if " run . " in line))
    assert run[1:] == [
        "run",
        ".",
        "federation",
        "--stream",
        "-c",
        'sites="north,south" labels="LABELS" data="DATA" model="MODEL"',
    ]
    assert "your classes for LABELS" in said
    assert f"export FLWR_HOME={home.flower} FLWR_TELEMETRY_ENABLED=0 FLWR_DISABLE_UPDATE_CHECK=1" in said
    assert f"python -m server add {home.folder} NAME" in next_words(home, ())


def test_the_superexec_works_in_the_home_so_that_runs_land_there(home: Home) -> None:
    superexec = services(home, None, proxy=False)[1]
    assert superexec.folder == home.folder and home.runs == superexec.folder / "runs"


def test_a_missing_nginx_says_how_to_get_it_or_to_do_without(
    home: Home, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    assert main(["up", str(home.folder), "--listen", "127.0.0.1"]) == 1
    said = capsys.readouterr().err
    assert "apt-get install nginx-light" in said and "--no-proxy" in said
    assert not (home.folder / "state.db").exists()


def test_an_expired_certificate_is_told_before_anything_starts(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    assert "renew" not in certificate_words(home)
    keys.renew_server_certificate(home.folder, home.hosts, timedelta(days=20))
    assert f"renew it soon: python -m server renew {home.folder}" in certificate_words(home)
    keys.renew_server_certificate(home.folder, home.hosts, timedelta(days=1), datetime.now(UTC) - timedelta(days=2))
    assert main(["up", str(home.folder), "--no-proxy"]) == 1
    assert "server.crt expired on" in capsys.readouterr().err
    assert main(["renew", str(home.folder)]) == 0
    assert keys.expiry(home.folder / "server.crt") > datetime.now(UTC) + timedelta(days=390)


def test_status_of_a_server_that_is_down_tells_the_newest_run(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    for number, name in enumerate(("old", "new")):
        folder = home.runs / name
        folder.mkdir(parents=True)
        config = {"settings": {"num_rounds": 9}, "metric": "accuracy", "contract_hash": "c0ffee"}
        (folder / "config.json").write_text(json.dumps(config))
        rows = [
            {"round": i + 1, "metrics": {"accuracy": value}, "clients_valid": 2, "clients_asked": 3}
            for i, value in enumerate((0.5, 0.25 + number / 2, None))
        ]
        (folder / "rounds.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        os.utime(folder / "rounds.jsonl", (number, number))
    assert main(["status", str(home.folder), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert not found["up"] and [site["status"] for site in found["sites"]] == ["unknown", "unknown"]
    record = found["record"]
    assert (record["folder"], record["round"], record["rounds"]) == (str(home.runs / "new"), 3, 9)
    assert (record["value"], record["contract"]) == (0.75, "c0ffee")
    assert main(["status", str(home.folder)]) == 1
    said = capsys.readouterr().out
    assert "down; start it with `python -m server up`" in said and "3/9  accuracy 0.7500  clients 2/3" in said


@pytest.mark.slow
def test_pins_are_the_apps_digest_and_the_contract_of_the_settings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = tiny_settings(tmp_path)
    path = tmp_path / "settings.toml"
    path.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in settings.run_config().items()))
    copy = stage(tmp_path / "copy")
    for each in copy.rglob("*.py"):  # neither dates nor permissions count
        os.utime(each, (0, 0))
        each.chmod(0o600)
    assert main(["pins", "-c", str(path), "--app", str(copy), "--json"]) == 0
    pins = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert pins == {"app": bundle_digest(PROJECT), "contract": prepare(settings.resolved()).contract.hash}


@pytest.mark.slow
@pytest.mark.deployed
def test_nginx_itself_takes_the_configuration(tmp_path: Path) -> None:
    home = Home(tmp_path / "a home", ("localhost",), 8443, 8444)
    create_home(home)
    write_configuration(home, "127.0.0.1")
    done = subprocess.run([*nginx_command(home, find_nginx()), "-t"], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "[warn]" not in done.stderr, done.stderr
