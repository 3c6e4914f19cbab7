"""A site needs no Ray, no plots and no public data sets, a server no Ray; what is missing is named with its extra."""

import ast
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from world import make_sites, site_settings

from fedasym.runs.record import read_json, read_rounds

ROOT = Path(__file__).resolve().parents[2]
# What a site's installation lacks, in a Python that refuses to import it.
ABSENT_AT_A_SITE = ("ray", "matplotlib", "seaborn", "datasets", "flwr_datasets")
WITHOUT = """
import importlib.abc, sys
class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {absent!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Absent())
"""


def python(code: str, absent: tuple[str, ...], *words: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", WITHOUT.format(absent=absent) + code, *words]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


def test_what_a_site_runs_imports_nothing_that_it_has_not_installed() -> None:
    code = """
import clients.app, clients.handle, clients.deploy.up, clients.deploy.plan, clients.worker.service, clients.worker.child
import clients.deploy.data_check
print("imported")
"""
    done = python(code, ABSENT_AT_A_SITE)
    assert done.stdout == "imported\n", done.stderr


def test_sites_and_their_server_run_without_ray_and_plots_and_the_report_alone_is_left_out(tmp_path: Path) -> None:
    sites = make_sites(tmp_path)
    settings = site_settings(tmp_path, out=str(tmp_path / "run"), num_rounds=1)
    code = f"""
from pathlib import Path
from fedasym.settings import from_run_config
from simulations.engines.in_process import run_local
run_local(from_run_config({settings.run_config()!r}), 1, Path({str(sites)!r}))
"""
    done = python(code, ABSENT_AT_A_SITE)
    assert done.returncode == 0, done.stderr
    assert len(read_rounds(tmp_path / "run")) == 1
    assert "no report: matplotlib is not installed; pip install 'fedasym[report]'" in done.stdout + done.stderr
    assert (tmp_path / "run" / "adapter").exists() and not (tmp_path / "run" / "report.html").exists()
    assert read_json(tmp_path / "run" / "summary.json")["rounds"] == 1


def test_a_command_that_lacks_its_libraries_names_the_extra_and_shows_no_traceback() -> None:
    code = "import sys; from simulations.__main__ import main; sys.exit(main(sys.argv[1:]))"
    done = python(code, ("matplotlib",), "tables")
    said = " ".join((done.stdout + done.stderr).split())
    assert done.returncode == 1 and "Traceback" not in said
    assert "matplotlib is not installed; pip install 'fedasym[report]'" in said


@pytest.mark.parametrize("part", ["fedasym", "server", "clients", "simulations"])
def test_every_library_that_is_imported_is_a_dependency_of_some_extra(part: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [
        *project["dependencies"],
        *(each for extra in project["optional-dependencies"].values() for each in extra),
    ]
    named = {re.split(r"[\[><=]", each)[0].replace("-", "_").lower() for each in wanted}
    own_names = {"scikit_learn": "sklearn", "grpcio": "grpc", "grpcio_health_checking": "grpc_health"}
    named = {own_names.get(each, each) for each in named}
    imported = set()
    for path in (ROOT / part).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                imported.add(node.module.partition(".")[0])
    ours = {"fedasym", "server", "clients", "simulations"}
    assert imported - set(sys.stdlib_module_names) - ours - named == set()
