"""A whole federation on this machine, for real: certificates, a server behind a proxy, three sites, one run.

Nothing is simulated but the distance: every part is started by the command that an engineer would type on a machine of
its own. The same three data folders are then trained on in this process, and the digests must be equal.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console
from rich.table import Table

from fedasym.data import load_examples
from fedasym.partition import partition
from fedasym.processes import flower_environment, free_port, started, tail
from fedasym.record import read_json, read_rounds
from fedasym.settings import Settings
from simulations.display import Follower
from simulations.run import read_settings, run
from simulations.superlink import PROJECT, FlowerError, Superlink, run_app

CONFIG = Path(__file__).parent / "configs" / "federation.toml"
_WRITERS: dict[str, Callable[[pd.DataFrame, Path], None]] = {
    "north": lambda frame, folder: frame.to_csv(folder / "train.csv", index=False),
    "south": lambda frame, folder: frame.to_json(folder / "train.jsonl", orient="records", lines=True),
    "east": lambda frame, folder: frame.to_parquet(folder / "train.parquet"),
}
_SERVER_SECONDS, _SITES_SECONDS = 90.0, 240.0
_LOOK_SECONDS = 0.5


def federation(out: Path, overrides: list[str], console: Console) -> None:
    """Run the federation and its simulation, and compare.

    Args:
        out: folder of all that is made; an earlier one is replaced.
        overrides: ``key=value`` settings on top of ``configs/federation.toml``.
        console: where to show it.

    Raises:
        FlowerError: a part did not come up, the run did not complete, or the digests differ.
    """
    out = out.absolute()
    if out.exists():
        shutil.rmtree(out)
    settings = read_settings(CONFIG, overrides, out / "deployed")
    data = write_site_data(out / "data", settings)
    console.print(f"data of {', '.join(settings.site_names)}: {data}", soft_wrap=True)
    proxy = have_nginx(console)
    deployed = deploy(out, settings, data, proxy, console)
    console.print("the same three folders in one process")
    simulated = run(read_settings(CONFIG, overrides, out / "simulated"), "local", 2, console, data)
    _compare(deployed, simulated, console)


def write_site_data(folder: Path, settings: Settings) -> Path:
    """Write each site's share of the packaged reviews as a folder of its own, in a format of its own.

    Returns:
        The folder that holds one folder a site.
    """
    whole = Settings(num_clients=len(settings.site_names))
    train, _ = load_examples(whole)
    for name, places in zip(settings.site_names, partition(train, whole).indices, strict=True):
        (folder / name).mkdir(parents=True)
        share = train.take(places)
        frame = pd.DataFrame({"text": share.texts[0], "label": [train.class_names[i] for i in share.labels]})
        _WRITERS[name](frame, folder / name)
    return folder


def have_nginx(console: Console) -> bool:
    """Say whether nginx is there; install Debian's package where we may."""
    if shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin"):
        return True
    if shutil.which("apt-get") and os.geteuid() == 0:
        console.print("installing nginx-light")
        command = "apt-get install -y nginx-light || (apt-get update && apt-get install -y nginx-light)"
        done = subprocess.run(["sh", "-c", command], capture_output=True, check=False)
        if done.returncode == 0:
            return True
    console.print(
        "[bold]nginx is missing[/bold] and cannot be installed from here (apt-get install nginx-light): the sites "
        "reach the SuperLink without a proxy, and its exposure is not shown"
    )
    return False


def deploy(out: Path, settings: Settings, data: Path, proxy: bool, console: Console, *options: str) -> Path:
    """Start a server and its sites by their commands, run the app, end everything.

    Args:
        out: folder of the server's home, the sites' states and the logs.
        settings: of the run; ``out`` names the run folder.
        data: holds one folder a site.
        proxy: whether nginx stands before the SuperLink.
        console: where to show it.
        *options: further words for ``python -m clients up``.

    Returns:
        The run folder.
    """
    home, python = out / "server", sys.executable
    quiet = flower_environment(home / "flwr")
    names = ",".join(settings.site_names)
    began = time.monotonic()
    with ExitStack() as stack:
        port = str(free_port())
        _call(
            [python, "-m", "server", "init", str(home), "--host", "127.0.0.1", "--port", port, "--sites", names], quiet
        )
        up = [python, "-m", "server", "up", str(home), *([] if proxy else ["--no-proxy"])]
        server = stack.enter_context(started(up, quiet, PROJECT, out / "server.log"))
        _wait(lambda: _online(home, quiet) is not None, server, out / "server.log", _SERVER_SECONDS)
        console.print(f"server up after {time.monotonic() - began:.0f} s{', behind nginx' if proxy else ''}")
        for name in settings.site_names:
            command = [
                python, "-m", "clients", "up", "--kit", str(home / "sites" / name), "--data", str(data / name),
                "--state", str(out / "sites" / name), "--labels", settings.labels, *options,
            ]  # fmt: skip
            stack.enter_context(started(command, quiet, PROJECT, out / f"{name}.log"))
        _wait(lambda: _online(home, quiet) == len(settings.site_names), server, out / "server.log", _SITES_SECONDS)
        console.print(f"{len(settings.site_names)} sites online after {time.monotonic() - began:.0f} s")
        link = Superlink(home / "flwr", 0, quiet, out / "server.log", "federation")
        with Follower(f"{names} through sockets", Path(settings.out), settings.num_rounds, console):
            return run_app(link, settings)


def _call(command: list[str], environment: Mapping[str, str]) -> str:
    done = subprocess.run(command, env=environment, cwd=PROJECT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise FlowerError(f"`{' '.join(command[1:])}` failed:\n{done.stdout}{done.stderr}")
    return done.stdout


def _online(home: Path, environment: Mapping[str, str]) -> int | None:
    """Return how many sites are online; None while the server does not answer."""
    command = [sys.executable, "-m", "server", "status", str(home), "--json"]
    done = subprocess.run(command, env=environment, cwd=PROJECT, capture_output=True, text=True, check=False)
    if done.returncode:
        return None
    status: dict[str, Any] = json.loads(done.stdout)
    return sum(bool(site["online"]) for site in status["sites"])


def _wait(condition: Callable[[], bool], process: subprocess.Popen[bytes], log_file: Path, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if process.poll() is not None:
            raise FlowerError(f"the server ended with {process.returncode}:\n{tail(log_file)}")
        if time.monotonic() > deadline:
            logs = "\n".join(f"{file.name}:\n{tail(file, 15)}" for file in sorted(log_file.parent.glob("*.log")))
            raise FlowerError(f"not ready within {seconds} s; the ends of the logs in {log_file.parent}:\n{logs}")
        time.sleep(_LOOK_SECONDS)


def _compare(deployed: Path, simulated: Path, console: Console) -> None:
    table = Table()
    for head in ("", "final", "seconds of each round", "digest of the final B"):
        table.add_column(head)
    digests = []
    for name, folder in (("deployed", deployed), ("simulated", simulated)):
        summary, rounds = read_json(folder / "summary.json"), read_rounds(folder)
        digests.append(summary["digest"])
        seconds = ", ".join(f"{row['seconds']:.1f}" for row in rounds)
        table.add_row(name, f"{summary['metric']} {summary['final']:.3f}", seconds, summary["digest"][:16])
    console.print(table)
    if digests[0] != digests[1]:
        raise FlowerError(f"the digests differ: deployed {digests[0]}, simulated {digests[1]}")
    console.print(f"same bits: {digests[0]}")
    console.print(f"report {deployed / 'report.html'}", soft_wrap=True)
