"""A deployment of real processes that tests share: nginx, TLS, keys, three sites with warm workers, and a run on it."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import psutil
import pytest
from world import make_sites, site_settings

from fedasym.runs.record import read_rounds
from simulations.engines.superlink import run_app
from simulations.federation import Server, await_sites, has_nginx, server_up, site_up

NAMES = ("north", "south", "east")
SECONDS = 180.0  # until something must have happened; many times what it takes
LONG = {"local_steps": 400}  # some seconds of the tiny model's training, so that a kill finds it at work


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("world")
    make_sites(root, NAMES)
    return root


@pytest.fixture(scope="module")
def server(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    assert has_nginx(), "nginx is missing: apt-get install nginx-light"
    with server_up(tmp_path_factory.mktemp("d"), NAMES, proxy=True) as found:
        yield found


@pytest.fixture(scope="module")
def sites(server: Server, world: Path) -> Iterator[dict[str, psutil.Process]]:
    """All three, up; a message may take 30 s at the second, and as long as it takes at the others."""
    with ExitStack() as stack:
        found = {}
        for name in NAMES:
            options = ["--labels", "bad,good", *(["--deadline", "30"] if name == "south" else [])]
            process = stack.enter_context(site_up(server, name, world / "sites" / name, *options))
            found[name] = psutil.Process(process.pid)
        await_sites(server, len(NAMES))
        yield found


class Running:
    """A run on a thread: what it has recorded so far, and its end."""

    def __init__(self, server: Server, world: Path, name: str, **more: object) -> None:
        self.folder, self._server, self._error = world / name, server, None
        self._settings = site_settings(world, **{"out": str(self.folder), "round_timeout": 90.0, "quorum": 2, **more})
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            run_app(self._server.link, self._settings)
        except Exception as error:
            self._error = error

    @property
    def rows(self) -> list[dict]:
        return read_rounds(self.folder)

    def until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + SECONDS
        while not condition():
            assert self._thread.is_alive(), f"the run ended before: {self._error}, {self.rows}"
            assert time.monotonic() < deadline, f"it did not come about: {self.rows}"
            time.sleep(0.02)  # a training is short

    def end(self) -> list[dict]:
        self._thread.join(2 * SECONDS)
        assert not self._thread.is_alive() and self._error is None, self._error
        return self.rows


def child_of(site: psutil.Process, word: str) -> psutil.Process:
    found = []
    for each in site.children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # the process of a message comes and goes
            found += [each] if word in " ".join(each.cmdline()) else []
    (child,) = found
    return child


def at_work(worker: psutil.Process) -> Callable[[], bool]:
    """Answer whether a worker, idle until now, has begun to compute: it is in the midst of a training."""
    before = sum(worker.cpu_times()[:2])
    return lambda: sum(worker.cpu_times()[:2]) > before + 0.2
