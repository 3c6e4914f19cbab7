"""The unit files and the compose file are well formed and call commands that exist."""

import configparser
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from clients.__main__ import _parser as site_parser
from fedasym.settings import from_run_config
from server.__main__ import _parser

UNITS = Path(__file__).parents[3] / "docs" / "units"
SERVICES = sorted(UNITS.glob("*.service"))
COMPOSE = UNITS / "compose.yaml"
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


def commands(unit: Path, word: str) -> list[list[str]]:
    """The commands in a file's comments that hold a word, each as its words."""
    lines = [line[3:] for line in unit.read_text().splitlines() if line.startswith("#   ")]
    return [words for words in map(shlex.split, lines) if word in words]


def compose() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(COMPOSE.read_text())
    return found


def mounts(service: str) -> dict[Path, dict[str, Any]]:
    """What a container sees of its machine, by where it sees it."""
    return {Path(mount["target"]): mount for mount in compose()["services"][service]["volumes"]}


def after(words: list[str], word: str) -> list[str]:
    return words[words.index(word) + 1 :]


def test_the_servers_unit_and_container_run_the_home_that_their_words_make() -> None:
    unit = UNITS / "fedasym-server.service"
    words = shlex.split(read(unit)["Service"]["ExecStart"])
    assert words[:3] == [PYTHON, "-m", "server"]
    (init,) = commands(unit, "init")
    made = _parser().parse_args(after(init, "server"))
    up = _parser().parse_args(words[3:])
    assert (made.command, up.command) == ("init", "up") and made.home == up.home

    server = compose()["services"]["server"]
    assert server["entrypoint"] == ["python", "-m", "server"]
    (init,) = commands(COMPOSE, "init")
    made, up = _parser().parse_args(after(init, "server")), _parser().parse_args(server["command"])
    assert (made.command, up.command) == ("init", "up") and made.home == up.home
    assert up.home.parent in mounts("server") and f"{made.port}:{made.port}" in server["ports"]


def test_the_folder_of_the_servers_home_is_made_for_its_user_before_init_needs_it() -> None:
    unit = UNITS / "fedasym-server.service"
    service = read(unit)["Service"]
    (install,), (init,) = commands(unit, "install"), commands(unit, "init")
    folder = Path(install[-1])
    assert install == shlex.split(f"install -d -o {service['User']} -g {service['Group']} -m 700 {folder}")
    assert folder == Path("/var/lib", service["StateDirectory"])
    assert folder == _parser().parse_args(after(init, "server")).home.parent
    text = unit.read_text()
    assert text.index("useradd") < text.index("install -d") < text.index("-m server init")
    assert init[:3] == ["sudo", "-u", service["User"]]


def test_the_sites_unit_and_container_call_a_command_of_ours_and_keep_their_state_where_they_may_write() -> None:
    unit = UNITS / "fedasym-site.service"
    words = shlex.split(read(unit)["Service"]["ExecStart"])
    assert words[:3] == [PYTHON, "-m", "clients"]
    told = site_parser().parse_args(words[3:])
    assert told.state.is_relative_to(Path("/var/lib", read(unit)["Service"]["StateDirectory"]))
    assert str(told.kit) in read(unit)["Service"]["ReadOnlyPaths"]

    site = compose()["services"]["site"]
    assert site["entrypoint"] == ["python", "-m", "clients"]
    told = site_parser().parse_args(site["command"])
    assert not any(told.state.is_relative_to(folder) for folder in site["tmpfs"])  # noexec, and scripts are run there
    assert not mounts("site")[told.state.parent].get("read_only")
    assert mounts("site")[told.kit]["read_only"] and mounts("site")[told.data]["read_only"]


def test_the_compose_file_has_a_server_and_a_site_that_drop_what_they_do_not_need() -> None:
    services = compose()["services"]
    assert set(services) == {"server", "site"}
    for each in services.values():
        assert each["cap_drop"] == ["ALL"] and each["read_only"] and each["init"]
    assert "ports" not in services["site"]


def test_containers_see_folders_that_are_named_in_full_and_that_docker_never_makes() -> None:
    dockerfile = compose()["x-fedasym"]["build"]["dockerfile_inline"]
    user = re.search(r"useradd --uid (\d+)", dockerfile)
    assert user
    made = [
        shlex.split(f"install -d -o {user[1]} -g {user[1]} -m 700 {mounts(name)[Path('/state')]['source']}")
        for name in ("server", "site")
    ]
    assert commands(COMPOSE, "install") == made
    for name in ("server", "site"):
        for mount in mounts(name).values():
            assert mount["type"] == "bind" and Path(mount["source"]).is_absolute()
            assert mount["bind"] == {"create_host_path": False}


def test_the_image_holds_what_it_copies_and_the_packages_of_the_default_settings() -> None:
    build = compose()["x-fedasym"]["build"]
    context = (UNITS / build["context"]).resolve()
    copied = [
        word
        for line in build["dockerfile_inline"].splitlines()
        if line.startswith("COPY")
        for word in line.split()[1:-1]
    ]
    assert {"fedasym", "server", "clients", "pyproject.toml"} <= {*copied}
    assert all((context / name).exists() for name in copied)
    install = next(line for line in build["dockerfile_inline"].splitlines() if " pip install " in line)
    assert shlex.split(install)[-1] == ".[$${EXTRAS}]"  # one dollar of the two is Compose's
    known = tomllib.loads((context / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for name in ("server", "site"):
        chosen = compose()["services"][name]["build"]
        assert chosen == {**build, "args": {"EXTRAS": f"{name},demo"}}
        assert {name, "demo"} <= known.keys()


@pytest.mark.parametrize("file", [COMPOSE, UNITS / "fedasym-server.service"], ids=lambda file: file.stem)
def test_a_training_is_started_with_sites_and_labels_and_flower_is_kept_quiet(file: Path) -> None:
    (run,) = commands(file, "--stream")
    assert run[-7].endswith("flwr") and run[-6:-1] == ["run", ".", "federation", "--stream", "-c"]
    config = dict(re.findall(r'(\S+)="(.*?)"', run[-1]))
    from_run_config({**config, "labels": config["labels"].replace("LABELS", "no,yes")})
    assert config == {"sites": "north,south", "labels": "LABELS", "data": "DATA", "model": "MODEL"}
    environment = (
        compose()["services"]["server"]["environment"]
        if file == COMPOSE
        else dict(word.split("=", 1) for word in run if word.startswith("FLWR_"))
    )
    assert {key: environment[key] for key in ("FLWR_TELEMETRY_ENABLED", "FLWR_DISABLE_UPDATE_CHECK")} == {
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
    }
    (init,) = commands(file, "init")
    home = _parser().parse_args(after(init, "server")).home
    assert environment["FLWR_HOME"] == str(home / "flwr")
