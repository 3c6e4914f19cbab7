"""Two artefacts from one tree: the wheel holds fedasym alone, the app bundle holds what the apps import."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

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


def test_the_app_bundle_holds_what_the_apps_import_and_the_readme(tmp_path: Path) -> None:
    flwr = str(Path(sys.executable).with_name("flwr"))
    done = subprocess.run(
        [flwr, "build", "--app", str(ROOT)], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    bundles = list(tmp_path.glob("*.fab"))
    assert len(bundles) == 1
    names = set(zipfile.ZipFile(bundles[0]).namelist())
    study = {name for name in python_files("fedasym") if name.startswith("fedasym/reports/study/")}
    assert study  # the pages of a study are made where studies are run, not at a site
    assert names - {".info/CONTENT"} == python_files("fedasym", "server", "clients") - study | {
        "pyproject.toml",
        "README.md",
        "LICENSE",
    }
    assert bundles[0].stat().st_size < 1_000_000
