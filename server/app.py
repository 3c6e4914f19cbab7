"""The ServerApp: hold the run folder, have the nodes load, run the federation.

Flower loads ServerApp and ClientApp one after the other, and starts a simulation's workers only then; so nothing large
is imported before `main` runs.
"""

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from flwr.app import ConfigRecord, Context, Message, MessageType, RecordDict
from flwr.serverapp import Grid, ServerApp

from fedasym.files import writing
from fedasym.ops.paused_gc import uncollected
from fedasym.ops.processes import held_alone
from fedasym.runs.record import run_folder
from fedasym.settings import from_run_config
from server.failure import FederationError
from server.reporter import Reporter, show_log

app = ServerApp()
_REGISTERED_SECONDS = 2.0  # in which Flower's engine has made its nodes


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the federation that the run config describes."""
    show_log()
    settings = from_run_config(context.run_config).resolved()
    folder = run_folder(settings, context.run_id)
    with only_user(folder), Reporter(folder, settings.num_rounds) as reporter:
        warmed: dict[str, int] = {}
        if not settings.sites:
            warmed = warm(grid, settings.dtype, _REGISTERED_SECONDS)
        with uncollected():
            from server.lifecycle import federate, for_this_machine, opened  # here, not above: it imports torch
        settings = for_this_machine(settings, folder)
        if settings.sites:  # whose device need not be of the server's kind
            warmed = warm(grid, settings.dtype)
        federate(grid, opened(settings, folder), folder, reporter, warmed)


def warm(grid: Grid, dtype: str, seconds: float = 0.0) -> dict[str, int]:
    """Let the nodes that are there load model and data while the server does; nobody waits for their answers.

    Args:
        grid: Flower's grid.
        dtype: of the run; ``auto``: the node's own choice, which in a simulation is the server's.
        seconds: to wait at most for the first of them.

    Returns:
        The node by id of its message.
    """
    deadline = time.monotonic() + seconds
    while not (nodes := list(grid.get_node_ids())) and time.monotonic() < deadline:
        time.sleep(0.05)
    content = RecordDict({"about": ConfigRecord({"dtype": dtype})})
    messages = [Message(content, node, f"{MessageType.QUERY}.warm", group_id="warm") for node in nodes]
    names = [*grid.push_messages(messages)]
    # A message that was not taken is no loss; of several nobody says which.
    return dict(zip(names, nodes, strict=True)) if len(names) == len(nodes) else {}


@contextmanager
def only_user(folder: Path) -> Iterator[None]:
    """Make the run folder if need be and hold it alone.

    Raises:
        FederationError: another process holds it, or a file is in its place.
        WriteError: nothing can be written there.
    """
    with ExitStack() as stack:
        with writing(folder):
            try:
                folder.mkdir(parents=True, exist_ok=True)
                stack.enter_context(held_alone(folder, "wait for it or choose another out"))
            except (FileExistsError, NotADirectoryError):
                raise FederationError(f"{folder} cannot be made: a file is in the way; choose another out") from None
            except BlockingIOError as error:
                raise FederationError(str(error)) from None
        yield
