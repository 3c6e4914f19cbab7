"""Sites with data of their own: the same bits as a split of the same data, and nothing of the data leaves a site."""

import json
from pathlib import Path

import pytest
from flwr.app import ConfigRecord, RecordDict
from world import make_sites, simulate, site_settings, tiny_settings, tiny_values

from clients.errors import Refusal
from clients.handshake import require_fit
from clients.message_handler import QUERY, TRAIN, WARM, answer
from clients.node import NodeContext, node_context_of
from clients.session import session_of
from fedasym.data.examples import load_own_examples
from fedasym.runs.record import read_json, read_rounds
from fedasym.settings import Settings, from_run_config
from fedasym.tasks import task_of
from server.failure import FederationError
from server.session import prepare
from simulations.engines.ray import run_flower

NAMES = ("east", "north", "south")  # in the order of a column's values
SECRET = "the patient of room 7"


@pytest.fixture
def world(tmp_path: Path) -> Path:
    make_sites(tmp_path, NAMES)
    return tmp_path


def digest_of(folder: Path) -> str:
    return str(read_json(folder / "summary.json")["digest"])


def query_of(settings: Settings) -> RecordDict:
    bench = prepare(settings)
    return RecordDict({"about": ConfigRecord({"contract": bench.contract.to_json(), "logits": [*bench.built.logits]})})


def test_sites_end_with_the_bits_of_a_split_by_a_column_that_names_them(world: Path) -> None:
    rows = [
        {**json.loads(line), "site": name}
        for name in NAMES
        for line in (world / "sites" / name / "train.jsonl").read_text().splitlines()
    ]
    (world / "together").mkdir()
    (world / "together/train.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    (world / "together/test.jsonl").write_text((world / "data/test.jsonl").read_text())
    own = site_settings(world, sites=",".join(NAMES), out=str(world / "own"))
    apart = tiny_settings(
        world, split="column:site", num_clients=3, data=str(world / "together"), out=str(world / "split")
    )
    assert digest_of(simulate(own, 1, world / "sites")) == digest_of(simulate(apart, 1))


def test_the_number_of_workers_changes_no_bit_and_n_k_are_the_sites_own(world: Path) -> None:
    one = simulate(site_settings(world, out=str(world / "one")), 1, world / "sites")
    two = simulate(site_settings(world, out=str(world / "two")), 2, world / "sites")
    assert digest_of(one) == digest_of(two)
    sizes = [
        len((world / "sites" / name / "train.jsonl").read_text().splitlines()) for name in ("north", "south", "east")
    ]
    assert read_rounds(one)[0]["weights"] == {str(k): size for k, size in enumerate(sizes)}
    assert len(set(sizes)) == 3


def test_a_server_without_data_judges_by_what_the_sites_keep_out(world: Path) -> None:
    settings = site_settings(world, data="none", client_holdout=0.2, num_rounds=1, out=str(world / "run"))
    row = read_rounds(simulate(settings, 1, world / "sites"))[0]
    assert row["metrics"]["accuracy"] == row["client_metrics"]["accuracy_after"]
    assert read_json(world / "run/config.json")["held_out_examples"] == 0


def test_what_is_wrong_with_a_sites_data_is_told_as_a_code_and_written_in_its_own_log(world: Path) -> None:
    with (world / "sites/south/train.jsonl").open("a") as file:
        file.write(json.dumps({"text": SECRET, "label": f"{SECRET}!"}) + "\n")
    settings = site_settings(world, round_timeout=5.0, out=str(world / "run"))
    with pytest.raises(FederationError, match=r"missing: south.*error \w{8} at site south") as raised:
        simulate(settings, 1, world / "sites")
    assert SECRET not in str(raised.value)
    code = str(raised.value).split("error ")[1][:8]
    log = (world / "run/sites.log").read_text()
    assert code in log and SECRET in log


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("", "holds no examples"),
        ('{"words": "a"}\n', "no column text"),
        (
            '{"text": "a", "label": "fair"}\n' * 5,
            "holds the labels fair in column 'label'; those of the task are bad",
        ),
        ('{"text": "a", "label": "bad"}\n', "holds 1 examples, fewer than min-examples=5"),
        ('{"text": null, "label": "bad"}\n' * 5, "row 0: column 'text' is empty"),
    ],
)
def test_a_data_folder_that_cannot_be_used_is_named_with_what_is_wrong(
    tmp_path: Path, content: str, named: str
) -> None:
    folder = tmp_path / "own"
    folder.mkdir()
    (folder / "train.jsonl").write_text(content)
    with pytest.raises(ValueError, match=named):
        load_own_examples(site_settings(tmp_path), folder)
    with pytest.raises(FileNotFoundError, match="there is no data folder"):
        load_own_examples(site_settings(tmp_path), tmp_path / "absent")


