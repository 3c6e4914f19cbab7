"""A text of another party stays one line of printable text wherever it is shown or kept, and ends nothing."""

import io
import json
import logging
import re
from pathlib import Path

import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from reply_mutations import NASTY
from rich.console import Console
from world import make_data, tiny_settings

from clients.app import app as honest
from clients.errors import hidden
from clients.node import NodeContext
from fedasym.runs.record import read_rounds
from fedasym.wire import records
from server.app import app as server_app
from simulations.cli.display import Follower
from simulations.engines.grid import RUN_ID, SERVER_NODE, InProcessGrid

LABEL = "[/b]<i>$\\frac{</i>`|%s"  # printable, as a label must be to be one
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e]")


def nasty_app() -> ClientApp:
    """Return the real ClientApp with the nasty text at each place where a node can say something."""
    app = ClientApp()

    @app.query()
    def query(message: Message, context: Context) -> Message:
        reply = honest(message, context)
        about = reply.content.config_records["about"]
        about["notes"], about["warnings"], about["site"] = [NASTY] * 40, [NASTY], NASTY
        about["versions"] = [f"torch={NASTY}", NASTY]
        return reply

    @app.train()
    def train(message: Message, context: Context) -> Message:
        client = records.about(message.content)["client"]
        if client == 0:
            return Message(RecordDict({"refusal": ConfigRecord({"reason": NASTY * 50})}), reply_to=message)
        if client == 1:
            raise RuntimeError(NASTY)
        reply = honest(message, context)
        if client == 2:
            reply.content.metric_records["metrics"][NASTY] = float("nan")
        else:
            reply.content.metric_records["metrics"][f"{NASTY}-fine"] = 0.5
            reply.content[NASTY] = ConfigRecord({NASTY: NASTY})
        return reply

    return app


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """Run a federation of four such clients on data with a nasty label; return its folder and the log's lines."""
    root = tmp_path_factory.mktemp("nasty")
    settings = tiny_settings(root, num_rounds=1, local_steps=1, out=str(root / "run [/b] <i>"), split="iid")
    for file in make_data(root / "data").glob("*.jsonl"):
        file.write_text(file.read_text().replace('"bad"', json.dumps(LABEL)))
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("fedasym").addHandler(handler)
    config = settings.run_config()
    try:
        with InProcessGrid(nasty_app(), config, 4) as grid:
            server_app(grid, Context(RUN_ID, SERVER_NODE, {}, RecordDict(), dict(config)))
    finally:
        logging.getLogger("fedasym").removeHandler(handler)
    return Path(settings.out), said


def test_the_run_ends_well_and_its_record_and_log_hold_one_clean_line_for_each_text(seen) -> None:
    folder, said = seen
    (row,) = read_rounds(folder)
    assert (row["clients_valid"], [*row["rejections"]]) == (1, ["0", "1", "2"])
    texts = [*row["rejections"].values(), *row["warnings"]]
    assert any("torch" in text for text in texts) and all("owned" in text for text in row["rejections"].values())
    for text in [*texts, *said]:
        assert not CONTROL.search(text) and "\n" not in text and len(text) < 1_500, text
    for name in ("rounds.jsonl", "nodes.json", "summary.json", "config.json"):
        raw = (folder / name).read_text()
        assert not CONTROL.search(raw) and "y" * 700 not in raw, name
    assert len((folder / "rounds.jsonl").read_text().splitlines()) == 1


def test_the_report_and_the_card_show_it_as_text(seen) -> None:
    folder, _ = seen
    page, card = (folder / "report.html").read_text(), (folder / "adapter/README.md").read_text()
    for text in (page, card.partition("```")[0]):
        assert not CONTROL.search(text) and "<script" not in text and "<i>" not in text
    assert "&lt;script&gt;alert(1)" in page and "[/b]" in page
    assert (folder / "plots/clients.png").exists()  # whose legend holds the label


@pytest.mark.parametrize("terminal", [True, False])
def test_a_terminal_shows_it_as_text(seen, terminal: bool) -> None:
    folder, _ = seen
    out = io.StringIO()
    console = Console(file=out, width=150, force_terminal=terminal)
    with Follower("a title of [/b] marks", folder / "not there", 1, console):
        pass
    follower = Follower("a title of [/b] marks", folder, 1, console)
    if terminal:
        console.print(follower._table(read_rounds(folder)))
    else:
        with follower:
            follower._seen = []
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out.getvalue())  # the terminal's own: colours and the cursor
    assert "[/b]" in shown and "ended early" not in shown
    assert not CONTROL.search(shown.replace("\r", ""))
    assert not any(line.startswith("round 9") for line in shown.splitlines())


def test_an_entry_of_a_sites_log_begins_where_the_site_began_it(tmp_path: Path) -> None:
    place = NodeContext(log=str(tmp_path / "site.log"))
    forged = f"x\n2026-01-01 00:00:00 error 00000000\r2026-01-01 all is well{NASTY}"
    code = hidden(ValueError(forged), place)
    lines = (tmp_path / "site.log").read_text().splitlines()
    assert [line for line in lines if not line.startswith("    ")] == lines[:1]
    assert lines[0].endswith(code.split(" ")[1]) and not CONTROL.search("".join(lines))
