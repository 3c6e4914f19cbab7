"""A deployment of real processes: nginx, TLS, keys, three sites with warm workers; what it survives, and its bits."""

import json
import signal
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest
from deployed import LONG, NAMES, Running, at_work, child_of, server, sites, world
from pictures import STYLES, image_values, make_domains
from quiz import SUBJECTS, quiz_values
from summaries import SECTIONS, values_of
from world import simulate, site_settings

from fedasym.files import read_lines
from fedasym.runs.record import read_json, read_rounds
from fedasym.settings import from_run_config
from simulations.engines.superlink import run_app
from simulations.federation import await_sites, site_up

__all__ = ["server", "sites", "world"]  # fixtures
pytestmark = [pytest.mark.slow, pytest.mark.deployed]


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
    killed = child_of(psutil.Process(server.process.pid), "flower-superlink")
    killed.kill()
    rows = run.end()
    assert child_of(psutil.Process(server.process.pid), "flower-superlink") != killed
    assert "superlink ready again" in server.log_file.read_text()
    simulated = simulate(
        site_settings(world, out=str(world / "superlink-simulated"), num_rounds=5, **LONG), 2, world / "sites"
    )
    assert rows[0]["digest"] == read_rounds(simulated)[0]["digest"]
    assert rows[-1]["clients_valid"] == 3 and rows[-1]["round"] == 5
