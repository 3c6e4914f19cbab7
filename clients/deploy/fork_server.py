"""A fork server for Flower's process of a message: it has done Flower's imports, and forks for each message.

Flower starts ``flwr-clientapp`` anew for every message, and that imports for some two seconds of a core before it does
anything. At a site with a warm worker the command of that name is ``ask`` instead: it hands its words and its standard
streams to ``serve`` and waits. The forked process is as fresh as one newly started: ``serve`` has imported Flower and
nothing of any app, has one thread, and has run nothing.

    python fork_server.py serve SOCKET [SHA256]           SHA256: of the only app bundle that may run (bundle_guard.py)
    python fork_server.py ask SOCKET COMMAND... -- WORDS  COMMAND takes the WORDS where no fork server answers

A script and no module of a package, as bundle_guard.py and for its reason.
"""

import json
import os
import signal
import socket
import sys
from collections.abc import Callable

_SIZE = 4  # bytes that say how long the words are
_STREAMS = (0, 1, 2)


def ask(path: str, command: list[str], words: list[str]) -> int:
    """Let the fork server run the words; return their exit code, 1 if the process was killed."""
    with socket.socket(socket.AF_UNIX) as server:
        try:
            server.connect(path)
        except OSError as error:
            print(f"no fork server at {path} ({error}); Flower is imported anew", file=sys.stderr, flush=True)
            os.execv(command[0], [*command, *words])
        block = json.dumps(words).encode()
        socket.send_fds(server, [len(block).to_bytes(_SIZE, "big")], _STREAMS)
        server.sendall(block)
        code = server.recv(1)
        return code[0] if code else 1


def serve(path: str, pinned: str) -> None:
    """Import Flower, then fork for each who asks, until we are ended; return in each forked process alone."""
    os.environ["OPENBLAS_NUM_THREADS"] = "1"  # NumPy's; a message's process computes nothing
    entry = _entry(pinned)
    new = f"{os.path.splitext(path)[0]}.new"
    if os.path.exists(new):
        os.unlink(new)  # of one that was killed at its start
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(new)
        listener.listen()
        os.replace(new, path)  # who finds it finds somebody who listens; what an earlier one left is gone
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the system reaps what we forked
        while True:
            caller, _ = listener.accept()
            with caller:
                if os.fork() == 0:
                    listener.close()
                    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                    sys.exit(_run(caller, entry))


def _run(caller: socket.socket, entry: Callable[[], None]) -> int:
    """Be the process that was asked for: its words and streams; tell its exit code, and return it."""
    size, streams, _, _ = socket.recv_fds(caller, _SIZE, len(_STREAMS))
    with caller.makefile("rb") as block:
        words = json.loads(block.read(int.from_bytes(size, "big")))
    for stream, place in zip(streams, _STREAMS, strict=True):
        os.dup2(stream, place)
        os.close(stream)
    sys.argv = ["flwr-clientapp", *words]
    code: object = 0
    try:
        entry()
    except SystemExit as end:
        code = end.code
        if isinstance(code, str):
            print(code, file=sys.stderr)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    said = code if isinstance(code, int) else int(code is not None)
    sys.stdout.flush()
    caller.sendall(bytes([said & 255]))
    return said


def _entry(pinned: str) -> Callable[[], None]:
    """Return Flower's command, which installs no bundle but the pinned one, if one is."""
    if pinned:
        import runpy

        guard = runpy.run_path(os.path.join(os.path.dirname(__file__), "bundle_guard.py"))
        guarded: Callable[[], None] = guard["guarded"](pinned)
        return guarded
    from importlib.metadata import entry_points

    (command,) = entry_points(group="console_scripts", name="flwr-clientapp")
    own: Callable[[], None] = command.load()
    return own


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(sys.argv[2], "".join(sys.argv[3:]))
    else:
        end = sys.argv.index("--")
        sys.exit(ask(sys.argv[2], sys.argv[3:end], sys.argv[end + 1 :]))
