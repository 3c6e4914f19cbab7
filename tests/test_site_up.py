"""A site is brought up by one command, keeps its SuperNode running, and leaves nothing behind."""

import http.client
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path

import pytest
from world import make_data, tiny_settings

from clients.__main__ import main
from clients.guard import BundleRefused, checked
from clients.plan import BARRED
from fedasym.processes import QUIET, free_port, listens, tail
from fedasym.record import read_rounds

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


@pytest.fixture
def site(tmp_path: Path) -> Path:
    make_kit(tmp_path / "kit")
    make_data(tmp_path / "data")
    return tmp_path


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


def test_print_says_what_would_run_and_starts_and_writes_nothing(site: Path, capsys) -> None:
    before = sorted(site.rglob("*"))
    assert main(words(site, "--print", "--pin-bundle", "a" * 64, "--node-config", "rack=3")) == 0
    lines = capsys.readouterr().out.splitlines()
    forkserver, supernode, superexec = map(shlex.split, lines[-3:])
    given = dict(zip(supernode[1::2], supernode[2::2], strict=True))
    state = site / "kit/state"
    assert supernode[0].endswith("flower-supernode")
    port = given.pop("--port")
    assert given == {
        "--superlink": "server.example:443",
        "--root-certificates": str(site / "kit/ca.crt"),
        "--auth-supernode-private-key": str(site / "kit/node.key"),
        "--host": "127.0.0.1",
        "--isolation": "process",
        "--superexec-auth-secret-file": f"{state}/superexec.secret",
        "--node-config": f'worker="{state}/worker.sock" rack=3',
    }
    assert f"127.0.0.1:{port}" in superexec and f"{state}/superexec.secret" in superexec
    assert forkserver[-3:] == ["serve", f"{state}/fork.sock", "a" * 64]
    assert f"export FLWR_HOME={state}/flower/{'a' * 16}" in lines
    assert "export FLWR_SUPEREXEC_TASK_POLL_INTERVAL=0.1" in lines
    assert sorted(site.rglob("*")) == before


def test_a_pinned_site_finds_no_command_of_flower_but_its_own_guarded_ones(site: Path, capsys) -> None:
    assert main(words(site, "--print", "--pin-bundle", "a" * 64)) == 0
    pinned = capsys.readouterr().out
    assert f"export PATH={site}/kit/state/bin\n" in pinned
    assert main(words(site, "--print")) == 0
    assert re.search(f"export PATH={site}/kit/state/bin:.", capsys.readouterr().out)


def test_without_a_worker_the_node_says_where_it_is(site: Path, capsys) -> None:
    more = ["--print", "--no-worker", "--insecure", "--superlink", "127.0.0.1:9", "--pin-contract", "b" * 64]
    assert main(words(site, *more)) == 0
    supernode, _ = map(shlex.split, capsys.readouterr().out.splitlines()[-2:])
    state, data = site / "kit/state", site / "data"
    assert supernode[1:4] == ["--superlink", "127.0.0.1:9", "--insecure"]
    assert supernode[-1] == (
        f'site="north" data-dir="{data}" state-dir="{state}/clients" log-file="{state}/site.log" contract="{"b" * 64}" '
        'task="classification" text-columns="text" label-column="label" labels="bad,good" train-split="train"'
    )


@pytest.mark.parametrize(
    ("more", "named"),
    [
        (["--pin-bundle", "abc"], "--pin-bundle 'abc' is not 64 hexadecimal digits"),
        (["--no-worker", "--deadline", "5"], "--deadline, --max-memory and --threads are the worker's"),
        (["--node-config", 'site="south"'], "--node-config sets site, which the other options decide"),
        (["--labels", ""], "name the classes in the order of their ids"),
        (["--state", "/tmp/" + "x" * 120], "is longer than the 103 bytes of a socket's path"),
        (["--state", "/tmp/a'b"], "holds a quote"),
        (["--no-worker", "--labels", 'b"ad,good'], "holds a quote"),
    ],
)
def test_options_that_cannot_be_are_refused_by_name(site: Path, capsys, more: list[str], named: str) -> None:
    assert main(words(site, "--print", *more)) == 1
    assert named in capsys.readouterr().err


