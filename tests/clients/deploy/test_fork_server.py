"""A forked `flwr-clientapp` does as one newly started does: output, exit code, pin; and it is not needed."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from kits import ENVIRONMENT, ROOT, wait_for

from clients.deploy.site_processes import GUARDED
from fedasym.ops.processes import free_port, tool

SCRIPT = str(ROOT / "clients/deploy/fork_server.py")
SECONDS = 120.0  # for Flower's imports, many times over


@contextmanager
def serving(folder: Path, *pinned: str) -> Iterator[tuple[str, "subprocess.Popen[bytes]"]]:
    path = folder / "fork.sock"
    process = subprocess.Popen([sys.executable, "-P", SCRIPT, "serve", str(path), *pinned], env=ENVIRONMENT)
    try:
        wait_for(lambda: path.exists() or process.poll() is not None)
        yield str(path), process
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, "subprocess.Popen[bytes]"]]:
    with serving(tmp_path_factory.mktemp("fork")) as found:
        yield found


def ask(path: str, *words: str, instead: tuple[str, ...] = ("/bin/false",)) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-I", "-S", SCRIPT, "ask", path, *instead, "--", *words]
    return subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=SECONDS, check=False)


@pytest.mark.parametrize(
    "words",
    [["--unknown"], *(pytest.param(w, marks=[pytest.mark.slow, pytest.mark.ci]) for w in (["--help"], ["--insecure"]))],
)
def test_a_forked_process_prints_and_ends_as_a_new_one(server, words: list[str]) -> None:
    new = subprocess.run([tool(GUARDED), *words], env=ENVIRONMENT, capture_output=True, text=True, check=False)
    forked = ask(server[0], *words)
    assert (forked.returncode, forked.stdout, forked.stderr) == (new.returncode, new.stdout, new.stderr)
    assert new.stdout + new.stderr


def test_who_asks_imports_nothing_but_the_least() -> None:
    code = f"import runpy, sys; runpy.run_path({SCRIPT!r}); print(len(sys.modules))"
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 100  # Flower's command has 1,470


def test_the_server_has_one_thread_and_keeps_no_dead_child(server) -> None:
    tasks = Path(f"/proc/{server[1].pid}/task")
    ask(server[0], "--help")
    wait_for(lambda: not any((task / "children").read_text().strip() for task in tasks.iterdir()))
    assert len(list(tasks.iterdir())) == 1 and server[1].poll() is None


def test_where_no_server_answers_the_command_runs_itself(tmp_path: Path) -> None:
    done = ask(str(tmp_path / "absent.sock"), "a b", "--", "c", instead=("/bin/echo", "instead"))
    assert (done.returncode, done.stdout) == (0, "instead a b -- c\n")
    assert "no fork server at" in done.stderr


def test_a_process_that_is_killed_is_told_as_a_failure_and_the_server_goes_on(server) -> None:
    path, process = server
    nobody = f"127.0.0.1:{free_port()}"  # whom Flower's command asks again and again
    words = ["--insecure", "--token", "t", "--runtime-api-address", nobody]
    command = [sys.executable, "-I", "-S", SCRIPT, "ask", path, "/bin/false", "--", *words]
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    wait_for(lambda: not children.read_text().strip())  # those of the tests before
    asking = subprocess.Popen(command, env=ENVIRONMENT)
    wait_for(lambda: children.read_text().strip())
    os.kill(int(children.read_text()), signal.SIGKILL)
    assert asking.wait(SECONDS) == 1
    assert ask(path, "--help").returncode == 0


def test_a_server_with_a_pin_that_is_none_does_not_come_up(tmp_path: Path) -> None:
    with serving(tmp_path, "abc") as (path, process):
        assert process.wait(SECONDS) == 1 and not Path(path).exists()


def test_a_pinned_server_puts_the_check_before_flowers_installation(tmp_path: Path) -> None:
    code = (
        f"import sys; sys.argv = ['x']; import runpy; entry = runpy.run_path({SCRIPT!r})['_entry']('a' * 64)\n"
        "from flwr.supernode.runtime import run_clientapp as flower\n"
        "try: flower.install_from_fab(b'another bundle', skip_prompt=True)\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], env=ENVIRONMENT, capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("BundleRefused the app bundle has the SHA-256 ")
