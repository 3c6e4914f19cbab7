"""A site is brought up by one command, keeps its processes running, and leaves nothing behind."""

import http.client
import os
import re
import shlex
import signal
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from kits import ENVIRONMENT, ROOT, below, lives, running, wait_for, words

from clients.__main__ import main
from clients.deploy.up import _Reached
from fedasym.ops.processes import free_port, listens


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
    assert "export FLWR_SUPEREXEC_TASK_POLL_INTERVAL=0.25" in lines
    assert sorted(site.rglob("*")) == before


def test_a_pinned_site_finds_no_command_of_flower_but_its_own_guarded_ones(site: Path, capsys) -> None:
    assert main(words(site, "--print", "--pin-bundle", "a" * 64)) == 0
    pinned = capsys.readouterr().out
    assert f"export PATH={site}/kit/state/bin\n" in pinned
    assert main(words(site, "--print")) == 0
    assert re.search(f"export PATH={site}/kit/state/bin:.", capsys.readouterr().out)


def test_without_a_worker_the_node_says_where_it_is(site: Path, capsys) -> None:
    more = ["--print", "--no-worker", "--insecure", "--superlink", "127.0.0.1:9", "--pin-contract", "b" * 64]
    more += ["--keep-runs", "3"]
    assert main(words(site, *more)) == 0
    supernode, _ = map(shlex.split, capsys.readouterr().out.splitlines()[-2:])
    state, data = site / "kit/state", site / "data"
    assert supernode[1:4] == ["--superlink", "127.0.0.1:9", "--insecure"]
    assert supernode[-1] == (
        f'site="north" data-dir="{data}" state-dir="{state}/clients" log-file="{state}/site.log" contract="{"b" * 64}" '
        'keep-runs="3" keep-days="90.0" text-columns="text" label-column="label" labels="bad,good" train-split="train"'
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
        wait_for(lambda: any("clients.deploy.data_check" in line for line in below(process.pid).values()))
        started = below(process.pid)
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=120)
        assert process.returncode == 0 and said.endswith("site north is down\n")
        wait_for(lambda: not any(map(lives, started)))
    finally:
        process.terminate()
        process.wait(120)


def assert_no_task_without_the_secret(port: int) -> None:
    wait_for(lambda: listens("127.0.0.1", port))
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    flower = {"flwr-package-name": "flwr", "flwr-package-version": version("flwr")}
    headers = {"Content-Type": "application/protobuf", "flwr-component-name": "flower-superexec", **flower}
    connection.request("POST", "/v1/runtime/acquire-task", headers=headers)
    answer = connection.getresponse()
    assert (answer.status, b"Authentication failed" in answer.read()) == (401, True)


def test_a_site_keeps_its_supernode_running_shut_to_who_lacks_its_secret_and_leaves_nothing_behind(site: Path) -> None:
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
        command = below(process.pid)[supernode()].split()
        assert_no_task_without_the_secret(int(command[command.index("--port") + 1]))
        second = subprocess.run(
            [sys.executable, "-m", "clients", *words(site, "--insecure", "--superlink", "127.0.0.1:9")],
            cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
        assert second.returncode == 1 and "in use by another process" in second.stderr
        started = below(process.pid)
        expected = {"clients.worker.child", "fork_server", "flower-supernode", "flower-superexec"}
        assert {name for line in started.values() for name in expected if name in line} == expected
    assert said.read_text().endswith("site north is down\n")
    wait_for(lambda: not [pid for pid in started if lives(pid)])


def test_a_server_is_reached_when_the_supernode_says_so_at_each_start(tmp_path: Path) -> None:
    log = tmp_path / "supernode.log"
    log.write_text("SuperNode ID: of an earlier life\n")
    reached = _Reached(log)
    assert not reached()
    with log.open("a") as file:
        file.write("Starting\nSuperNo")
        file.flush()
        assert not reached()
        file.write("de ID: 7\n")
        file.flush()
        assert reached() and not reached() and reached.times == 1
        file.write("Sent successfully\nStarting\nSuperNode ID: 7\n")
    assert reached() and reached.times == 2
    log.write_text("")  # cut by whoever keeps the logs
    assert not reached()
    log.write_text("SuperNode ID: 7\n")
    assert reached() and reached.times == 3


def test_the_process_that_stays_never_imports_what_is_heavy() -> None:
    code = (
        "import sys, clients.__main__\n"
        "print({'torch', 'transformers', 'pandas', 'datasets', 'scipy', 'sklearn'} & sys.modules.keys())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "set()\n"