def test_a_server_without_tls_is_named_on_the_command_line_as_such(site: Path, capsys) -> None:
    assert main(words(site, "--print", "--superlink", "127.0.0.1:9")) == 2
    assert main(words(site, "--print", "--insecure")) == 2
    assert "--insecure needs --superlink" in capsys.readouterr().err


def test_a_kit_that_is_not_whole_or_not_private_is_refused(site: Path, capsys) -> None:
    kit = site / "kit"
    (kit / "node.key").chmod(0o640)
    assert main(words(site, "--print")) == 1
    (kit / "node.key").unlink()
    assert main(words(site, "--print")) == 1
    (kit / "site.toml").write_text('name = "no/rth"\nserver = "server.example:443"\n')
    assert main(words(site, "--print", "--insecure", "--superlink", "127.0.0.1:9")) == 1
    wrong = capsys.readouterr().err
    for each in (
        f"chmod 600 {kit}/node.key",
        f"the kit has no {kit}/node.key; the site's private key; if the site made",
        "has name = 'no/rth'",
    ):
        assert each in wrong


def test_data_that_cannot_be_used_are_said_before_anything_starts(site: Path) -> None:
    (site / "data/train.jsonl").write_text('{"text": "a film", "label": "ugly"}\n')
    command = [sys.executable, "-m", "clients", *words(site, "--insecure", "--superlink", f"127.0.0.1:{free_port()}")]
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 1
    assert "the data of site north cannot be used: " in done.stderr and "holds the labels ugly" in done.stderr
    assert not (site / "kit/state/worker.sock").exists()


def test_ctrl_c_while_the_data_block_ends_cleanly(site: Path) -> None:
    (site / "data/train.jsonl").unlink()
    os.mkfifo(site / "data/train.jsonl")
    command = [sys.executable, "-m", "clients", *words(site, "--insecure", "--superlink", f"127.0.0.1:{free_port()}")]
    process = subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True)
    try:
        wait_for(lambda: any("clients.look" in line for line in below(process.pid).values()))
        started = below(process.pid)
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=120)
        assert process.returncode == 0 and said.endswith("site north is down\n")
        wait_for(lambda: not any(map(lives, started)))
    finally:
        process.terminate()
        process.wait(120)


