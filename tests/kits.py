"""A site brought up by its command, and the processes below it, for tests that need one."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from fedasym.ops.processes import QUIET

ROOT = Path(__file__).parents[1]
ENVIRONMENT = {**os.environ, **QUIET}


def wait_for(true: Callable[[], object], seconds: float = 300.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def make_kit(folder: Path, name: str = "north") -> Path:
    """A kit as the server's side makes it; the files hold no real keys."""
    folder.mkdir(parents=True)
    (folder / "site.toml").write_text(f'name = "{name}"\nserver = "server.example:443"\n')
    for file in ("node.key", "node.pub", "ca.crt"):
        (folder / file).write_text("not a real one\n")
        (folder / file).chmod(0o600)
    return folder


def words(root: Path, *more: str) -> list[str]:
    return ["up", "--kit", str(root / "kit"), "--data", str(root / "data"), "--labels", "bad,good", *more]


@contextmanager
def running(root: Path, *more: str) -> Iterator[tuple["subprocess.Popen[bytes]", Path]]:
    """Run `clients up` until it waits for its server; end it by SIGTERM and require a clean end."""
    said = root / "said.txt"
    with said.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "clients", *words(root, *more)],
            cwd=ROOT, env=ENVIRONMENT, stdout=output, stderr=subprocess.STDOUT,
        )  # fmt: skip
    try:
        wait_for(lambda: "site north waits for" in said.read_text() or process.poll() is not None, 400)
        assert process.poll() is None, said.read_text()
        yield process, said
    finally:
        process.terminate()  # after a failure too: it ends what it started
        code = process.wait(120)
    assert code == 0, said.read_text()


def below(pid: int) -> dict[int, str]:
    """The processes that a process has started, and those they have, by id with their command."""
    found = {}
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, task.read_text().split()):
            try:
                found[child] = Path(f"/proc/{child}/cmdline").read_bytes().replace(b"\0", b" ").decode()
                found.update(below(child))
            except (FileNotFoundError, ProcessLookupError):
                continue
    return found


def lives(pid: int) -> bool:
    status = Path(f"/proc/{pid}/stat")
    try:
        return status.read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
