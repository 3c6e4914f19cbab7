"""The commands of docs/deployment.md, and the one that the server prints next, do as they stand what the page says."""

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest
from world import make_sites, tiny_values

from fedasym.ops.app_bundle import PROJECT, bundle_digest
from fedasym.ops.processes import free_port, started
from fedasym.runs.record import read_json
from server.deploy import keys
from server.deploy.home import read_home
from simulations.engines.superlink import Superlink
from simulations.federation import Server, await_sites, site_up, wait_for

PAGE = (PROJECT / "docs" / "deployment.md").read_text()
SECONDS = 180.0
Shell = Callable[..., str]


def block(first: str) -> str:
    """The one block of commands on the page that begins with these words."""
    found = [text for text in re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL) if text.startswith(first)]
    assert len(found) == 1, f"{len(found)} blocks begin with {first!r}"
    return str(found[0])


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """An engineer's: a home folder, this environment's commands, nothing of Flower's but what the page exports."""
    bare = {key: value for key, value in os.environ.items() if not key.startswith("FLWR_")}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**bare, "HOME": str(tmp_path), "PATH": path, "PYTHONPATH": str(PROJECT)}


@pytest.fixture
def shell(environment: dict[str, str], tmp_path: Path) -> Shell:
    def call(commands: str, folder: Path = tmp_path) -> str:
        words = ["bash", "-euc", commands]
        done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return call


def test_a_home_is_made_a_site_added_and_the_certificate_renewed_as_the_page_says(
    shell: Shell, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shell(block("python -m server init"))
    home = read_home(tmp_path / "fedasym-server")
    assert (home.address, home.sites) == ("fed.example.org:8443", ("north", "south", "east"))

    shell(block("ssh-keygen"))
    kit = home.folder / "sites" / "west"
    assert read_home(home.folder).sites == ("north", "south", "east", "west")
    assert (kit / "node.pub").read_bytes() == keys.read_public_key(tmp_path / "west.pub")
    assert not (kit / "node.key").exists()

    before = (home.folder / "server.crt").read_bytes(), (home.folder / "server.key").read_bytes()
    shell(block("python -m server renew"))
    assert (home.folder / "server.crt").read_bytes() != before[0]
    assert (home.folder / "server.key").read_bytes() == before[1]


@pytest.mark.slow
@pytest.mark.deployed
def test_a_server_runs_trains_and_bars_a_site_as_the_page_says(
    shell: Shell, environment: dict[str, str], tmp_path: Path
) -> None:
    values = tiny_values(tmp_path / "world", labels="bad,good", local_steps=2)
    folders = make_sites(tmp_path / "world")
    for key in ("num-clients", "num-rounds", "split"):
        del values[key]
    tiny = " ".join(f"{key}={json.dumps(value)}" for key, value in values.items())

    port, internal, home = free_port(), free_port(), tmp_path / "fedasym-server"
    here = f"--host 127.0.0.1 --listen 127.0.0.1 --port {port} --internal-port {internal}"
    shell(block("python -m server init").replace("--host fed.example.org --port 8443", here))
    up, status = block("python -m server up").splitlines()
    with ExitStack() as stack:
        log = tmp_path / "up.log"
        process = stack.enter_context(started(["bash", "-c", f"exec {up}"], environment, tmp_path, log))
        server = Server(home, port, Superlink(home / "flwr", internal, environment, log, "federation"), process, log)
        wait_for(lambda: "for LABELS" in log.read_text(), server, SECONDS)
        for name in ("north", "south"):  # a quorum of 2
            stack.enter_context(site_up(server, name, folders / name, "--labels", "bad,good"))
        await_sites(server, 2)
        said = shell(status)
        assert re.search(r"north +online", said) and re.search(r"east +registered", said)

        run = block("export FLWR_HOME").replace('labels="0,1" data="reviews" model="minilm"', tiny)
        said = shell(run, PROJECT)
        folder = trained(said)
        assert [row["clients_valid"] for row in rounds(folder)] == 5 * [2]
        found = json.loads(shell(f"{status.partition('#')[0]} --json"))
        assert found["run"]["status"] == "finished:completed" and found["run"]["run_id"] in said
        assert found["run"]["fab_hash"] == bundle_digest()
        assert (found["record"]["round"], found["record"]["rounds"], found["record"]["folder"]) == (5, 5, str(folder))
        assert found["record"]["value"] is not None
        settings = re.findall(r'\S+?=(?:"[^"]*"|\S+)', shlex.split(run)[-1])
        (tmp_path / "settings.toml").write_text("\n".join(settings) + "\n")
        said = shell(block("python -m server pins"))
        assert read_json(folder / "config.json")["contract_hash"] in said and bundle_digest() in said

        printed = "\n".join(line for line in log.read_text().splitlines() if line.startswith("  "))
        assert 'sites="north,south,east" labels="LABELS" data="DATA" model="MODEL"' in printed
        filled = printed.replace('labels="LABELS" data="DATA" model="MODEL"', f"{tiny} quorum=2 num-rounds=1")
        assert len(rounds(trained(shell(filled)))) == 1

        assert "stays barred for good" in shell(block("python -m server remove"))
        assert "east" not in shell(status)


def trained(said: str) -> Path:
    """The folder of the run whose output this is."""
    report = re.search(r"report (\S+)/report\.html", said)
    assert report, said
    return Path(report[1])


def rounds(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]
