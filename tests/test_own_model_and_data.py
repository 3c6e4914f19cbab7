"""The page about one's own model and data is true: its commands run, and what it quotes is what is said."""

import json
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
import torch
import transformers
from page_commands import ROOT, commands, filled, flower_run, flower_shell, overrides_of
from pictures import make_domains, make_vit
from quiz import make_quiz, make_writer
from summaries import make_documents
from world import make_data, make_model, no_report, simulate

from fedasym.runs.record import read_json
from simulations.__main__ import main
from simulations.run import read_settings

PAGE = (ROOT / "docs" / "your-own-model-and-data.md").read_text()
IN_PROCESS = [line for line in commands(PAGE) if line.startswith("python -m simulations run ")]
AFTER = [line for line in commands(PAGE) if re.match("python -m simulations (predict|export) ", line)]
COMPARED = [line for line in commands(PAGE) if line.startswith("python -m simulations compare ")]
FLOWER = [line for line in commands(PAGE) if line.startswith("flwr run . --stream -c '")]
QUICK = ("num-rounds=1", "local-steps=1", "test-cap=3")


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory, models: dict[str, Path]) -> dict[str, str]:
    """Make what stands behind the page's /path/to names, each as the page lays it out."""
    root = tmp_path_factory.mktemp("own")
    make_model(root / "encoder")
    reviews = pd.read_json(make_data(root / "reviews") / "train.jsonl", lines=True)
    make_writer(root / "writer")
    make_quiz(root / "quiz")
    (root / "quiz" / "instructions").rename(root / "instructions")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        bart = transformers.AutoModelForSeq2SeqLM.from_pretrained(models["bart"])
    bart.save_pretrained(root / "encoder-decoder")
    transformers.AutoTokenizer.from_pretrained(models["bart"]).save_pretrained(root / "encoder-decoder")
    make_documents(root / "news")
    make_vit(root / "vit")
    make_domains(root / "domains")
    for old, new in (("bright", "photo"), ("dark", "drawing"), ("grey", "sketch")):
        (root / "domains" / old).rename(root / "domains" / new)

    texts = reviews["text"]
    turns = [[{"role": "user", "content": text}, {"role": "assistant", "content": text[:4]}] for text in texts]
    photos = sorted((root / "domains" / "photo").rglob("*.png"))
    images = pd.DataFrame({"image": [f"files/{p.name}" for p in photos], "label": [p.parent.name for p in photos]})
    tables = {
        "pairs": pd.DataFrame({"first": texts, "second": texts[::-1].tolist(), "score": [i % 5 for i in range(160)]}),
        "chats": pd.DataFrame({"messages": turns}),
        "texts": pd.DataFrame({"text": texts}),
        "table": pd.concat([images, images]),
    }
    for name, frame in tables.items():
        (root / name).mkdir()
        for split, rows in (("train", frame[:40]), ("test", frame[-8:])):
            rows.to_json(root / name / f"{split}.jsonl", orient="records", lines=True)
    (root / "instructions" / "validation.jsonl").rename(root / "instructions" / "test.jsonl")
    (root / "table" / "files").mkdir()
    for number, photo in enumerate(photos * 2):
        split = "test" if number < 4 else "train"
        folder = root / "classes" / split / photo.parent.name
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(photo, folder / f"{number}.png")
        shutil.copy(photo, root / "table" / "files")
    names = ["runs", "merged", *(path.name for path in root.iterdir())]
    return {f"/path/to/{name}": str(root / name) for name in names}


def test_every_family_and_layout_has_its_commands() -> None:
    said = [dict(pair.split("=", 1) for pair in shlex.split(line) if "=" in pair) for line in IN_PROCESS]
    kinds = [{words.get(key, "") for words in said} for key in ("task", "instruct-format", "image-layout")]
    assert kinds == [
        {"classification", "regression", "instruct", "summarize", "summarize-causal", "images"},
        {"", "chat", "text"},
        {"", "classes", "domains"},
    ]
    assert len(FLOWER) == 4 and len(commands(PAGE)) == sum(map(len, (IN_PROCESS, AFTER, COMPARED, FLOWER)))
    runs = {shlex.split(line)[-1] for line in IN_PROCESS}
    assert {shlex.split(line)[4] for line in AFTER} <= runs


@pytest.mark.parametrize("command", IN_PROCESS, ids=lambda line: Path(shlex.split(line)[-1]).name)
def test_an_in_process_command_of_the_page_completes(
    command: str, places: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    words = shlex.split(filled(command, places))[3:]
    with no_report():
        assert main([*words, *(f"--set={pair}" for pair in QUICK), "--workers", "1"]) == 0, capsys.readouterr().out
    folder = Path(words[-1])
    assert read_json(folder / "summary.json")["rounds"] == 1
    assert (folder / "adapter" / "adapter_model.safetensors").exists()
    assert "/path/to" not in " ".join(words)
    for after in (shlex.split(filled(line, places)) for line in AFTER):
        if after[4] == str(folder):  # those of the page that use this run
            capsys.readouterr()
            assert main(after[3:]) == 0 and "/path/to" not in " ".join(after)
            said = capsys.readouterr().out
            assert said.strip()
            if "--merged" in after:
                assert json.loads((Path(after[-1]) / "config.json").read_text())["model_type"]


@pytest.mark.slow
@pytest.mark.parametrize("command", COMPARED, ids=["compared"])
def test_a_comparison_of_the_page_is_tuned_and_ends_with_its_report(command: str, places: dict[str, str]) -> None:
    words = shlex.split(filled(command, places))[3:]
    assert main([*words, *(f"--set={pair}" for pair in QUICK), "--jobs", "1"]) == 0
    assert (Path(words[-1]) / "report.html").exists() and "/path/to" not in " ".join(words)


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    with flower_shell(tmp_path_factory.mktemp("flower")) as environment:
        yield environment


@pytest.mark.slow
@pytest.mark.parametrize("command", FLOWER, ids=lambda line: Path(shlex.split(overrides_of(line)[-1])[0]).name)
def test_each_family_ends_in_flowers_engine_with_the_bits_of_one_process(
    command: str, places: dict[str, str], shell: dict[str, str], tmp_path: Path
) -> None:
    command = filled(command, places).replace("-c '", "-c 'num-rounds=2 local-steps=1 ")
    folder = flower_run(command, shell)
    assert (folder / "report.html").exists()
    same = simulate(read_settings(None, overrides_of(command), tmp_path / "local"), workers=1)
    assert read_json(same / "summary.json")["digest"] == read_json(folder / "summary.json")["digest"]


def test_what_the_page_quotes_is_said_somewhere() -> None:
    source = "\n".join(path.read_text() for path in (ROOT / "fedasym").rglob("*.py"))
    quoted = re.findall(r"^\| `([^`]+)` \|", PAGE, re.MULTILINE)
    assert len(quoted) == 12 and not [text for text in quoted if text not in source]