def test_another_contract_is_refused_before_any_data_are_read(world: Path) -> None:
    settings = site_settings(world).resolved()
    stated, config = query_of(settings), settings.run_config()
    absent = str(world / "absent")
    state = str(world / "state")
    pinned = NodeContext(site="north", data=absent, state=state, contract="0" * 64)
    for kind in (QUERY, TRAIN):
        reason = answer(kind, stated, config, 1, pinned)["refusal"]["reason"]
        assert "works under the contract 0000" in str(reason) and prepare(settings).contract.hash in str(reason)
    other = answer(QUERY, stated, {**config, "rank": 2}, 1, NodeContext(site="north", data=absent))["refusal"]["reason"]
    assert "rank: 4 there, 2 here" in str(other)
    fits = NodeContext(site="north", data=absent, state=state, contract=prepare(settings).contract.hash)
    assert "error " in str(answer(QUERY, stated, config, 1, fits)["refusal"]["reason"])  # now it looked


def test_a_pinned_contract_is_kept_in_a_folder_of_the_sites_and_never_where_its_process_stands() -> None:
    config = {"site": "north", "data-dir": "/data", "contract": "0" * 64}
    with pytest.raises(ValueError, match=r"contract='0+' and no state-dir, .*; give it a folder"):
        node_context_of(config)
    assert node_context_of({**config, "state-dir": "/state"}).contract == "0" * 64


