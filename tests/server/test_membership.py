"""Sites come late, leave, come back, are late, fail and rest; the mean is over who reported."""

import logging
import math
import pickle
import threading
from collections.abc import Callable, Iterable
from fractions import Fraction
from pathlib import Path

import pytest
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from hypothesis import given
from hypothesis import strategies as st
from world import make_sites, no_report, settings_of_sites, simulate, site_settings

from clients.app import app as honest
from fedasym.runs.record import read_json, read_rounds
from fedasym.settings import Settings
from fedasym.wire import records
from server.app import app as server_app
from server.failure import FederationError
from server.round import roster
from server.round.membership import Membership
from server.round.run import Round, TooFewReplies, sample_clients
from simulations.engines.grid import RUN_ID, SERVER_NODE, InProcessGrid

NAMES = ("north", "south", "east")
ALL = frozenset(NAMES)


class Coming(InProcessGrid):
    """A grid of sites of which those are online that ``online`` says, by the number of rounds recorded."""

    def __init__(self, app: ClientApp, settings: Settings, data: Path, online: Callable[[int], Iterable[str]]) -> None:
        log_file = str(data.parent / "sites.log")
        nodes = [{"site": name, "data-dir": str(data / name), "log-file": log_file} for name in NAMES]
        super().__init__(app, settings.run_config(), nodes, workers=2)
        self._online, self._folder = online, Path(settings.out)

    def get_nodes(self):
        now = set(self._online(len(read_rounds(self._folder))))
        return [node for node in super().get_nodes() if node.name in now]


def run(root: Path, online: Callable[[int], Iterable[str]], app: ClientApp = honest, **more: object) -> list[dict]:
    data = root / "sites"
    if not data.exists():
        make_sites(root)
    settings = site_settings(root, **{"out": str(root / "run"), "min_valid": 1, "quorum": 1, **more})
    with Coming(app, settings, data, online) as grid, no_report():
        server_app(grid, Context(RUN_ID, SERVER_NODE, {}, RecordDict(), settings.run_config()))
    return read_rounds(root / "run")


def asked(rows: list[dict]) -> list[list[int]]:
    return [row["asked"] for row in rows]


def test_a_site_that_comes_late_is_asked_from_then_on_and_one_that_leaves_is_not(tmp_path: Path) -> None:
    there = {0: {"north"}, 1: {"north", "south"}, 2: {"south", "east"}, 3: ALL}
    rows = run(tmp_path, lambda done: there.get(done, ALL), num_rounds=4)
    # Who is new at a round's start is asked as soon as it has agreed, at the latest in the next round.
    assert rows[0]["asked"] == [0]
    assert 0 in rows[1]["asked"] and 0 not in rows[2]["asked"] and 1 in rows[2]["asked"]
    assert 0 in rows[3]["asked"]
    assert all(row["clients_valid"] == len(row["asked"]) for row in rows)
    assert [set(row["weights"]) for row in rows] == [{str(k) for k in row["asked"]} for row in rows]


def test_a_site_that_comes_back_and_refuses_is_asked_no_more(tmp_path: Path) -> None:
    agreed = []
    app = ClientApp()
    app.query("warm")(honest)
    app.train()(honest)

    @app.query()
    def query(message: Message, context: Context) -> Message:
        reply, name = honest(message, context), context.node_config["site"]
        if name == "south" and name in agreed:
            reply.content["about"]["contract"] = "another"
        agreed.append(name)
        return reply

    there = {1: {"north", "east"}}
    rows = run(tmp_path, lambda done: there.get(done, ALL), app, quorum=2, num_rounds=4)
    assert [1 in row for row in asked(rows)] == [True, False, False, False]
    assert all(row["rejections"] == {} for row in rows)


def test_what_a_site_that_has_gone_says_of_itself_counts_for_nothing(tmp_path: Path) -> None:
    make_sites(tmp_path)
    settings = site_settings(tmp_path, out=str(tmp_path / "run"), quorum=3, num_rounds=2)
    looked, gone, said, later = threading.Event(), threading.Event(), threading.Event(), iter(range(5))
    app = ClientApp()
    app.query("warm")(honest)
    app.train()(honest)

    @app.query()
    def query(message: Message, context: Context) -> Message:
        reply = honest(message, context)
        if context.node_config["site"] == "south" and not said.is_set():
            assert gone.wait(60)
            reply.content["about"]["site"] = "north"  # while nobody sees by which name it is registered
            said.set()
        return reply

    class Blinking(Coming):
        """Its site south is there at the first look, then nobody until south has answered, and some looks more."""

        def get_nodes(self):
            nodes = super().get_nodes()
            if not looked.is_set():
                looked.set()
                return [node for node in nodes if node.name == "south"]
            gone.set()
            return nodes if said.is_set() and next(later, None) is None else []

    with Blinking(app, settings, tmp_path / "sites", lambda done: ALL) as grid, no_report():
        server_app(grid, Context(RUN_ID, SERVER_NODE, {}, RecordDict(), settings.run_config()))
    rows = read_rounds(tmp_path / "run")
    assert asked(rows) == [[0, 1, 2]] * 2 and all(row["rejections"] == {} for row in rows)


