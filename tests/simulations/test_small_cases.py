"""Small inputs that went wrong for others: each is refused by name, or trained as it is meant; see the table."""

import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import transformers
from page_commands import ROOT, final_status, flower_shell
from world import simulate

from fedasym.data.examples import load_examples
from fedasym.fields import Value
from fedasym.reports.run_page import command_with
from fedasym.runs.record import read_json
from fedasym.settings import from_run_config


@dataclass(frozen=True)
class Case:
    """A training file and a held-out one, and what comes of them: a part of the refusal; "" if they are trained."""

    suffix: str
    train: str
    refused: str
    family: str = "bert"
    split: str = "iid"
    encoding: str = "utf-8"


_TWO = '{"text": "the word1 word2", "label": "good"}\n'
CASES = {
    "a comma inside an unquoted text": Case(
        "csv", "text,label\nNot good, really bad,neg\nYes, always,pos\n",
        "train.csv: line 2 has 3 fields, expected 2 (text, label)",
    ),
    "a trailing comma on every row": Case(
        "csv", "label,text,source\nneg,bad film,x,\npos,good film,y,\n",
        "train.csv: line 2 has 4 fields, expected 3 (label, text, source)",
    ),
    "latin-1 bytes": Case(
        "csv", "text,label\nbar,bad\ncaf\xe9,good\n", "train.csv: line 3 is not UTF-8 (byte 0xe9 at", encoding="latin1"
    ),
    "a list as label": Case(
        "jsonl", '{"text": "the fine film", "label": [0, 2]}\n{"text": "the dull film", "label": [1]}\n',
        "row 0: column 'label' holds a list ([0, 2]), and a label is one value",
    ),
    "a text that holds the end's token": Case(
        "jsonl", _TWO + '{"text": "word3 [SEP] the word4", "label": "bad"}\n', "", family="bart"
    ),
    "a client whose texts are one token long": Case(
        "csv", "text,label,who\nword1,pos,a\nword2,neg,a\nword1 word3 word4,pos,b\nword5 word2 word6,neg,b\n", "",
        family="llama", split="column:who",
    ),
    "a tsv with its writer's quotes": Case(
        "tsv", 'text\tlabel\n"a ""fine"" film"\tpos\ndull film\tneg\n"a ""warm"" film"\tpos\ngrey film\tneg\n', ""
    ),
}  # fmt: skip


def config_of(case: Case, root: Path, models: dict[str, Path]) -> dict[str, Value]:
    """Write a case's files, and its model where it is not one of the families'; return a run's config."""
    data = root / "data"
    data.mkdir()
    for name in ("train", "test"):
        (data / f"{name}.{case.suffix}").write_bytes(case.train.encode(case.encoding))
    model = models[case.family]
    if case.family == "llama":  # without a token at the beginning, so that one word is one token
        transformers.AutoModel.from_pretrained(model).save_pretrained(root / "model")
        tokenizer = transformers.AutoTokenizer.from_pretrained(model)
        tokenizer.backend_tokenizer.post_processor = None
        tokenizer.save_pretrained(root / "model")
        model = root / "model"
    return {
            "task": "classification", "model": str(model), "data": str(data), "dtype": "float32", "num-clients": 2,
            "split": case.split, "min-examples": 1, "batch-size": 2, "local-steps": 1, "num-rounds": 1, "rank": 2,
            "out": str(root / "run"), "max-length": 16,
    }  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_in_one_process_a_case_ends_as_it_should(tmp_path: Path, models: dict[str, Path], name: str) -> None:
    case = CASES[name]
    settings = from_run_config(config_of(case, tmp_path, models))
    if case.refused:
        with pytest.raises(ValueError) as raised:
            simulate(settings)
        assert case.refused in str(raised.value)
        assert not (tmp_path / "run/rounds.jsonl").exists()
        return
    (row,) = map(json.loads, (simulate(settings) / "rounds.jsonl").read_text().splitlines())
    assert row["clients_valid"] == 2 and not row["rejections"]
    if case.suffix == "tsv":
        assert 'a "fine" film' in load_examples(settings)[0].inputs[0]


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    with flower_shell(tmp_path_factory.mktemp("flower")) as environment:
        yield environment


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_by_flwr_run_a_case_ends_as_it_should(
    tmp_path: Path, models: dict[str, Path], name: str, shell: dict[str, str]
) -> None:
    case = CASES[name]
    command = f"{command_with(config_of(case, tmp_path, models))} --stream"
    run = subprocess.run(["bash", "-c", command], cwd=ROOT, env=shell, capture_output=True, text=True)
    final_status(shell)
    said = run.stdout + run.stderr
    if case.refused:
        assert case.refused in said and not (tmp_path / "run/summary.json").exists(), said[-3000:]
    else:
        assert read_json(tmp_path / "run/summary.json")["rounds"] == 1, said[-3000:]
