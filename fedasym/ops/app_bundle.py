"""The app as Flower sends it: what its bundle is made of, and the digest by which Flower knows it."""

import hashlib
import shutil
import subprocess
import tempfile
from pathlib import Path

from fedasym.ops.flower_cli import FlowerError
from fedasym.ops.processes import flower_environment, tool

PROJECT = Path(__file__).resolve().parents[2]


def stage(folder: Path, project: Path = PROJECT) -> Path:
    """Copy what the app bundle is made of, so that Flower does not walk through a virtual environment to find it.

    What pyproject.toml excludes is copied too: Flower refuses an exclusion that matches nothing.

    Args:
        folder: a new one; Flower wants letters, digits and hyphens in its name, 32 at most.
        project: a checkout of this project.

    Returns:
        The folder.

    Raises:
        FileNotFoundError: the project lacks a part; only a checkout has them all.
    """
    for name in ("fedasym", "server", "clients"):
        shutil.copytree(project / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(project / name, folder / name)
    return folder


def bundle_digest(project: Path = PROJECT) -> str:
    """Return the SHA-256 of the bundle that ``flwr run`` would send, which Flower calls the app's hash.

    Flower sorts the files and dates all of them alike, so the digest is that of the files and of zlib's compression.

    Raises:
        FlowerError: Flower cannot build it.
        FileNotFoundError: as `stage`.
    """
    with tempfile.TemporaryDirectory(prefix="fedasym-bundle-") as work:
        app = stage(Path(work) / "fedasym", project)
        command = [tool("flwr"), "build", "--app", str(app)]
        environment = flower_environment(Path(work) / "home")
        done = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True, check=False)
        bundles = list(Path(work).glob("*.fab"))
        if done.returncode or len(bundles) != 1:
            raise FlowerError(f"`flwr build` failed: {done.stdout + done.stderr}")
        return hashlib.sha256(bundles[0].read_bytes()).hexdigest()
