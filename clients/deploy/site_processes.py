"""What a site runs: the commands and their environment, the worker's place and limits; starts nothing."""

import os
import re
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from clients.deploy.kit import Kit, read_kit
from clients.node import LENT, NodeContext
from clients.worker.private_folder import LONGEST_SOCKET, SOCKET
from clients.worker.service import Limits
from fedasym.fields import Value
from fedasym.ops.processes import flower_environment, tool
from fedasym.settings import Settings, from_run_config
from fedasym.tasks import glue, task_of

GUARDED = "flwr-clientapp"
# What else a SuperExec could be made to start; none of them is checked by the guard.
BARRED = ("flwr-agentapp", "flwr-connector", "flwr-model", "flwr-serverapp", "flwr-simulation")
_POLL_SECONDS = 0.25  # Flower's own: 1 s before it takes up a message; a look costs some milliseconds of a core
_UNQUOTABLE = re.compile(r"[\"'\\\x00-\x1f]")  # has no place in a node config


@dataclass(frozen=True)
class Options:
    """What a site says on the command line; see ``python -m clients up --help``."""

    kit: Path
    data: Path
    state: Path | None = None
    task: str = "classification"
    text_columns: str = "text"
    label_column: str = "label"
    labels: str = ""
    answer_column: str = "summary"
    train_split: str = "train"
    instruct_format: str = "alpaca"
    image_layout: str = "table"
    image_column: str = "image"
    device: str = ""
    keep_runs: int = NodeContext.keep_runs
    keep_days: float = NodeContext.keep_days
    limits: Limits | None = None
    pin_bundle: str = ""
    pin_contract: str = ""
    worker: bool = True
    superlink: str = ""  # of a server without TLS and keys; "": the kit's server
    node_config: str = ""


@dataclass(frozen=True)
class Plan:
    """What is to run.

    Attributes:
        kit: the site's.
        place: where its messages are worked on.
        limits: of the worker; None: no worker.
        state: folder for all that is kept.
        pinned: SHA-256 of the only bundle that may run; "": any.
        server: its address, ``host:port``.
        reach: the words of a SuperNode's command by which it reaches the server.
        node_config: Flower's, for the SuperNode.
        environment: of Flower's processes, whole.
        settings: by which the data are looked at.
    """

    kit: Kit
    place: NodeContext
    limits: Limits | None
    state: Path
    pinned: str
    server: str
    reach: tuple[str, ...]
    node_config: str
    environment: Mapping[str, str]
    settings: Settings

    @property
    def socket(self) -> Path:
        """The worker's socket."""
        return self.state / SOCKET

    @property
    def flower_home(self) -> Path:
        """Flower's folder."""
        return Path(self.environment["FLWR_HOME"])

    @property
    def secret(self) -> Path:
        """File of what a SuperExec proves itself with to the SuperNode."""
        return self.state / "superexec.secret"


def plan_of(options: Options) -> Plan:
    """Plan a site.

    Raises:
        ValueError: an option that cannot be, or two that contradict one another.
        FileNotFoundError, PermissionError: as `read_kit`.
    """
    kit = read_kit(options.kit, secure=not options.superlink)
    state = (options.state or options.kit / "state").absolute()
    data = options.data.absolute()
    for path in (state, data):
        if _UNQUOTABLE.search(str(path)):
            raise ValueError(f"{str(path)!r} holds a quote, a backslash or a control character; use another folder")
    for name, pin in (("--pin-bundle", options.pin_bundle), ("--pin-contract", options.pin_contract)):
        if pin and not re.fullmatch("[0-9a-f]{64}", pin):
            raise ValueError(f"{name} {pin!r} is not 64 hexadecimal digits in lower case")
    if not options.worker and options.limits:
        raise ValueError("--deadline, --max-memory and --threads are the worker's; leave them out, or --no-worker")
    socket = state / SOCKET
    if options.worker and len(os.fsencode(socket)) > LONGEST_SOCKET:
        raise ValueError(f"{socket} is longer than the {LONGEST_SOCKET} bytes of a socket's path; shorten --state")
    settings = _settings(options, kit.name)
    place = NodeContext(
        site=kit.name, data=str(data), state=str(state / "clients"), log=str(state / "site.log"),
        contract=options.pin_contract, device=options.device, lends=task_of(settings).reads,
        keep_runs=options.keep_runs, keep_days=options.keep_days,
    )  # fmt: skip
    reach = ["--superlink", options.superlink or kit.server]
    if options.superlink:
        reach.append("--insecure")
    else:
        reach += ["--root-certificates", str(kit.certificate), "--auth-supernode-private-key", str(kit.key)]
    return Plan(
        kit, place, (options.limits or Limits()) if options.worker else None, state, options.pin_bundle,
        options.superlink or kit.server, tuple(reach), _node_config(options, place, socket),
        _environment(options, state), settings,
    )  # fmt: skip


