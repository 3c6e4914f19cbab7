"""What a site runs: the SuperNode's command and environment, the worker's place and limits; starts nothing."""

import os
import re
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

from clients.folder import LONGEST_SOCKET
from clients.keeper import Limits
from clients.kit import Kit, read_kit
from clients.place import Place
from fedasym.processes import flower_environment, free_port, tool
from fedasym.settings import Settings, Value, from_run_config

GUARDED = "flwr-clientapp"
# What else a SuperNode could be made to start; none of them is checked by the guard.
BARRED = ("flwr-agentapp", "flwr-connector", "flwr-model", "flwr-serverapp", "flwr-simulation")
_POLL_SECONDS = 0.1  # Flower's own: 1 s before it takes up a message


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
    train_split: str = "train"
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
        commands: folder of commands that come before Flower's own; None: Flower's own.
        pinned: SHA-256 of the only bundle that may run; "": any.
        port: of the SuperNode, on 127.0.0.1.
        supernode: its command.
        environment: what is added to ours for it.
        settings: by which the data are looked at.
    """

    kit: Kit
    place: Place
    limits: Limits | None
    state: Path
    commands: Path | None
    pinned: str
    port: int
    supernode: list[str]
    environment: dict[str, str]
    settings: Settings

    @property
    def socket(self) -> Path:
        """The worker's socket."""
        return self.state / "worker.sock"

    @property
    def flower_home(self) -> Path:
        """Flower's folder."""
        return Path(self.environment["FLWR_HOME"])


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
        if re.search(r"[\"'\\\x00-\x1f]", str(path)):
            raise ValueError(f"{str(path)!r} holds a quote, a backslash or a control character; use another folder")
    for name, pin in (("--pin-bundle", options.pin_bundle), ("--pin-contract", options.pin_contract)):
        if pin and not re.fullmatch("[0-9a-f]{64}", pin):
            raise ValueError(f"{name} {pin!r} is not 64 hexadecimal digits in lower case")
    if not options.worker and options.limits:
        raise ValueError("--deadline, --max-memory and --threads are the worker's; leave them out, or --no-worker")
    socket = state / "worker.sock"
    if options.worker and len(os.fsencode(socket)) > LONGEST_SOCKET:
        raise ValueError(f"{socket} is longer than the {LONGEST_SOCKET} bytes of a socket's path; shorten --state")
    place = Place(
        site=kit.name, data=str(data), state=str(state / "clients"), log=str(state / "site.log"),
        contract=options.pin_contract,
    )  # fmt: skip
    port = free_port()
    commands = state / "bin" if options.pin_bundle else None
    # A pinned site has a Flower home of its own: Flower takes an installed bundle for another's that has the same
    # first eight digits.
    home = state / "flower" / (options.pin_bundle[:16] or "any")
    wanted = flower_environment(home, [commands] if commands else [])
    wanted["FLWR_SUPEREXEC_TASK_POLL_INTERVAL"] = str(_POLL_SECONDS)
    return Plan(
        kit, place, (options.limits or Limits()) if options.worker else None, state, commands, options.pin_bundle, port,
        _supernode(options, kit, place, socket, port),
        {key: value for key, value in wanted.items() if os.environ.get(key) != value},
        _settings(options, kit.name),
    )  # fmt: skip


def _supernode(options: Options, kit: Kit, place: Place, socket: Path, port: int) -> list[str]:
    if options.superlink:
        reach = ["--insecure", "--superlink", options.superlink]
    else:
        reach = ["--superlink", kit.server, "--root-certificates", str(kit.certificate)]
        reach += ["--auth-supernode-private-key", str(kit.key)]
    return [
        tool("flower-supernode"), *reach,
        "--host", "127.0.0.1", "--port", str(port), "--isolation", "subprocess",
        "--node-config", _node_config(options, place, socket),
    ]  # fmt: skip


def _node_config(options: Options, place: Place, socket: Path) -> str:
    if options.worker:
        ours = {"worker": str(socket)}
    else:
        ours = {"site": place.site, "data-dir": place.data, "state-dir": place.state, "log-file": place.log}
        ours |= {"contract": place.contract} if place.contract else {}
    taken = {"worker", "site", "data-dir", "state-dir", "log-file", "contract"}
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
        "train-split": options.train_split,
        "sites": name,
        "min-examples": 1,  # the run's own is checked when it comes
    }
    return from_run_config(told)


def scripts(plan: Plan) -> dict[str, str]:
    """Return the commands that come before Flower's own at a pinned site, by name."""
    if not plan.pinned:
        return {}
    guard = Path(__file__).with_name("guard.py")
    run = shlex.join([sys.executable, "-P", str(guard), plan.pinned])
    refuse = "echo 'this site runs the ClientApp of its pinned bundle alone, not {{}}' >&2; exit 1"
    made = {GUARDED: f'#!/bin/sh\nexec {run} "$@"\n'}
    return made | {name: f"#!/bin/sh\n{refuse.format(name)}\n" for name in BARRED}


def in_words(plan: Plan) -> str:
    """Say what would run, as lines for a shell."""
    lines = [f"# site {plan.kit.name}: state in {plan.state}, data in {plan.place.data}"]
    if plan.limits:
        lines.append(f"# worker on {plan.socket}: {plan.limits.seconds:g} s a message, in this process's child")
    for name, text in scripts(plan).items():
        lines.append(f"# {plan.commands}/{name}: {text.splitlines()[-1]}")
    lines += [f"export {key}={shlex.quote(value)}" for key, value in sorted(plan.environment.items())]
    return "\n".join([*lines, shlex.join(plan.supernode)])
