"""The unit files and the compose file are well formed and call commands that exist."""

import configparser
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from clients.__main__ import _parser as site_parser
from server.__main__ import _parser

UNITS = Path(__file__).parents[1] / "docs" / "units"
SERVICES = sorted(UNITS.glob("*.service"))
PYTHON = "/opt/fedasym/.venv/bin/python"


def read(unit: Path) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(strict=True, interpolation=None, comment_prefixes=("#",))
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(unit.read_text())
    return parser


def test_there_is_a_unit_for_the_server_and_one_for_a_site() -> None:
    assert [unit.stem for unit in SERVICES] == ["fedasym-server", "fedasym-site"]


@pytest.mark.parametrize("unit", SERVICES, ids=lambda unit: unit.stem)
def test_a_unit_is_what_systemd_takes(unit: Path, tmp_path: Path) -> None:
    sections = read(unit)
    assert sections.sections() == ["Unit", "Service", "Install"]
    assert sections["Service"]["User"] != "root" and sections["Service"]["KillMode"] == "mixed"
    if analyse := shutil.which("systemd-analyze"):
        here = tmp_path / unit.name
        here.write_text(unit.read_text().replace(PYTHON, sys.executable))  # it asks whether the command exists
        done = subprocess.run([analyse, "verify", str(here)], capture_output=True, text=True, check=False)
        assert done.returncode == 0 and not done.stderr.strip(), done.stderr


def test_the_servers_unit_and_container_call_a_command_of_ours() -> None:
    words = shlex.split(read(UNITS / "fedasym-server.service")["Service"]["ExecStart"])
    assert words[:3] == [PYTHON, "-m", "server"]
    assert _parser().parse_args(words[3:]).command == "up"
    server = yaml.safe_load((UNITS / "compose.yaml").read_text())["services"]["server"]
    assert server["entrypoint"] == ["python", "-m", "server"]
    assert _parser().parse_args(server["command"]).home == Path("/state/home")


def test_the_sites_unit_and_container_call_a_command_of_ours_and_keep_their_state_where_they_may_write() -> None:
    words = shlex.split(read(UNITS / "fedasym-site.service")["Service"]["ExecStart"])
    assert words[:3] == [PYTHON, "-m", "clients"]
    assert site_parser().parse_args(words[3:]).state.is_relative_to("/var/lib/fedasym")  # its StateDirectory
    site = yaml.safe_load((UNITS / "compose.yaml").read_text())["services"]["site"]
    assert site["entrypoint"] == ["python", "-m", "clients"]
    assert site_parser().parse_args(site["command"]).state.is_relative_to("/state")


def test_the_compose_file_has_a_server_and_a_site_that_drop_what_they_do_not_need() -> None:
    services = yaml.safe_load((UNITS / "compose.yaml").read_text())["services"]
    assert set(services) == {"server", "site"}
    for each in services.values():
        assert each["cap_drop"] == ["ALL"] and each["read_only"] and each["init"]
    read_only = {volume for volume in services["site"]["volumes"] if volume.endswith(":ro")}
    assert read_only == {"./kit:/kit:ro", "./data:/data:ro"} and "ports" not in services["site"]
    assert os.sep not in str(services["server"]["ports"])
