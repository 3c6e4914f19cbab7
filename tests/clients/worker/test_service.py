"""The warm worker: the same bits as in process, and no message that hangs, dies or leaks costs the next one."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from kits import wait_for
from world import tiny_settings

from clients.errors import QUERY, TRAIN
from clients.message_handler import answer
from clients.node import NodeContext
from clients.session import session_of
from clients.worker import call
from clients.worker.call import TURN, ask_worker
from clients.worker.frames import pack, unpack
from clients.worker.private_folder import make_private
from clients.worker.service import Limits, Worker, resident_gigabytes, worker
from fedasym.settings import Settings
from fedasym.wire import records

ROOT = Path(__file__).parents[3]
ENDLESS = 10**7  # local steps: no test waits for their end


def place_in(root: Path, **more: str) -> NodeContext:
    state = make_private(root / "state")
    values = {"site": "north", "data": str(root / "data"), "state": str(state / "clients")}
    return NodeContext(**{**values, "log": str(state / "site.log"), **more})


def site_settings(root: Path, **more: object) -> Settings:
    own = {"sites": "north,south", "labels": "bad,good", "num_clients": 2, "split": "dirichlet:0.5"}
    return tiny_settings(root, **{**own, **more})


def query(settings: Settings) -> RecordDict:
    site = session_of(settings.resolved())
    return RecordDict({"about": ConfigRecord({"contract": site.contract.to_json(), "logits": [*site.built.logits]})})


def order(settings: Settings) -> RecordDict:
    """The message of round 1 to the first client, as the server sends it."""
    site = session_of(settings.resolved())
    about: records.About = {"contract": site.contract.hash, "round": 1, "run": "0" * 32, "whole": True, "client": 0}
    return records.pack(site.initial, [(n, s) for n, s in site.contract.schema if n in site.initial], about)


def reason(content: RecordDict) -> str:
    return str(content["refusal"]["reason"]) if "refusal" in content else ""


def log_of(root: Path) -> str:
    log = root / "state/site.log"
    return log.read_text() if log.exists() else ""


@dataclass(frozen=True)
class Running:
    """A worker on a tiny site."""

    root: Path
    worker: Worker

    @property
    def socket(self) -> str:
        return str(self.root / "state/worker.sock")

    def ask(self, kind: str, settings: Settings, content: RecordDict) -> RecordDict:
        return ask_worker(self.socket, kind, content, settings.run_config(), 1)

    def answers(self) -> bool:
        """Whether it answers an ordinary message."""
        settings = site_settings(self.root)
        return "about" in self.ask(QUERY, settings, query(settings))

    def child(self) -> int:
        """The process id of the child, when it can take a message."""
        assert self.worker.ready.wait(300)
        return self.worker.pid

    def await_work(self, seconds: float = 0.5) -> int:
        """Wait until the child, idle until now, has worked for some seconds of processor time; return its id."""
        pid = self.child()
        before = processor_seconds(pid)
        wait_for(lambda: processor_seconds(pid) > before + seconds)
        return pid


def processor_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """One worker for all the tests that leave it usable."""
    root = tmp_path_factory.mktemp("site")
    site_settings(root)
    with worker(make_private(root / "state"), place_in(root), Limits(seconds=300.0)) as warm:
        yield Running(root, warm)


def test_a_round_through_the_worker_has_the_bits_of_a_round_in_process(running: Running, tmp_path: Path) -> None:
    settings = site_settings(running.root)
    alone = replace(place_in(running.root), state=str(tmp_path))
    for kind, content in ((QUERY, query(settings)), (TRAIN, order(settings))):
        here = answer(kind, content, settings.run_config(), 1, alone)
        there = running.ask(kind, settings, content)
        assert not reason(here)
        assert {name: dict(record) for name, record in there.items() if name != "matrices"} == {
            name: dict(record) for name, record in here.items() if name != "matrices"
        }
    assert there["matrices"]["packed"].data == here["matrices"]["packed"].data
    values = there["matrices"]["packed"].numpy()
    assert np.abs(values).max() > 0  # it trained: B starts at zero


def test_a_process_that_asks_the_worker_never_imports_what_is_heavy(running: Running) -> None:
    settings = site_settings(running.root)
    about = json.dumps(dict(query(settings).config_records["about"]))
    code = f"""