def commands(plan: Plan, port: int) -> dict[str, list[str]]:
    """Return what is started and kept alive, by name, in the order of the starts.

    Args:
        plan: the site's.
        port: of 127.0.0.1, where SuperNode and SuperExec meet.
    """
    meet, secret = f"127.0.0.1:{port}", ["--superexec-auth-secret-file", str(plan.secret)]
    supernode = [
        tool("flower-supernode"), *plan.reach,
        "--host", "127.0.0.1", "--port", str(port), "--isolation", "process", *secret,
        "--node-config", plan.node_config,
    ]  # fmt: skip
    superexec = [tool("flower-superexec"), "--insecure", "--runtime-api-address", meet, *secret]
    found = {"supernode": supernode, "superexec": superexec}
    if plan.limits:
        serve = [sys.executable, "-P", _beside("fork_server.py"), "serve", str(_fork_socket(plan))]
        found = {"forkserver": [*serve, *([plan.pinned] if plan.pinned else [])], **found}
    return found


def scripts(plan: Plan) -> dict[str, str]:
    """Return the commands that Flower finds before, or in a pinned site instead of, its own, by name."""
    run = [sys.executable, "-P", _beside("bundle_guard.py"), plan.pinned] if plan.pinned else [tool(GUARDED)]
    if plan.limits:
        run = [sys.executable, "-I", "-S", _beside("fork_server.py"), "ask", str(_fork_socket(plan)), *run, "--"]
    elif not plan.pinned:
        return {}
    made = {GUARDED: f'#!/bin/sh\nexec {shlex.join(run)} "$@"\n'}
    refuse = "echo 'this site runs the ClientApp of its pinned bundle alone, not {}' >&2; exit 1"
    return made | {name: f"#!/bin/sh\n{refuse.format(name)}\n" for name in BARRED if plan.pinned}


def in_words(plan: Plan, port: int) -> str:
    """Say what would run, as lines for a shell."""
    lines = [f"# site {plan.kit.name}: state in {plan.state}, data in {plan.place.data}"]
    if plan.limits:
        lines.append(f"# worker on {plan.socket}: {plan.limits.seconds:g} s a message, in this process's child")
    for name, text in scripts(plan).items():
        lines.append(f"# {plan.state / 'bin' / name}: {text.splitlines()[-1]}")
    changed = {key: value for key, value in plan.environment.items() if os.environ.get(key) != value}
    lines += [f"export {key}={shlex.quote(value)}" for key, value in sorted(changed.items())]
    return "\n".join([*lines, *map(shlex.join, commands(plan, port).values())])


def _beside(name: str) -> str:
    return str(Path(__file__).with_name(name))


def _fork_socket(plan: Plan) -> Path:
    return plan.state / "fork.sock"  # no longer than the worker's


def _environment(options: Options, state: Path) -> dict[str, str]:
    # A pinned site has a Flower home of its own: Flower takes an installed bundle for another's that has the same
    # first eight digits. And it finds no command but ours: were one of ours missing, Flower's own would run unguarded.
    found = flower_environment(state / "flower" / (options.pin_bundle[:16] or "any"), [state / "bin"])
    if options.pin_bundle:
        found["PATH"] = str(state / "bin")
    return found | {"FLWR_SUPEREXEC_TASK_POLL_INTERVAL": str(_POLL_SECONDS)}


def _node_config(options: Options, place: NodeContext, socket: Path) -> str:
    if options.worker:
        ours = {"worker": str(socket)}
    else:
        ours = {"site": place.site, "data-dir": place.data, "state-dir": place.state, "log-file": place.log}
        ours |= {"contract": place.contract} if place.contract else {}
        ours |= {"device": place.device} if place.device else {}
        ours |= {"keep-runs": str(place.keep_runs), "keep-days": str(place.keep_days), **place.lends}
        if wrong := [value for value in ours.values() if _UNQUOTABLE.search(value)]:
            raise ValueError(f"{wrong[0]!r} holds a quote, a backslash or a control character; name it otherwise")
    taken = {"worker", "site", "data-dir", "state-dir", "log-file", "contract", "device", *LENT}
    taken |= {"keep-runs", "keep-days"}
    theirs = {key for key, _ in re.findall(r"(\S+?)=('[^']*'|\"[^\"]*\"|\S+)", options.node_config)}
    if theirs & taken:
        raise ValueError(
            f"--node-config sets {', '.join(sorted(theirs & taken))}, which the other options decide; leave it out"
        )
    return " ".join([*(f'{key}="{value}"' for key, value in ours.items()), options.node_config]).strip()


def _settings(options: Options, name: str) -> Settings:
    told: dict[str, Value] = {
        "task": options.task,
        "text-columns": options.text_columns,
        "label-column": options.label_column,
        "labels": options.labels,
        "answer-column": options.answer_column,
        "train-split": options.train_split,
        "instruct-format": options.instruct_format,
        "image-layout": options.image_layout,
        "image-column": options.image_column,
        "sites": name,
        "device": options.device or "auto",  # one that cannot be is refused now
        "min-examples": 1,  # the run's own is checked when it comes
    }
    if options.task not in glue.TABLE:
        told["data"] = "reviews"  # what judges the run, and its model, are the run's affair: any will do here
    return from_run_config({**told, "model": "minilm"})
