"""A deployment of real processes: nginx, TLS, keys, three sites with warm workers; what it survives, and its bits."""

import json
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import psutil
import pytest
from pictures import STYLES, image_values, make_domains
from quiz import SUBJECTS, quiz_values
from summaries import SECTIONS, values_of
from world import make_sites, simulate, site_settings

from fedasym.files import read_lines
from fedasym.runs.record import read_json, read_rounds
from fedasym.settings import from_run_config
from simulations.engines.superlink import run_app
from simulations.federation import Server, await_sites, has_nginx, server_up, site_up

pytestmark = [pytest.mark.slow, pytest.mark.deployed]
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


def test_a_site_comes_late_leaves_and_comes_back(server, world) -> None:  # first: it brings up sites of its own
    with ExitStack() as stack:
        for name in ("north", "south"):
            stack.enter_context(site_up(server, name, world / "sites" / name, "--labels", "bad,good"))
        await_sites(server, 2)
        run = Running(server, world, "late", num_rounds=30, quorum=2)
        run.until(lambda: len(run.rows) >= 1)
        assert run.rows[0]["asked"] == [0, 1]
        for _ in range(2):  # late, and back
            with site_up(server, "east", world / "sites" / "east", "--labels", "bad,good"):
                before = len(run.rows)
                run.until(lambda before=before: any("2" in row["weights"] for row in run.rows[before:]))
            left = len(run.rows)
            run.until(lambda left=left: any(row["asked"] == [0, 1] for row in run.rows[left:]))
        rows = run.end()
    assert all(row["clients_valid"] >= 2 for row in rows)


OF_FAMILIES = {  # what each site lends, by the run's settings
    "instruct": ["--task", "instruct"],
    "summarize": ["--task", "summarize", "--text-columns", "document"],
    "images": ["--task", "images", "--image-layout", "domains", "--labels", "bar,ring"],
}


def of_family(task: str, root: Path, models: dict[str, Path]) -> dict[str, object]:
    """Make the data of two sites, ``root/NAME``, and return the run config that trains on them."""
    if task == "images":
        values = image_values(root, labels="bar,ring")
        for name, style in zip(NAMES[:2], tuple(STYLES)[:2], strict=True):
            make_domains(root / name, (style,))
    else:
        values = quiz_values(root, choices_data="") if task == "instruct" else values_of("bart", models, root)
        values = {key: value for key, value in values.items() if not key.startswith("choices")}
        column, parts = ("subject", SUBJECTS) if task == "instruct" else ("section", SECTIONS)
        rows = read_lines(Path(str(values["data"])) / str(values.get("data-config", "")) / "train.jsonl")
        for name, part in zip(NAMES[:2], parts[:2], strict=True):
            (root / name).mkdir()
            own = [json.dumps(row) for row in rows if row[column] == part]
            (root / name / "train.jsonl").write_text("\n".join(own) + "\n")
    for key in ("split", "num-clients", "data-config", "hold-out-domain", "test-split"):
        values.pop(key, None)
    own = {"sites": ",".join(NAMES[:2]), "data": "none", "client-holdout": 0.25, "num-rounds": 2}
    return values | own | {"round-timeout": 90.0}


@pytest.mark.parametrize("task", OF_FAMILIES)  # before the sites of the tests below are up
def test_each_family_ends_at_real_sites_with_the_bits_of_its_simulation(server, models, tmp_path, task: str) -> None:
    values = of_family(task, tmp_path, models)
    with ExitStack() as stack:
        for name in NAMES[:2]:
            stack.enter_context(site_up(server, name, tmp_path / name, *OF_FAMILIES[task]))
        await_sites(server, 2)
        run_app(server.link, from_run_config(values | {"out": str(tmp_path / "deployed")}))
    simulated = simulate(from_run_config(values | {"out": str(tmp_path / "simulated")}), 1, tmp_path)
    deployed = read_rounds(tmp_path / "deployed")
    assert [row["digest"] for row in deployed] == [row["digest"] for row in read_rounds(simulated)]
    assert [row["clients_valid"] for row in deployed] == [2, 2]
    assert len({row["digest"] for row in deployed}) == 2


def test_a_deployment_ends_with_the_bits_of_its_simulation(server, sites, world) -> None:
    deployed = Running(server, world, "deployed", quorum=3).end()
    simulated = simulate(site_settings(world, out=str(world / "simulated")), 1, world / "sites")
    assert [row["digest"] for row in deployed] == [row["digest"] for row in read_rounds(simulated)]
    assert all(row["rejections"] == {} and row["warnings"] == [] for row in deployed)
    there, here = read_json(world / "deployed/summary.json"), read_json(simulated / "summary.json")
    assert there["payload_up_per_client_round"] == here["payload_up_per_client_round"]


def test_a_hung_worker_is_killed_at_its_deadline_and_the_next_round_has_it_again(server, sites, world) -> None:
    run = Running(server, world, "hung", num_rounds=6)
    run.until(lambda: len(run.rows) >= 1)
    child_of(sites["south"], "clients.worker.child").send_signal(signal.SIGSTOP)
    rows = run.end()
    (failed,) = (row for row in rows if row["rejections"])
    assert list(failed["rejections"]) == ["1"] and "did not finish within 30 s" in failed["rejections"]["1"]
    assert set(failed["weights"]) == {"0", "2"}
    assert rows[-1]["clients_valid"] == 3


def test_a_worker_that_dies_in_the_midst_of_a_training_costs_its_site_one_round(server, sites, world) -> None:
    run = Running(server, world, "died", num_rounds=4, **LONG)
    run.until(lambda: len(run.rows) >= 1)
    worker = child_of(sites["north"], "clients.worker.child")
    run.until(at_work(worker))
    worker.kill()
    rows = run.end()
    (failed,) = (row for row in rows if row["rejections"])
    assert "the worker of site north was killed while it worked" in failed["rejections"]["0"]
    assert rows[-1]["clients_valid"] == 3


def test_a_supernode_that_is_killed_in_the_midst_of_a_round_comes_back(server, sites, world) -> None:
    run = Running(server, world, "supernode", num_rounds=6, round_timeout=45.0, **LONG)
    run.until(lambda: len(run.rows) >= 1)
    run.until(at_work(child_of(sites["east"], "clients.worker.child")))
    child_of(sites["east"], "flower-supernode").kill()
    rows = run.end()
    (failed,) = (row for row in rows if row["rejections"])
    assert list(failed["rejections"]) == ["2"] and set(failed["weights"]) == {"0", "1"}
    run = Running(server, world, "supernode-back", quorum=3, num_rounds=1)
    assert run.end()[-1]["clients_valid"] == 3


def test_a_superlink_that_is_killed_and_comes_back_loses_nothing(server, sites, world) -> None:
    run = Running(server, world, "superlink", num_rounds=5, quorum=3, round_timeout=150.0, **LONG)
    run.until(lambda: len(run.rows) >= 1)
    run.until(at_work(child_of(sites["east"], "clients.worker.child")))
    child_of(psutil.Process(server.process.pid), "flower-superlink").kill()
    rows = run.end()
    simulated = simulate(
        site_settings(world, out=str(world / "superlink-simulated"), num_rounds=5, **LONG), 2, world / "sites"
    )
    assert rows[0]["digest"] == read_rounds(simulated)[0]["digest"]
    assert rows[-1]["clients_valid"] == 3 and rows[-1]["round"] == 5