import json, sys, time
began = time.perf_counter()
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity
TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 2, 3
from clients.app import app
context = Context(1, 2, {{"worker": {running.socket!r}}}, RecordDict(), json.loads(sys.argv[1]))
content = RecordDict({{"about": ConfigRecord(json.loads(sys.argv[2]))}})
reply = app(Message(content, 2, "query"), context)
heavy = {{"torch", "transformers", "pandas", "datasets", "scipy", "sklearn", "tokenizers"}} & sys.modules.keys()
print(json.dumps([sorted(heavy), sorted(reply.content["about"]), time.perf_counter() - began]))
"""
    command = [sys.executable, "-c", code, json.dumps(settings.run_config()), about]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    heavy, about, seconds = json.loads(done.stdout.splitlines()[-1])
    said = ["contract", "logits-gap", "notes", "num-examples", "site", "versions", "warnings"]
    assert (heavy, about) == ([], said)
    print(f"\nthe process of a message took {seconds:.2f} s")


@pytest.mark.parametrize(
    ("round_timeout", "deadline"),
    [
        pytest.param(1.0, 300.0, id="run", marks=[pytest.mark.slow, pytest.mark.deployed]),
        pytest.param(300.0, 1.0, id="site"),
    ],
)
def test_a_child_that_hangs_is_killed_at_the_deadline_and_the_next_message_is_answered(
    running: Running, monkeypatch, round_timeout: float, deadline: float
) -> None:
    assert running.answers()
    hung = running.child()
    settings = site_settings(running.root, round_timeout=round_timeout)
    content = query(settings)
    content["large"] = ArrayRecord({"zeros": Array(np.zeros(1 << 20))})  # more than a socket holds unread
    os.kill(hung, signal.SIGSTOP)
    with monkeypatch.context() as patch:
        patch.setattr(running.worker, "_limits", Limits(seconds=deadline))
        told = reason(running.ask(QUERY, settings, content))
    who, remedy = ("the site", "round-timeout of the run") if round_timeout < deadline else ("site north", "--deadline")
    assert told.startswith(f"the worker of {who} did not finish within 1 s and was restarted; raise {remedy}")
    assert running.answers()
    assert running.child() != hung
    assert ("whoever asked is gone" if round_timeout < deadline else told) in log_of(running.root)


@pytest.mark.slow
@pytest.mark.ci
def test_a_child_that_is_killed_in_training_is_named_and_the_next_message_is_answered(running: Running) -> None:
    settings = site_settings(running.root, local_steps=ENDLESS)
    content = order(settings)
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(running.ask, TRAIN, settings, content)
        os.kill(running.await_work(), signal.SIGKILL)
        told = reason(asked.result(300))
    assert told == "the worker of site north was killed while it worked; is there memory enough for it?"
    assert running.answers()


def test_when_the_caller_goes_away_its_work_is_abandoned_for_the_next_caller(running: Running) -> None:
    settings = site_settings(running.root, local_steps=ENDLESS)
    short = replace(site_settings(running.root), round_timeout=0.5)
    frame = running.root / "order.bin"
    frame.write_bytes(order(settings)["matrices"]["packed"].data)
    code = """
