"""Seconds of a deployed round with and without the warm worker, beside the same round in one process; see --out.

With --fork-server: with the warm worker, and with and without the fork server of its messages' processes, in turns.

Three sites with MiniLM behind TLS and node authentication, each in processes of its own on this machine; two kinds of
training: next to none (one step of one example), and ten steps of 16. A counting proxy between sites and
SuperLink gives the bytes through the sockets, TLS included. Overhead is the deployed round less the round in process.
"""

import shutil
import statistics
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.result_line import machine, make_parser, say
from clients.deploy.site_processes import GUARDED
from fedasym.runs.record import read_rounds
from simulations.cost.counting_proxy import counting_proxy
from simulations.cost.measured_bytes import Watch
from simulations.engines.in_process import run_local
from simulations.engines.superlink import run_app
from simulations.federation import CONFIG, await_sites, server_up, site_up, write_site_data
from simulations.run import read_settings

KINDS = {"next to none": ["local-steps=1", "batch-size=1"], "demo": ["local-steps=10", "batch-size=16"]}
FIRST = 2  # the first round counted: round 1 loads model and data


def deployed(
    root: Path, data: Path, overrides: list[str], *, worker: bool = True, fork_server: bool = True
) -> dict[str, Any]:
    """Run a federation as a deployment; return seconds of the counted rounds and socket bytes a site and round."""
    settings = read_settings(CONFIG, overrides, root / "run")
    with ExitStack() as stack:
        server = stack.enter_context(server_up(root, settings.site_names, proxy=False))
        between = stack.enter_context(counting_proxy(server.port))
        for name in settings.site_names:
            options = ["--labels", settings.labels, *([] if worker else ["--no-worker"])]
            stack.enter_context(site_up(server, name, data / name, *options, port=between.port))
        await_sites(server, len(settings.site_names))
        for name in settings.site_names if worker and not fork_server else ():
            (root / "sites" / name / "bin" / GUARDED).unlink()  # so Flower's own command is found
        watch = stack.enter_context(Watch(between, root / "run"))
        run_app(server.link, settings)
    rows = read_rounds(root / "run")
    first, last, asked = (
        watch.at[FIRST - 1],
        watch.at[len(rows)],
        sum(row["clients_asked"] for row in rows[FIRST - 1 :]),
    )
    return {
        "seconds": [row["seconds"] for row in rows[FIRST - 1 :]],
        "socket_up_per_site_round": round((last.up - first.up) / asked),
        "socket_down_per_site_round": round((last.down - first.down) / asked),
        "payload_up_per_site_round": rows[-1]["payload_up"] // rows[-1]["clients_asked"],
        "digest": rows[-1]["digest"],
    }


def measure(kind: str, rounds: int) -> dict[str, Any]:
    """Measure a kind of training three ways."""
    overrides = [*KINDS[kind], f"num-rounds={rounds}", f"eval-every={rounds}", "round-timeout=600.0"]
    with tempfile.TemporaryDirectory(prefix="fedasym-") as temporary:
        root = Path(temporary)
        settings = read_settings(CONFIG, overrides, root / "plain")
        data = write_site_data(root / "data", settings)
        plain = [row["seconds"] for row in read_rounds(run_local(settings, 2, data))[FIRST - 1 :]]
        ways = {}
        for way in ("worker", "no worker"):
            ways[way] = deployed(root / "d", data, overrides, worker=way == "worker")
            shutil.rmtree(root / "d")
    # The last round evaluates on the server; it is not counted.
    own = statistics.median(plain[:-1])
    medians = {way: statistics.median(found["seconds"][:-1]) for way, found in ways.items()}
    overhead = {way: median - own for way, median in medians.items()}
    return {
        "training": kind,
        "sites": len(settings.site_names),
        "rounds_counted": len(plain) - 1,
        "seconds_in_process": round(own, 2),
        **{f"seconds_{way.replace(' ', '_')}": round(median, 2) for way, median in medians.items()},
        **{f"overhead_{way.replace(' ', '_')}": round(seconds, 2) for way, seconds in overhead.items()},
        "overhead_ratio": round(overhead["no worker"] / overhead["worker"], 2),
        "same_digest": ways["worker"]["digest"] == ways["no worker"]["digest"],
        "ways": ways,
    }


def measure_fork_server(kind: str, rounds: int, sites: str, turns: int) -> dict[str, Any]:
    """Measure a kind of training with and without the fork server, in turns."""
    overrides = [*KINDS[kind], f"num-rounds={rounds}", f"eval-every={rounds}", "round-timeout=600.0", f"sites={sites}"]
    seconds: dict[str, list[float]] = {"with": [], "without": []}
    digests = set()
    with tempfile.TemporaryDirectory(prefix="fedasym-") as temporary:
        root = Path(temporary)
        data = write_site_data(root / "data", read_settings(CONFIG, overrides, root))
        for _ in range(turns):
            for way, found in seconds.items():
                run = deployed(root / "d", data, overrides, fork_server=way == "with")
                found += run["seconds"][:-1]
                digests.add(run["digest"])
                shutil.rmtree(root / "d")
    medians = {way: statistics.median(found) for way, found in seconds.items()}
    return {
        "training": kind,
        "sites": len(sites.split(",")),
        "rounds_counted": len(seconds["with"]),
        **{f"seconds_{way}": round(median, 2) for way, median in medians.items()},
        "ratio": round(medians["without"] / medians["with"], 3),
        "same_digest": len(digests) == 1,
        "seconds": seconds,
    }


def main() -> None:
    """Measure each kind of training and print a line for each."""
    parser = make_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="of each run; the first and the last are not counted")
    parser.add_argument("--fork-server", type=int, default=0, metavar="N", help="measure it instead, N times each way")
    parser.add_argument("--sites", default="north,south,east", help="with --fork-server; fewer have a core for each")
    arguments = parser.parse_args()
    for kind in KINDS:
        found = (
            measure_fork_server(kind, arguments.rounds, arguments.sites, arguments.fork_server)
            if arguments.fork_server
            else measure(kind, arguments.rounds)
        )
        name = "fork server" if arguments.fork_server else "deployment"
        say({"benchmark": name, **machine("flwr", "torch"), **found}, arguments.out)


if __name__ == "__main__":
    main()