def test_a_pinned_site_loads_nothing_but_the_model_of_its_contract(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = site_settings(world).resolved()
    stated, config, agreed = query_of(settings), settings.run_config(), prepare(settings).contract.hash
    loaded: list[str] = []

    def load(settings: Settings):
        loaded.append(settings.model)
        return session_of(settings)

    monkeypatch.setattr("clients.message_handler.session_of", load)
    own = {"site": "north", "data": str(world / "sites/north"), "state": str(world / "state"), "contract": agreed}
    place = NodeContext(**own)
    assert "refusal" not in answer(WARM, stated, config, 1, place) and not loaded  # nobody has said yet what it is
    said = answer(TRAIN, RecordDict({"about": ConfigRecord({"contract": agreed})}), config, 1, place)
    assert "has not heard the contract" in str(said["refusal"]["reason"]) and not loaded
    elsewhere = config | {"model": "somebody/else"}
    for kind in (QUERY, TRAIN):
        said = answer(kind, stated, elsewhere, 1, place)
        assert "the run names model 'somebody/else, revision main', and its contract" in str(said["refusal"]["reason"])
    other = RecordDict({"about": ConfigRecord({"contract": '{"model": "somebody/else, revision main"}'})})
    assert "works under the contract" in str(answer(QUERY, other, elsewhere, 1, place)["refusal"]["reason"])
    assert not loaded
    assert "refusal" not in answer(QUERY, stated, config, 1, place) and loaded == [settings.model]


def test_a_site_takes_part_under_its_own_name_alone(world: Path) -> None:
    settings = site_settings(world).resolved()
    stranger = NodeContext(site="west", data=str(world / "sites/north"))
    reason = answer(QUERY, query_of(settings), settings.run_config(), 1, stranger)["refusal"]["reason"]
    assert "site 'west' is none of the run's sites='north,south,east'" in str(reason)


@pytest.mark.parametrize("kind", [QUERY, WARM, TRAIN])
def test_a_run_that_names_no_sites_reads_nothing_of_a_site(world: Path, kind: str) -> None:
    # The run's data are the site's own folder, and its texts would be the labels, which a contract states.
    folder = world / "sites/north"
    (folder / "train.jsonl").write_text(json.dumps({"text": SECRET, "label": "bad"}) + "\n")
    values = {"data": str(folder), "validation-cut": 1, "text-columns": "label", "label-column": "text"}
    config = tiny_settings(world).run_config() | values
    own = NodeContext(
        site="north", data=str(folder), state=str(world / "state"), contract="0" * 64, log=str(world / "log")
    )
    said = answer(kind, query_of(tiny_settings(world).resolved()), config, 1, own)["refusal"]["reason"]
    assert "site 'north' has data of its own, and the run's sites=''" in str(said)
    assert SECRET not in str(said) and not (world / "log").exists()


@pytest.mark.parametrize("kind", [QUERY, WARM, TRAIN])
@pytest.mark.parametrize(
    "otherwise", [{"text-columns": "diagnosis"}, {"label-column": "outcome"}, {"train-split": "../south/train"}]
)
def test_a_site_lends_its_data_as_it_says_and_not_otherwise(world: Path, kind: str, otherwise: dict) -> None:
    settings = site_settings(world).resolved()
    config = settings.run_config()
    own = NodeContext(site="north", data=str(world / "sites/north"), lends=task_of(settings).reads)
    assert "refusal" not in answer(QUERY, query_of(settings), config, 1, own)
    said = answer(kind, query_of(settings), config | otherwise, 1, own)["refusal"]["reason"]
    (key, value), *_ = otherwise.items()
    assert f"{key}: {config[key]!r} there, {value!r} here" in str(said)


def test_what_a_site_lends_is_what_is_read_whatever_the_task_is_called(world: Path) -> None:
    lends = {"text-columns": "text", "label-column": "label", "labels": "0,1", "train-split": "train"}
    place = NodeContext(site="north", data=str(world / "absent"), lends=lends)
    own = {"sites": "north", "num_clients": 1, "model": "minilm"}
    require_fit(Settings(**own, labels="0,1", data="reviews"), place)
    require_fit(Settings(**own, labels="0,1", data="reviews", task="classification"), place)
    with pytest.raises(Refusal, match="text-columns: 'text' there, 'sentence' here"):
        require_fit(Settings(**own, task="sst2"), place)


def test_a_place_is_a_site_with_data_or_neither() -> None:
    assert node_context_of({"partition-id": 2, "num-partitions": 5}) == NodeContext(share=2, shares=5)
    assert node_context_of({"site": "north", "data-dir": "/data"}).private
    assert node_context_of({"site": "north", "data-dir": "/data", "labels": "a,b"}).lends == {"labels": "a,b"}
    with pytest.raises(ValueError, match=r"site='north' and data-dir=''"):
        node_context_of({"site": "north"})


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"sites": "a,a"}, "must be different names"),
        ({"sites": "a,../b"}, "must be different names"),
        ({"labels": ""}, "sites cannot see one another's labels"),
        ({"num-clients": 7}, "num-clients=7, but sites names 3"),
        ({"split": "iid"}, "split='iid' does nothing with sites"),
        ({"validation-cut": 5}, "validation-cut=5 does nothing with sites"),
        ({"sites": "", "data": "none"}, "data='none' leaves nothing to learn from"),
        ({"data": "none"}, "data='none' is evaluated at the clients only"),
        ({"data": "demo"}, "sites have no default for data, which is the demo's here; set it, to 'reviews' or 'none'"),
        ({"model": "demo"}, "sites have no default for model, which is the demo's here; set it, to 'minilm'"),
        ({"max-weight": 0.5}, "max-weight=0.5 would refuse the median site"),
        ({"sites": "", "max-weight": 2.0}, "max-weight=2.0 does nothing without sites"),
        ({"sites": "", "quorum": 2}, "quorum=2 does nothing without sites"),
        ({"quorum": 4}, "quorum=4 exceeds the 3 clients"),
        ({"quorum": 1, "min-valid": 2}, "min-valid=2 exceeds the clients asked each round, 1 at a quorum"),
        ({"fraction": 0.5, "clients-per-round": 1}, "goes without clients-per-round=1"),
        ({"fraction": 1.5}, "fraction=1.5 must be above 0 and at most 1"),
        ({"rest-rounds": 3}, "rest-rounds=3 does nothing with rest-after=0"),
    ],
)
def test_settings_of_sites_that_contradict_one_another_are_refused(tmp_path: Path, values: dict, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        from_run_config(site_settings(tmp_path).run_config() | values)


def test_engines_without_data_of_their_own_say_so(tmp_path: Path) -> None:
    settings = site_settings(tmp_path)
    with pytest.raises(ValueError, match="simulated nodes cannot have data of their own"):
        run_flower(settings, 1)
    with pytest.raises(ValueError, match="give both"):
        simulate(settings, 1)
    with pytest.raises(ValueError, match="give both"):
        simulate(from_run_config(tiny_values(tmp_path)), 1, tmp_path)