import json, sys
from pathlib import Path
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from clients.worker.call import ask_worker
data, about, config = Path(sys.argv[2]).read_bytes(), json.loads(sys.argv[3]), json.loads(sys.argv[4])
array = Array("float32", (about.pop("size"),), "numpy.ndarray", data)
content = RecordDict({"matrices": ArrayRecord({"packed": array}), "about": ConfigRecord(about)})
print(ask_worker(sys.argv[1], "train", content, config, 1))
"""
    about = {**order(settings)["about"], "size": order(settings)["matrices"]["packed"].shape[0]}
    words = [running.socket, str(frame), json.dumps(about), json.dumps(settings.run_config())]
    caller = subprocess.Popen([sys.executable, "-c", code, *words], cwd=ROOT)
    try:
        worked = running.await_work()
        told = reason(running.ask(QUERY, short, query(short)))
        assert told == "the worker of the site is still busy with an earlier message, or not up; see its log"
    finally:
        caller.kill()
        caller.wait()
    assert running.answers()
    assert running.child() != worked
    assert "whoever asked is gone" in log_of(running.root)


def test_messages_at_the_same_time_are_all_answered_one_after_another(running: Running) -> None:
    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(lambda _: running.answers(), range(6)))


@pytest.mark.slow
@pytest.mark.deployed
def test_a_child_that_dies_while_nobody_asks_is_replaced_at_once(running: Running) -> None:
    died = running.child()
    os.kill(died, signal.SIGKILL)
    wait_for(lambda: running.worker.pid != died)
    assert running.answers()


def test_an_error_that_quotes_the_data_leaves_as_a_code_and_stays_in_the_log(running: Running) -> None:
    settings = site_settings(running.root, labels="bad,fair")  # the data hold 'good', which the error quotes
    told = reason(running.ask(QUERY, settings, query(settings)))
    found = re.fullmatch(r"error ([0-9a-f]{8}) at site north; the log of the site says which", told)
    assert found
    kept = log_of(running.root).split(f"error {found[1]}")[1]
    assert "holds the labels good" in kept


@pytest.mark.parametrize("sent", [b"no frame at all", b"{}\n", b'[{"run_config": {}}, []]\n', pack(RecordDict())])
def test_what_is_no_frame_is_refused_and_the_worker_goes_on(running: Running, sent: bytes) -> None:
    with Client(running.socket) as worker:
        assert worker.recv_bytes() == TURN
        worker.send_bytes(sent)
        assert re.match(
            "the worker of the site cannot read|error [0-9a-f]{8} at", reason(unpack(worker.recv_bytes())[1])
        )
    assert running.answers()


@pytest.mark.parametrize("sent", [b"", b"\0", b"\xff\xff\xff\xff" * 3, b"\x7f\xff\xff\xffhalf", b"GET / HTTP/1.1\r\n"])
def test_who_hangs_up_in_the_midst_of_a_message_or_speaks_otherwise_costs_nobody_anything(
    running: Running, sent: bytes
) -> None:
    child = running.child()
    with socket.socket(socket.AF_UNIX) as caller:
        caller.connect(running.socket)
        caller.sendall(sent)
    assert running.answers() and running.child() == child
    assert "is gone, hangs, or is of another version of fedasym" in log_of(running.root)


def test_who_hangs_in_the_midst_of_a_message_holds_the_others_for_a_while_only(running: Running, monkeypatch) -> None:
    monkeypatch.setattr(call, "_STALL_SECONDS", 1)
    with Client(running.socket) as hung, Client(running.socket) as silent:
        assert hung.recv_bytes() == TURN
        os.write(hung.fileno(), b"\0\0\1\0half")
        assert running.answers()
        assert silent.recv_bytes() == TURN  # it had its turn between the two


def test_a_worker_of_another_version_or_one_that_ends_is_named(tmp_path: Path) -> None:
    for said in (b"fedasym worker 1", b"", b"x" * 99):
        with Listener(str(tmp_path / "worker.sock")) as listener, ThreadPoolExecutor(1) as pool:
            asked = pool.submit(ask_worker, listener.address, QUERY, RecordDict(), {"round-timeout": 60.0}, 1)
            with listener.accept() as caller:
                caller.send_bytes(said)
            assert "another version of fedasym: restart the site" in reason(asked.result(60))


def test_another_contract_than_the_pinned_one_is_refused_before_any_data_are_read(tmp_path: Path) -> None:
    settings = site_settings(tmp_path)
    pinned = place_in(tmp_path, data=str(tmp_path / "not there"), contract="f" * 64)
    with worker(tmp_path / "state", pinned, Limits(threads=1)) as warm:
        site = Running(tmp_path, warm)
        told = [reason(site.ask(QUERY, settings, query(settings))), reason(site.ask(TRAIN, settings, order(settings)))]
        assert all("works under the contract ffff" in each and "not there" not in each for each in told)
        greedy = replace(settings, threads=2)
        assert "threads=2, and site north allows 1" in reason(site.ask(QUERY, greedy, RecordDict()))
        child = site.child()
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)


def test_a_child_over_its_memory_is_named_and_started_again(running: Running, monkeypatch) -> None:
    settings = site_settings(running.root)
    child = running.child()
    with monkeypatch.context() as patch:
        patch.setattr(running.worker, "_limits", Limits(gigabytes=0.01))
        told = reason(running.ask(QUERY, settings, query(settings)))
    assert re.fullmatch(r"the worker of site north holds \S+ GB of memory, more than 0.01 GB, and was .*", told)
    assert running.child() != child


def test_the_memory_of_a_process_is_that_of_its_pages() -> None:
    ballast = np.ones(25_000_000)
    assert 0.2 < resident_gigabytes(os.getpid()) < 50 and ballast.sum()
    assert resident_gigabytes(2**22 + 1) == 0.0


def test_a_worker_that_is_not_there_is_said_so_in_time(tmp_path: Path) -> None:
    began = time.monotonic()
    told = reason(ask_worker(str(tmp_path / "none.sock"), QUERY, RecordDict(), {"round-timeout": 0.3}, 1))
    assert told == "the worker of the site was not there within 0.3 s; is `python -m clients up` running there?"
    assert time.monotonic() - began < 5


def test_a_worker_is_for_a_site_with_data_of_its_own(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="give its place site and data"), worker(tmp_path, NodeContext()):
        pass


def test_a_socket_that_cannot_be_bound_is_named(tmp_path: Path) -> None:
    folder = make_private(tmp_path / "state")
    (folder / "worker.sock").mkdir()
    with pytest.raises(OSError, match=r"worker\.sock cannot be bound; remove it"), worker(folder, place_in(tmp_path)):
        pass


def test_a_child_that_cannot_be_started_is_said_and_started_later(tmp_path: Path, monkeypatch) -> None:
    site_settings(tmp_path)
    start, failed = Worker._start, []

    def no_process(worker: Worker, pipe: Connection) -> "subprocess.Popen[bytes]":
        if len(failed) < 2:
            failed.append(pipe)
            raise BlockingIOError(11, "Resource temporarily unavailable")
        return start(worker, pipe)

    monkeypatch.setattr(Worker, "_start", no_process)
    with worker(make_private(tmp_path / "state"), place_in(tmp_path), Limits(seconds=300.0)) as warm:
        assert Running(tmp_path, warm).answers()
    said = log_of(tmp_path)
    assert said.count("the worker's process cannot be run (BlockingIOError: [Errno 11] Resource temporarily") == 2
    assert "the next starts in 1 s" in said and "the next starts in 3 s" in said


def test_no_thread_of_a_worker_outlives_it(running: Running) -> None:
    assert [thread.name for thread in threading.enumerate() if thread.name == "worker"] == ["worker"]
