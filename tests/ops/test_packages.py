"""Two artefacts from one tree: the wheel holds fedasym alone, the app bundle holds what the apps import."""

import ast
import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from fedasym.ops.app_bundle import bundle_digest

ROOT = Path(__file__).resolve().parents[2]


def python_files(*folders: str) -> set[str]:
    """Return the Python files of top-level folders, as they lie in the working tree."""
    return {str(p.relative_to(ROOT)) for folder in folders for p in (ROOT / folder).rglob("*.py")}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    return next(out.glob("*.whl"))


def test_the_wheel_holds_fedasym_and_nothing_else(wheel: Path) -> None:
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert names == python_files("fedasym")


def test_the_installed_wheel_exposes_fedasym_only(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        "--target",
        str(site),
        str(wheel),
    ]
    subprocess.run(command, check=True, capture_output=True)
    tops = {path.name for path in site.iterdir() if not path.name.endswith(".dist-info")}
    assert tops == {"fedasym"}
    code = (
        f"import sys; sys.path.insert(0, {str(site)!r}); import fedasym; "
        "print(fedasym.__file__, fedasym.frozen_A(0, 'x', 2, 4).shape)"
    )
    done = subprocess.run([sys.executable, "-I", "-c", code], cwd=tmp_path, check=True, capture_output=True, text=True)
    assert done.stdout.split(maxsplit=1) == [str(site / "fedasym" / "__init__.py"), "(2, 4)\n"]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bundle")
    flwr = str(Path(sys.executable).with_name("flwr"))
    done = subprocess.run([flwr, "build", "--app", str(ROOT)], cwd=out, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (found,) = out.glob("*.fab")
    return found


def test_the_app_bundle_holds_the_apps_and_the_readme_and_no_page_of_a_study(bundle: Path) -> None:
    names = set(zipfile.ZipFile(bundle).namelist())
    study = python_files("fedasym/reports/study")
    assert study  # the pages of a study are made where studies are run, not at a site
    assert names - {".info/CONTENT"} == python_files("fedasym", "server", "clients") - study | {
        "pyproject.toml",
        "README.md",
        "LICENSE",
    }
    assert bundle.stat().st_size < 1_000_000


def test_the_app_bundle_holds_all_of_ours_that_its_files_import(bundle: Path) -> None:
    parts = ("fedasym", "server", "clients")
    with zipfile.ZipFile(bundle) as held:
        sources = {name: held.read(name) for name in held.namelist() if name.endswith(".py")}
    modules = {name.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for name in sources}
    lacking = []
    for name, source in sources.items():
        for node in ast.walk(ast.parse(source)):
            wanted = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            wanted += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            lacking += [(name, each) for each in wanted if each.split(".")[0] in parts and each not in modules]
    assert not lacking


def test_a_staged_app_makes_the_same_bundle_as_the_checkout(bundle: Path) -> None:
    assert bundle_digest(ROOT) == hashlib.sha256(bundle.read_bytes()).hexdigest()
