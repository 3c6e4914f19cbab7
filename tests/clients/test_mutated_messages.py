"""Whatever a server sends, a client answers or says why not; of a message that it refuses it keeps nothing."""

import json
import time
from collections import Counter
from pathlib import Path
from random import Random

import pytest
from flwr.app import ConfigRecord, RecordDict
from reply_mutations import NASTY, copy_of, spoiled_records
from world import site_settings, tiny_settings

from clients.errors import QUERY, TRAIN
from clients.message_handler import answer
from clients.node import NodeContext
from clients.session import Session, session_of
from fedasym.methods import METHODS
from fedasym.settings import Settings
from fedasym.wire import records

SECONDS = 20.0  # of a core for one message; the honest ones take well below one
RUN = "0" * 32


def messages_of(session: Session) -> dict[str, RecordDict]:
    """Return the honest messages: the handshake, and the first round's with all that a party holds."""
    contract = session.contract
    about: records.About = {"contract": contract.hash, "round": 1, "run": RUN, "whole": True, "client": 0}
    order: records.About = {**about, "dtype": session.settings.dtype, "weights": []}
    schema = METHODS[session.settings.method].held_schema(contract.schema)
    logits = [float(value) for value in session.built.logits]
    stated = {"contract": contract.to_json(), "logits": logits, "dtype": session.settings.dtype}
    return {
        QUERY: RecordDict({"about": ConfigRecord(stated)}),
        TRAIN: records.pack(session.initial, schema, order),
    }


def spoiled_contract(stated: str, rng: Random) -> str:
    """Change one value of a contract, or a character of its text."""
    if rng.random() < 0.3:
        place = rng.randrange(len(stated))
        return stated[:place] + rng.choice(("", "[", "}", '"', "\0", "[" * 9000)) + stated[place + 1 :]
    said = json.loads(stated)
    words = (None, True, 0, -1, 1e308, "", NASTY, [], [[]], {}, {"a": []}, [["x", 3]], [["x.B", [1, "2"]]], [[[], []]])
    said[rng.choice([*said, "new"])] = rng.choice(words)
    return json.dumps(said)


def kept(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def required_answer(kind: str, said: RecordDict, session: Session) -> str:
    """Require a refusal with a reason or an answer of the contract, whole; say which."""
    if "refusal" in said:
        assert said.config_records["refusal"]["reason"]
        return "refused"
    if kind == TRAIN:
        records.unpack(said, session.contract.schema)
    assert kind == TRAIN or said.config_records["about"]["contract"] == session.contract.hash
    return "answered"


def run_messages(settings: Settings, place: NodeContext, count: int, state: Path) -> Counter[str]:
    """Send a client mutated messages; hold it to an answer each, and to the honest one's bits again and again."""
    session, config = session_of(settings), settings.run_config()
    honest, outcomes = messages_of(session), Counter[str]()
    first = {kind: answer(kind, copy_of(content), config, 1, place) for kind, content in honest.items()}
    assert "refusal" not in first[QUERY] and "refusal" not in first[TRAIN]
    before, values = kept(state), records.unpack(first[TRAIN], session.contract.schema)
    for number in range(count):
        rng = Random(number)
        kind = rng.choice((QUERY, TRAIN, TRAIN))
        content = spoiled_records(honest[kind], rng, [*honest.values()])
        if kind == QUERY and rng.random() < 0.5:
            stated = {**honest[QUERY].config_records["about"]}
            content["about"] = ConfigRecord({**stated, "contract": spoiled_contract(str(stated["contract"]), rng)})
        began = time.thread_time()
        said = answer(kind, content, config, 1, place)
        assert time.thread_time() - began < SECONDS
        outcome = required_answer(kind, said, session)
        outcomes[f"{kind} {outcome}"] += 1
        if outcome == "refused":
            assert kept(state) == before, content
        before = kept(state)
        if number % 50 == 0:
            again = answer(TRAIN, copy_of(honest[TRAIN]), config, 1, place)
            assert records.digest(records.unpack(again, session.contract.schema)) == records.digest(values)
            before = kept(state)
    return outcomes


@pytest.mark.parametrize(
    ("method", "count"),
    [
        pytest.param("flora", 60, id="quick"),
        pytest.param("asymmetric", 2_000, marks=pytest.mark.slow, id="asymmetric"),
        pytest.param("flora", 2_000, marks=pytest.mark.slow, id="flora"),
    ],
)
def test_a_mutated_message_is_answered_or_refused_in_words_and_leaves_nothing(
    tmp_path: Path, method: str, count: int
) -> None:
    settings = tiny_settings(tmp_path, method=method, local_steps=1, out=str(tmp_path / "run")).resolved()
    outcomes = run_messages(settings, NodeContext(state=str(tmp_path / "state")), count, tmp_path / "state")
    print(outcomes)
    assert min(outcomes[f"{kind} {end}"] for kind in (QUERY, TRAIN) for end in ("refused", "answered")) > 0


def test_at_a_site_nothing_of_a_mutated_message_or_of_the_data_is_told(tmp_path: Path) -> None:
    settings = site_settings(tmp_path, local_steps=1).resolved()
    (tmp_path / "own").mkdir()
    rows = (tmp_path / "data/train.jsonl").read_text()
    (tmp_path / "own/train.jsonl").write_text(rows)
    place = NodeContext(
        site="north", data=str(tmp_path / "own"), state=str(tmp_path / "state"), log=str(tmp_path / "site.log")
    )
    assert run_messages(settings, place, 30, tmp_path / "state")
    assert NASTY not in repr(answer(TRAIN, RecordDict({"about": ConfigRecord({"round": NASTY})}), {}, 1, place))
