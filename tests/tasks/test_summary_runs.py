"""Federations that learn to summarise: the same bits with two workers, killed and resumed, and at sites."""

import json
from pathlib import Path

import numpy as np
import pytest
from summaries import KINDS, make_documents, values_of
from world import crash_in_round, simulate, what_is_left

from clients.deploy.data_check import look
from clients.errors import Refusal
from clients.handshake import require_fit
from clients.node import NodeContext, node_context_of
from fedasym.runs.record import read_json, read_rounds
from fedasym.settings import Settings, from_run_config
from fedasym.tasks import task_of
from simulations.run import read_settings

ROOT = Path(__file__).resolve().parents[2]
ROUNDS = 3


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("summaries")


@pytest.mark.parametrize("kind", KINDS)
def test_a_second_run_with_two_workers_gives_the_same_bits_and_training_lowers_the_loss(
    models, root, tmp_path, kind: str
) -> None:
    found = []
    for name, workers in (("one", 1), ("two", 2)):
        more = {"schedule": "cosine", "warmup_rounds": 1, "num_rounds": ROUNDS, "optimizer": "adamw", "lr": 0.02}
        values = values_of(kind, models, root, out=str(tmp_path / name), beams=2, local_steps=6, **more)
        found.append(what_is_left(simulate(from_run_config(values), workers)))
    assert found[0] == found[1]
    rows = found[0][0]
    assert [row["clients_valid"] for row in rows] == [2] * ROUNDS
    assert rows[-1]["train_loss"] < rows[0]["train_loss"]


def test_killed_in_every_round_and_resumed_equals_never_killed(models, root, tmp_path) -> None:
    def settings(name: str) -> Settings:
        more = {"schedule": "cosine", "num_rounds": ROUNDS, "out": str(tmp_path / name)}
        return from_run_config(values_of("bart", models, root, **more))

    whole = simulate(settings("whole"))
    for number in range(1, ROUNDS + 1):  # each is recorded and not in the checkpoint
        assert len(read_rounds(crash_in_round(settings("killed"), number))) == number
    assert what_is_left(simulate(settings("killed"))) == what_is_left(whole)


def test_clients_judge_by_rouge_too(models, root, tmp_path) -> None:
    values = values_of("bart", models, root, out=str(tmp_path / "run"), method="fedsa", client_holdout=0.25)
    rows = read_rounds(simulate(from_run_config(values)))
    names = ("rougeL", "rouge1", "rouge2", "loss")
    assert all(row["metrics"].keys() == {*names} for row in rows)
    assert all({f"{name}_before", f"{name}_after"} <= row["client_metrics"].keys() for row in rows for name in names)
    assert all(0.0 <= row["metrics"][name] <= 1.0 for row in rows for name in names[:3])


@pytest.fixture
def sites(root: Path, tmp_path: Path) -> Path:
    """A folder of two sites, each with its section's documents."""
    rows = [json.loads(line) for line in (make_documents(tmp_path / "all") / "train.jsonl").read_text().splitlines()]
    for site in ("games", "libs"):
        (tmp_path / "sites" / site).mkdir(parents=True)
        own = [json.dumps(row) for row in rows if row["section"] == site]
        (tmp_path / "sites" / site / "train.jsonl").write_text("\n".join(own) + "\n")
    return tmp_path / "sites"


def test_sites_with_data_of_their_own_end_with_the_bits_of_a_split_by_their_column(
    models, root, tmp_path, sites
) -> None:
    split = simulate(from_run_config(values_of("bart", models, root, out=str(tmp_path / "split"))))
    values = values_of("bart", models, root, out=str(tmp_path / "run"), sites="games,libs")
    del values["split"], values["num-clients"]
    apart = simulate(from_run_config(values), data=sites)
    assert read_json(split / "summary.json")["digest"] == read_json(apart / "summary.json")["digest"]
    settings = from_run_config(values | {"sites": "games", "min-examples": 1})
    assert look(json.dumps(settings.run_config()), str(sites / "games")) == "24 rows of train"


def test_a_site_lends_its_documents_and_summaries_and_no_other_column(tmp_path) -> None:
    lent = {"sites": "games", "num_clients": 1, "model": "t5-small", "data": "reviews"}
    run = {"task": "summarize", "text_columns": "document", **lent}
    settings = Settings(**run)
    lends = task_of(settings).reads
    assert lends == {"text-columns": "document", "answer-column": "summary", "train-split": "train"}
    place = NodeContext(site="games", data=str(tmp_path), lends=lends)
    require_fit(settings, place)
    require_fit(Settings(**run | {"task": "summarize-causal"}), place)
    with pytest.raises(Refusal, match="answer-column: 'summary' there, 'diagnosis' here"):
        require_fit(Settings(**run, answer_column="diagnosis"), place)
    with pytest.raises(Refusal, match="label-column: 'absent' there"):
        require_fit(Settings(task="classification", labels="a,b", **lent), place)
    told = {"site": "games", "data-dir": "/data", "answer-column": "notes"}
    assert node_context_of(told).lends == {"answer-column": "notes"}


@pytest.mark.parametrize("name", ["xsum", "cnn-dailymail", "bart-summaries"])
def test_the_configs_of_the_family_are_settings(name: str) -> None:
    settings = read_settings(ROOT / "simulations" / "configs" / f"{name}.toml", [], None).resolved()
    task = task_of(settings)
    columns = {"xsum": ("document", "summary"), "cnn-dailymail": ("article", "highlights")}
    assert task.inputs.columns == columns.get(name, ("document", "summary")) and task.metric == "rougeL"
    assert np.isfinite(settings.lr)