def test_a_run_that_lacked_its_quorum_goes_on_with_a_lower_one(tmp_path: Path) -> None:
    with pytest.raises(FederationError, match="lower quorum"):
        run(tmp_path, lambda done: ALL if done == 0 else ALL - {"east"}, quorum=3, num_rounds=3, round_timeout=3.0)
    rows = run(tmp_path, lambda done: ALL - {"east"}, quorum=2, num_rounds=3, max_weight=9, max_value=99.0)
    assert asked(rows) == [[0, 1, 2], [0, 1], [0, 1]]


def test_a_round_waits_for_the_quorum_and_says_who_is_missing(tmp_path: Path) -> None:
    with pytest.raises(FederationError, match=r"1 of the sites were there within.*quorum=2; missing: south, east"):
        run(tmp_path, lambda done: {"north"}, quorum=2, round_timeout=2.0)


def test_a_run_that_every_site_refuses_again_and_again_ends_with_their_reasons(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_sites(tmp_path)
    for name in NAMES:
        (tmp_path / "sites" / name / "train.jsonl").unlink()
    monkeypatch.setattr(roster, "_FIRST_RETRY", 0.05)
    with pytest.raises(
        FederationError, match=r"every site of the run refused\. 1 node\(s\).*error \w{8} at site north"
    ):
        run(tmp_path, lambda done: ALL, round_timeout=3600.0)


def test_all_there_all_along_is_the_same_as_a_run_without_membership(tmp_path: Path) -> None:
    rows = run(tmp_path, lambda done: ALL, quorum=3)
    plain = simulate(site_settings(tmp_path, out=str(tmp_path / "plain")), 1, tmp_path / "sites")
    assert rows[-1]["digest"] == read_json(plain / "summary.json")["digest"]


def test_a_late_reply_does_not_count_is_said_and_its_site_is_free_again(tmp_path: Path) -> None:
    third_round = threading.Event()
    app = ClientApp()
    app.query()(honest)
    app.query("warm")(honest)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        about = records.about(message.content)
        if about["round"] == 2:
            third_round.set()
        if (about["client"], about["round"]) == (2, 1):
            assert third_round.wait(60)
        return honest(message, context)

    rows = run(tmp_path, lambda done: ALL, app, quorum=2, num_rounds=6, round_timeout=6.0)
    assert list(rows[0]["rejections"]) == ["2"] and "no reply within round-timeout" in rows[0]["rejections"]["2"]
    assert set(rows[0]["weights"]) == {"0", "1"}
    assert rows[1]["asked"] == [0, 1]  # site east is still busy
    said = [warning for row in rows for warning in row["warnings"]]
    assert said == ["site east: its reply to round 1 came after the deadline; it does not count"]
    assert rows[-1]["asked"] == [0, 1, 2] and rows[-1]["clients_valid"] == 3


def test_a_site_that_fails_in_a_row_rests_and_a_resumed_run_knows_it(tmp_path: Path) -> None:
    app = ClientApp()
    app.query()(honest)
    app.query("warm")(honest)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        if records.about(message.content)["client"] == 1:
            raise RuntimeError("broken")
        return honest(message, context)

    more = {"quorum": 2, "rest_after": 2, "rest_rounds": 2}
    run(tmp_path, lambda done: ALL, app, num_rounds=3, **more)
    rows = run(tmp_path, lambda done: ALL, app, num_rounds=6, **more)
    assert [1 in row for row in asked(rows)] == [True, True, False, False, True, True]


def test_the_names_decide_whatever_the_nodes_ids(tmp_path: Path) -> None:
    data = make_sites(tmp_path)
    digests = []
    for place, order in enumerate((NAMES, NAMES[::-1])):
        settings = site_settings(tmp_path, out=str(tmp_path / f"run{place}"))
        nodes = [{"site": name, "data-dir": str(data / name)} for name in order]
        with InProcessGrid(honest, settings.run_config(), nodes) as grid, no_report():
            server_app(grid, Context(RUN_ID, SERVER_NODE, {}, RecordDict(), settings.run_config()))
        digests.append(read_rounds(tmp_path / f"run{place}")[-1]["digest"])
    assert digests[0] == digests[1]


def test_two_nodes_of_one_name_and_a_name_that_is_not_the_runs_take_no_part(tmp_path: Path) -> None:
    data = make_sites(tmp_path)
    settings = site_settings(tmp_path, out=str(tmp_path / "run"), round_timeout=3.0)
    nodes = [{"site": name, "data-dir": str(data / "north")} for name in ("north", "north", "west", "south")]
    with (
        InProcessGrid(honest, settings.run_config(), nodes) as grid,
        pytest.raises(FederationError, match=r"missing: east.*is site 'north' already"),
    ):
        server_app(grid, Context(RUN_ID, SERVER_NODE, {}, RecordDict(), settings.run_config()))


@given(st.sets(st.integers(0, 9), min_size=1), st.floats(0.01, 1.0), st.integers(1, 50))
def test_a_fraction_of_those_there_is_asked_rounded_up_and_the_same_for_the_same_round(here, share, number) -> None:
    settings = settings_of_sites(10, fraction=share, quorum=1)
    chosen = sample_clients(settings, number, sorted(here))
    assert chosen == sorted(set(chosen)) and set(chosen) <= here
    assert len(chosen) == math.ceil(Fraction(str(share)) * len(here))
    assert chosen == sample_clients(settings, number, sorted(here, reverse=True))


@given(st.lists(st.booleans(), min_size=1, max_size=12), st.integers(1, 4), st.integers(1, 4))
def test_a_client_rests_exactly_after_its_failures_in_a_row(outcomes, after, rounds) -> None:
    membership = Membership(settings_of_sites(2, quorum=1, rest_after=after, rest_rounds=rounds))
    row = rest_until = 0
    for number, fails in enumerate(outcomes, 1):
        here = membership.choose(number, {0, 1})
        assert (0 in here) == (number > rest_until)
        if 0 in here:
            membership.note(number, [0], {0} if fails else set())
            row = row + 1 if fails else 0
            if row == after:
                row, rest_until = 0, number + rounds


def test_a_rest_is_cut_short_where_the_quorum_needs_it() -> None:
    membership = Membership(settings_of_sites(3, quorum=2, rest_after=1))
    membership.note(1, [0, 1], {1})
    assert membership.choose(2, {0, 1, 2}) == [0, 2]
    assert membership.choose(2, {0, 1}) == [0, 1]
    assert membership.choose(2, {0}) == []


def failing(times: int) -> ClientApp:
    """Return the real ClientApp, of which every site fails in so many attempts at the second round."""
    app, seen = ClientApp(), dict.fromkeys(range(len(NAMES)), 0)
    app.query()(lambda message, context: honest(message, context))

    @app.train()
    def train(message: Message, context: Context) -> Message:
        about = records.about(message.content)
        if about["round"] == 2 and seen[int(about["client"])] < times:
            seen[int(about["client"])] += 1
            raise RuntimeError("the power is out")
        return honest(message, context)

    return app


def test_a_round_with_too_few_replies_is_tried_again_to_the_same_bits_or_ends_the_run(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", lambda done: ALL)
    rows = run(tmp_path / "twice", lambda done: ALL, failing(2), retries=2)
    assert [row["digest"] for row in rows] == [row["digest"] for row in whole]
    assert [sum("tried again: round 2: 0 of 3 replies are valid" in w for w in row["warnings"]) for row in rows] == [
        0,
        2,
        0,
    ]
    with pytest.raises(FederationError, match="round 2: 0 of 3 replies are valid"):
        run(tmp_path / "thrice", lambda done: ALL, failing(3), retries=2)
    assert len(read_rounds(tmp_path / "thrice" / "run")) == 1


def test_sites_are_waited_for_by_a_setting_of_their_own(tmp_path: Path) -> None:
    with pytest.raises(
        FederationError, match=r"within sites-timeout=0\.3 s, quorum=3; missing: east; .* raise sites-time"
    ):
        run(tmp_path, lambda done: {"north", "south"}, quorum=3, sites_timeout=0.3)


class Late(logging.Handler):
    """Lets something happen when the log says a word."""

    def __init__(self, word: str, then: Callable[[], None]) -> None:
        super().__init__()
        self._word, self._then = word, then

    def emit(self, record: logging.LogRecord) -> None:
        if self._word in record.getMessage():
            self._then()


def test_sites_that_are_late_are_heard_while_a_failed_round_is_tried_again(tmp_path: Path) -> None:
    app, again, held = ClientApp(), threading.Event(), set()
    app.query()(lambda message, context: honest(message, context))

    @app.train()
    def train(message: Message, context: Context) -> Message:
        client = int(records.about(message.content)["client"])
        if client not in held and client > 0:
            held.add(client)
            again.wait(60.0)
        return honest(message, context)

    listener = Late("It is tried again", again.set)
    logging.getLogger("fedasym").addHandler(listener)
    try:
        rows = run(tmp_path, lambda done: ALL, app, quorum=3, min_valid=2, round_timeout=3.0, sites_timeout=60.0)
    finally:
        logging.getLogger("fedasym").removeHandler(listener)
    assert rows[0]["clients_valid"] == 3 and rows[0]["warnings"][0].startswith("tried again: round 1: 1 of 3 replies")
    assert sum("does not count" in warning for warning in rows[0]["warnings"]) == 2
    assert rows[0]["payload_down"] == 2 * rows[1]["payload_down"]


def test_an_error_of_a_round_travels_between_processes_as_its_text() -> None:
    # As the process pool of a comparison brings its workers' errors home; these bytes are our own.
    found = pickle.loads(pickle.dumps(TooFewReplies("round 3: too few", Round(3, [0, 1]))))
    assert type(found) is FederationError and str(found) == "round 3: too few"
