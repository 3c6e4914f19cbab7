"""Commands of `simulations` in processes of their own without their cold start: forked from one that imported it all.

Such a process is killed as any other. Where the claim is about a new interpreter, start one instead.
"""

import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path

from fedasym.runs.record import read_rounds

CONTEXT = get_context("forkserver")
CONTEXT.set_forkserver_preload(  # with what a run would import as it goes on
    [
        "simulations.__main__", "transformers.modeling_utils", "transformers.models.bert.modeling_bert",
        "transformers.models.auto.modeling_auto", "flwr_datasets.partitioner", "sklearn.metrics",
    ]
)  # fmt: skip


def start(words: Sequence[str], log: Path, killed_before: str = "") -> BaseProcess:
    """Start ``python -m simulations`` with these words, as the leader of a session of its own.

    Args:
        words: after ``python -m simulations``.
        log: the file of what it prints.
        killed_before: the end of a file's name; the process kills itself when it is about to open such a file.
    """
    process = CONTEXT.Process(target=_run, args=(list(words), str(log), killed_before))
    process.start()
    return process


def _run(words: list[str], log: str, killed_before: str) -> None:
    os.setsid()
    with open(log, "ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    if killed_before:
        # Python tells its audit hooks of every file before it is opened.
        sys.addaudithook(
            lambda event, about: (
                os.kill(os.getpid(), signal.SIGKILL)
                if event == "open" and str(about[0]).endswith(killed_before)
                else None
            )
        )
    from simulations.__main__ import main

    sys.exit(main(words))


def words(values: dict[str, object], out: Path, engine: str = "local") -> list[str]:
    """Return the words of a run of these settings."""
    said = {key: json.dumps(value) if isinstance(value, bool) else value for key, value in values.items()}
    return ["run", *(f"--set={key}={value}" for key, value in said.items()), "--out", str(out), "--engine", engine]


def kill_one_process_after_round(values: dict[str, object], folder: Path, number: int, rounds: int) -> None:
    """Start a run of so many rounds in one process and SIGKILL it as soon as one of them is in its record."""
    log = folder.with_suffix(".log")
    process = start(words(values, folder), log)
    while len(read_rounds(folder)) < number:
        assert process.is_alive(), log.read_text()
        time.sleep(0.002)
    process.kill()
    process.join()
    assert len(read_rounds(folder)) < rounds, "the run was over before it was killed"
