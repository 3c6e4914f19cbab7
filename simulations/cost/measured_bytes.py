"""What really passes through the sockets: a deployment on this machine with a counting proxy before its SuperLink.

Nothing is simulated: a SuperLink, SuperNodes in processes of their own, and a process of Flower's for every message.
The nodes know the proxy's address only. The counts are read when the server has recorded a round, so what rounds 2 to
the last moved is told apart from registration, the app's bundle, the handshake and round 1.
"""

import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from fedasym.files import append_line
from fedasym.methods import METHODS
from fedasym.ops.app_bundle import PROJECT
from fedasym.ops.processes import free_port, started, tool
from fedasym.runs.record import read_rounds, versions
from fedasym.settings import Settings
from simulations.cost.counting_proxy import CountingProxy, Passed, counting_proxy
from simulations.engines.superlink import run_app, superlink

WAYS = ("up", "down")
_LOOK_SECONDS = 0.02  # a SuperNode asks for work every 3 s: far apart, compared with this


def measure(settings: Settings, methods: Sequence[str], nodes: int, out: Path, console: Console) -> None:
    """Run one deployment for each method and append a line for each to a file.

    Args:
        settings: of all runs; the run folders are made under ``out``'s, named by method.
        methods: their names.
        nodes: SuperNodes; clients share them where there are fewer.
        out: file of the lines.
        console: where progress is said.

    Raises:
        ValueError: an unknown method, fewer than two rounds, or a run folder that is used.
        FlowerError: a run did not complete.
    """
    if settings.num_rounds < 2:
        raise ValueError(f"num-rounds={settings.num_rounds}: rounds are counted from the second on; use at least 2")
    runs = [replace(settings, method=name, out=str(Path(settings.out) / name)) for name in methods]
    used = [each.out for each in runs if (Path(each.out) / "rounds.jsonl").exists()]
    if used:
        raise ValueError(f"{', '.join(used)} hold runs already, whose rounds would not pass again; remove them")
    for each in runs:
        started_at = time.perf_counter()
        line = measure_one(each, nodes)
        line["seconds"] = round(time.perf_counter() - started_at, 1)
        append_line(out, line)
        console.print(sentence(line), markup=False, soft_wrap=True)


def measure_one(settings: Settings, nodes: int) -> dict[str, Any]:
    """Run one federation as a deployment and return what passed, per client and round of rounds 2 to the last.

    Raises:
        FlowerError: the run did not complete.
    """
    folder = Path(settings.out).absolute()
    with ExitStack() as stack:
        link = stack.enter_context(superlink(folder / "flower.log"))
        proxy = stack.enter_context(counting_proxy(link.port))
        for share in range(nodes):
            command = [
                tool("flower-supernode"), "--insecure",
                "--superlink", f"127.0.0.1:{proxy.port}", "--port", str(free_port()),
                "--node-config", f"partition-id={share} num-partitions={nodes}",
            ]  # fmt: skip
            stack.enter_context(started(command, link.environment, PROJECT, folder / f"node-{share}.log"))
        watch = stack.enter_context(Watch(proxy, folder))
        run_app(link, settings)
        whole = proxy.totals()
    rows = read_rounds(folder)
    counted, asked = rows[1:], sum(row["clients_asked"] for row in rows[1:])
    first, last = watch.at[1], watch.at[len(rows)]
    line: dict[str, Any] = {
        "method": settings.method,
        "rounds": len(rows),
        "rounds_counted": [row["round"] for row in counted],
        "clients": settings.num_clients,
        "nodes": nodes,
        "connections": len(proxy.connections),
    }
    for way in WAYS:
        socket = getattr(last, way) - getattr(first, way)
        payload, message = (sum(row[f"{kind}_{way}"] for row in counted) for kind in ("payload", "message"))
        line |= {
            f"socket_{way}_per_client_round": socket / asked,
            f"payload_{way}_per_client_round": payload / asked,
            f"message_{way}_per_client_round": message / asked,
            f"socket_over_payload_{way}": socket / payload if payload else None,
            f"socket_{way}_total": getattr(whole, way),
            f"payload_{way}_total": sum(row[f"payload_{way}"] for row in rows),
        }
    line |= {
        "digest": rows[-1]["digest"],
        "seconds_of_counted_rounds": sum(row["seconds"] for row in counted),
        "socket_by_round": {number: asdict(passed) for number, passed in sorted(watch.at.items())},
        "settings": {key: value for key, value in asdict(settings.resolved()).items() if key != "out"},
        "versions": versions(),
    }
    return line


def sentence(line: dict[str, Any]) -> str:
    """Say a line in words."""
    ways = [
        f"{way} {line[f'socket_{way}_per_client_round']:,.0f} B of sockets for "
        f"{line[f'payload_{way}_per_client_round']:,.0f} B of payload"
        for way in WAYS
    ]
    return f"{METHODS[line['method']].label}: per client and round {', '.join(ways)}; {line['seconds']:.0f} s"


class Watch:
    """Notes the proxy's counts when a line of rounds.jsonl appears: ``at`` holds them by round."""

    def __init__(self, proxy: CountingProxy, folder: Path) -> None:
        self.at: dict[int, Passed] = {}
        self._proxy, self._file = proxy, folder / "rounds.jsonl"
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._look, name="rounds-watch", daemon=True)

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._done.is_set():
            if self._file.exists():
                for number in range(len(self.at) + 1, self._file.read_bytes().count(b"\n") + 1):
                    self.at[number] = self._proxy.totals()
            self._done.wait(_LOOK_SECONDS)