def test_a_site_keeps_its_supernode_running_and_leaves_nothing_behind(site: Path) -> None:
    with running(site, "--insecure", "--superlink", f"127.0.0.1:{free_port()}") as (process, said):
        assert "data of site north: 160 rows of train; bad 80, good 80" in said.read_text()
        assert (site / "kit/state").stat().st_mode & 0o777 == 0o700

        def supernode() -> int:
            found = [pid for pid, line in below(process.pid).items() if "flower-supernode" in line]
            return found[0] if found else 0

        wait_for(supernode)
        first = supernode()
        os.kill(first, signal.SIGKILL)
        wait_for(lambda: supernode() not in (0, first))
        assert "supernode died with -9" in said.read_text() and "site north is up" not in said.read_text()
        second = subprocess.run(
            [sys.executable, "-m", "clients", *words(site, "--insecure", "--superlink", "127.0.0.1:9")],
            cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
        assert second.returncode == 1 and "in use by another process" in second.stderr
        started = below(process.pid)
        expected = {"clients.child", "forkserver", "flower-supernode", "flower-superexec"}
        assert {name for line in started.values() for name in expected if name in line} == expected
    assert said.read_text().endswith("site north is down\n")
    wait_for(lambda: not [pid for pid in started if lives(pid)])


def test_a_supernode_gives_no_task_to_who_lacks_the_sites_secret(site: Path) -> None:
    with running(site, "--insecure", "--superlink", f"127.0.0.1:{free_port()}") as (process, _):
        port = 0

        def listening() -> bool:
            nonlocal port
            lines = [line.split() for line in below(process.pid).values() if "bin/flower-supernode" in line]
            port = int(lines[0][lines[0].index("--port") + 1]) if lines else 0
            return port and listens("127.0.0.1", port)

        wait_for(listening)
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        flower = {"flwr-package-name": "flwr", "flwr-package-version": version("flwr")}
        headers = {"Content-Type": "application/protobuf", "flwr-component-name": "flower-superexec", **flower}
        connection.request("POST", "/v1/runtime/acquire-task", headers=headers)
        answer = connection.getresponse()
        assert (answer.status, b"Authentication failed" in answer.read()) == (401, True)


def test_a_bundle_is_installed_only_with_the_pinned_digest() -> None:
    installed: list[bytes] = []
    bundle = b"an app bundle"
    digest = sha256(bundle).hexdigest()
    checked(lambda raw, **_: installed.append(raw), digest)(bundle, skip_prompt=True)
    assert installed == [bundle]
    other = sha256(b"another").hexdigest()
    with pytest.raises(BundleRefused, match=f"SHA-256 {other}, and this site is pinned to {digest}"):
        checked(lambda raw, **_: installed.append(raw), digest)(b"another")
    assert installed == [bundle]


def test_the_guard_runs_nothing_without_a_whole_digest() -> None:
    guard = [sys.executable, "-P", str(ROOT / "clients/guard.py")]
    for arguments in ([], ["abc"]):
        done = subprocess.run([*guard, *arguments], capture_output=True, text=True, check=False, env=ENVIRONMENT)
        assert done.returncode == 1 and "is not 64 hexadecimal digits; nothing runs" in done.stderr


def test_the_guard_runs_nothing_if_flower_has_lost_the_place_of_the_check() -> None:
    code = (
        "import sys; from flwr.supernode.runtime import run_clientapp as m; del m.install_from_fab\n"
        "from clients.guard import guarded; guarded('a' * 64)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1 and "so nothing runs; use flwr 1.41" in done.stderr


def test_the_process_that_stays_never_imports_what_is_heavy() -> None:
    code = (
        "import sys, clients.__main__\n"
        "print({'torch', 'transformers', 'pandas', 'datasets', 'scipy', 'sklearn'} & sys.modules.keys())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "set()\n"


@pytest.mark.slow
def test_a_federation_runs_through_a_site_with_the_pinned_bundle_and_no_other(site: Path) -> None:
    from simulations.superlink import FlowerError, run_app, superlink

    def settings(out: str):
        own = {"sites": "north", "labels": "bad,good", "num_clients": 1, "split": "dirichlet:0.5", "num_rounds": 3}
        return tiny_settings(site, out=str(site / out), round_timeout=120.0, **own)

    with superlink(site / "flower.log") as link:
        reach = ("--insecure", "--superlink", f"127.0.0.1:{link.port}")
        with running(site, *reach, "--pin-bundle", "0" * 64), pytest.raises(FlowerError) as raised:
            run_app(link, settings("refused"))
        assert f"pinned to {'0' * 64}" in str(raised.value)
        came = str(raised.value).split("the app bundle has the SHA-256 ")[1][:64]
        state = site / "kit/state"
        assert not list((state / "flower").rglob("clients")), "nothing of the bundle was installed"
        assert all((state / "bin" / name).exists() for name in BARRED)
        with running(site, *reach, "--pin-bundle", came):
            run_app(link, settings("run"))
    rounds = read_rounds(site / "run")
    print("\nseconds a round:", *(round(row["seconds"], 1) for row in rounds))
    assert len(rounds) == 3, tail(site / "kit/state/supernode.log")
