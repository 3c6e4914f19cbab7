"""A whole federation on this machine, for real: certificates, a server behind a proxy, three sites, one run.

Nothing is simulated but the distance: every part is started by the command that an engineer would type on a machine of
its own. The same three data folders are then trained on in this process, and the digests must be equal.
"""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import tomli_w
from rich.console import Console
from rich.table import Table

from fedasym.data.examples import load_examples
from fedasym.data.partition import partition
from fedasym.ops.app_bundle import PROJECT
from fedasym.ops.flower_cli import FlowerError
from fedasym.ops.processes import flower_environment, free_port, started, tail
from fedasym.runs.record import read_json, read_rounds
from fedasym.settings import Settings
from server.deploy.home import read_home
from server.deploy.nginx import ProxyError, find_nginx
from server.deploy.status import status as server_status
from simulations.cli.display import Follower
from simulations.cli.waiting import waiting
from simulations.engines.superlink import Superlink, run_app
from simulations.folders import clear, is_federation
from simulations.run import read_settings, run

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
        out: folder of all that is made; an earlier federation's is replaced.
        overrides: ``key=value`` settings on top of ``configs/federation.toml``.
        console: where to show it.

    Raises:
        FileExistsError: ``out`` holds something else.
        FlowerError: a part did not come up, the run did not complete, or the digests differ.
    """
    out = out.absolute()
    clear(out, is_federation, "federation (it has no server/server.toml)")
    settings = read_settings(CONFIG, overrides, out / "deployed")
    data = write_site_data(out / "data", settings)
    console.print(f"data of {', '.join(settings.site_names)}: {data}", markup=False, soft_wrap=True)
    began, names = time.monotonic(), settings.site_names
    proxy = has_nginx()
    if not proxy:
        console.print(
            "[bold]nginx is missing[/bold] (apt-get install nginx-light): the sites reach the SuperLink without a "
            "proxy, and its exposure is not shown"
        )
    with ExitStack() as stack:
        with waiting("bringing the server up", console):
            server = stack.enter_context(server_up(out, names, proxy))
        behind = ", behind nginx" if proxy else ""
        console.print(f"server up after {time.monotonic() - began:.0f} s{behind}")
        for name in names:
            stack.enter_context(site_up(server, name, data / name, "--labels", settings.labels))
        with waiting(f"bringing up the sites {', '.join(names)}: each loads PyTorch and the model", console):
            await_sites(server, len(names))
        console.print(f"{len(names)} sites online after {time.monotonic() - began:.0f} s")
        with Follower(f"{', '.join(names)}, through sockets", Path(settings.out), settings.num_rounds, console):
            deployed = run_app(server.link, settings)
        with waiting("ending the sites and the server", console):
            stack.close()
    console.print("everything is ended; now the same three folders in one process")
    simulated = run(read_settings(CONFIG, overrides, out / "simulated"), "local", 2, console, data)
    _compare(deployed, simulated, console)


def write_site_data(folder: Path, settings: Settings) -> Path:
    """Write each site's share of the packaged reviews as a folder of its own, in a format of its own.

    Returns:
        The folder that holds one folder per site.
    """
    whole = Settings(num_clients=len(settings.site_names))
    train, _ = load_examples(whole)
    for name, places in zip(settings.site_names, partition(train, whole).indices, strict=True):
        (folder / name).mkdir(parents=True)
        share = train.take(places)
        frame = pd.DataFrame({"text": share.inputs[0], "label": [train.class_names[i] for i in share.labels]})
        _WRITERS[name](frame, folder / name)
    return folder


@dataclass(frozen=True)
class Server:
    """A server that is up.

    Attributes:
        home: its folder.
        port: of 127.0.0.1, where sites reach it.
        link: what `run_app` needs.
        process: `python -m server up`.
        log_file: what it prints.
    """

    home: Path
    port: int
    link: Superlink
    process: subprocess.Popen[bytes]
    log_file: Path


@contextmanager
def server_up(out: Path, names: Sequence[str], proxy: bool) -> Iterator[Server]:
    """Make a server's home in ``out/server`` with a kit for each site, bring the server up, and end it.

    Args:
        out: folder of the home and the logs.
        names: of the sites.
        proxy: whether nginx stands before the SuperLink; without it the sites reach the SuperLink itself.

    Raises:
        FlowerError: it did not come up.
    """
    home, log_file = out / "server", out / "server.log"
    environment = flower_environment(home / "flwr")
    public, internal = free_port(), free_port()
    ports = ["--port", str(public), "--internal-port", str(internal)]
    init = ["init", str(home), "--host", "127.0.0.1", "--listen", "127.0.0.1", *ports, "--sites", ",".join(names)]
    _call([sys.executable, "-m", "server", *init], environment)
    up = [sys.executable, "-m", "server", "up", str(home), *([] if proxy else ["--no-proxy"])]
    with started(up, environment, PROJECT, log_file) as process:
        link = Superlink(home / "flwr", internal, environment, log_file, "federation")
        server = Server(home, public if proxy else internal, link, process, log_file)
        wait_for(lambda: "next, " in tail(log_file), server, _SERVER_SECONDS)
        yield server


@contextmanager
def site_up(server: Server, name: str, data: Path, *options: str, port: int = 0) -> Iterator[subprocess.Popen[bytes]]:
    """Bring a site up by its command, and end it; its state and log are in the folder of the server's home.

    Args:
        server: that made its kit.
        name: of the site.
        data: its folder.
        *options: further words for ``python -m clients up``.
        port: of 127.0.0.1, where it shall reach the server instead.
    """
    out = server.home.parent
    kit = server.home / "sites" / name
    (kit / "site.toml").write_text(tomli_w.dumps({"name": name, "server": f"127.0.0.1:{port or server.port}"}))
    command = [sys.executable, "-m", "clients", "up", "--kit", str(kit), "--data", str(data)]
    command += ["--state", str(out / "sites" / name), *options]
    with started(command, server.link.environment, PROJECT, out / f"{name}.log") as process:
        yield process


def await_sites(server: Server, count: int, seconds: float = _SITES_SECONDS) -> None:
    """Wait until as many sites are online.

    Raises:
        FlowerError: they are not in time.
    """
    # What the sites say is asked first: to ask the server takes a process of 2 s of a core, which they need.
    wait_for(lambda: _said_up(server) >= count and online(server) == count, server, seconds)


def _said_up(server: Server) -> int:
    """Return how many sites have said that they are up, now or in an earlier life."""
    logs = (server.home.parent / f"{name}.log" for name in read_home(server.home).sites)
    return sum(f"site {log.stem} is up" in tail(log) for log in logs)


def online(server: Server) -> int | None:
    """Return how many sites are online; None while the server does not answer."""
    status = server_status(read_home(server.home))
    return sum(site["status"] == "online" for site in status["sites"]) if status["up"] else None


def wait_for(condition: Callable[[], bool], server: Server, seconds: float) -> None:
    """Wait for a condition while the server lives.

    Raises:
        FlowerError: the server ended, or the time is up; holds the ends of all logs.
    """
    deadline, folder = time.monotonic() + seconds, server.home.parent
    while not condition():
        if server.process.poll() is not None:
            raise FlowerError(f"the server ended with {server.process.returncode}:\n{tail(server.log_file)}")
        if time.monotonic() > deadline:
            logs = "\n".join(f"{file.name}:\n{tail(file, 15)}" for file in sorted(folder.glob("*.log")))
            raise FlowerError(f"not ready within {seconds} s; the ends of the logs in {folder}:\n{logs}")
        time.sleep(_LOOK_SECONDS)


def has_nginx() -> bool:
    """Say whether nginx is installed."""
    try:
        find_nginx()
    except ProxyError:
        return False
    return True


def _call(command: list[str], environment: Mapping[str, str]) -> str:
    done = subprocess.run(command, env=environment, cwd=PROJECT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise FlowerError(f"`{' '.join(command[1:])}` failed:\n{done.stdout}{done.stderr}")
    return done.stdout


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
    console.print(f"report {deployed / 'report.html'}", markup=False, soft_wrap=True)
