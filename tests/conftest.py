"""Tiny models of five families and a tiny data set of three classes, made once a session, offline."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports huggingface_hub
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # threads that wait for a core that others use do not spin

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tokenizers
import torch
import transformers
from hypothesis import settings
from kits import make_kit
from world import make_data

from fedasym.settings import Settings
from fedasym.tasks import glue
from simulations import versions

FAMILIES = ("bert", "roberta", "distilbert", "bart", "llama")
CLASSES = ("bad", "good", "plain")
settings.register_profile("ours", deadline=None)  # how long an example takes says more of the machine than of us
settings.load_profile("ours")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
WORDS = (*CLASSES, *(f"word{i}" for i in range(24)))


def _tokenizer() -> transformers.PreTrainedTokenizerFast:
    vocabulary = {word: i for i, word in enumerate((*SPECIAL, *WORDS))}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    backend.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]", bos_token="[CLS]", eos_token="[SEP]"
    )


def _config(family: str) -> transformers.PreTrainedConfig:
    ids = {"vocab_size": len(SPECIAL) + len(WORDS), "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
    if family == "distilbert":
        return transformers.DistilBertConfig(dim=16, hidden_dim=24, n_layers=2, n_heads=2, **ids)
    if family == "bart":
        sides = {f"{side}_{key}": n for side in ("encoder", "decoder") for key, n in _SIDE.items()}
        return transformers.BartConfig(d_model=16, decoder_start_token_id=3, forced_eos_token_id=None, **sides, **ids)
    common = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, **ids}
    if family == "llama":
        return transformers.LlamaConfig(num_key_value_heads=1, **common)
    return {"bert": transformers.BertConfig, "roberta": transformers.RobertaConfig}[family](**common)


_SIDE = {"layers": 1, "attention_heads": 2, "ffn_dim": 24}


# What a marked test needs, by the variable of the environment that names it.
NEEDS = {"glue": glue.VARIABLE, "other_env": versions.VARIABLE}
# The files that take longest, longest first, those of slow tests before the others: the processes then end at about the
# same time.
LONG = (
    "mutated_replies",
    "deployment",
    "up",
    "random_kills",
    "many_clients",
    "hostile_site",
    "demo",
    "service",
    "plugins",
    "readme",
    "engines",
    "compare",
    "progress",
    "site_up",
    "study",
    "fork_server",
    "resume",
    "behind",
    "run_report",
    "interrupts",
)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Put the long files first; deselect tests whose data or second environment the environment does not name."""
    places = {f"test_{name}.py": place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: places.get(item.path.name, len(LONG)))
    for marker, variable in NEEDS.items():
        if not os.environ.get(variable):
            left_out = [item for item in items if item.get_closest_marker(marker)]
            config.hook.pytest_deselected(items=left_out)
            items[:] = [item for item in items if item not in left_out]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Give PyTorch one thread: a server leaves it all cores, from which tiny models gain nothing."""
    torch.set_num_threads(1)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say it when tests are left out for want of data, or of a second environment (`make other-env`)."""
    for marker, variable in NEEDS.items():
        if not os.environ.get(variable):
            terminalreporter.write_line(f"{variable} is unset: tests marked {marker} are deselected")


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One folder a family, of the base model: the checkpoint lacks every classification head."""
    root = tmp_path_factory.mktemp("models")
    for family in FAMILIES:
        with torch.random.fork_rng():
            torch.manual_seed(7)
            transformers.AutoModel.from_config(_config(family)).save_pretrained(root / family)
        _tokenizer().save_pretrained(root / family)
    return {family: root / family for family in FAMILIES}


@pytest.fixture(scope="session")
def frames() -> dict[str, pd.DataFrame]:
    """Texts of 2 to 11 words; the first says the class, by name in ``label``, by number in ``score``."""
    rng, made = np.random.default_rng(5), {}
    for split, size in {"train": 60, "test": 24}.items():
        ids = np.arange(size) % len(CLASSES)
        rests = [" ".join(rng.choice(WORDS[3:], rng.integers(1, 11))) for _ in range(size)]
        made[split] = pd.DataFrame(
            {
                "text": [f"{CLASSES[i]} {rest}" for i, rest in zip(ids, rests, strict=True)],
                "second": [f"{rest} word0" for rest in rests],
                "label": [CLASSES[i] for i in ids],
                "score": ids * 0.5 - 0.25,
            }
        )
    return made


@pytest.fixture(scope="session")
def data(frames: dict[str, pd.DataFrame], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the same examples in the subfolders csv, tsv, jsonl, parquet and hub (the hub's file names)."""
    root = tmp_path_factory.mktemp("data")
    for kind in ("csv", "tsv", "jsonl", "parquet", "hub"):
        (root / kind).mkdir()
    for split, frame in frames.items():
        frame.to_csv(root / f"csv/{split}.csv", index=False)
        frame.to_csv(root / f"tsv/{split}.tsv", index=False, sep="\t")
        frame.to_json(root / f"jsonl/{split}.jsonl", orient="records", lines=True)
        frame.to_parquet(root / f"parquet/{split}.parquet")
        frame.to_parquet(root / f"hub/{split}-00000-of-00001.parquet")
    return root


@pytest.fixture(scope="session")
def tiny(models: dict[str, Path], data: Path) -> Settings:
    """Resolved settings of the tiny BERT on the tiny data, in float32; `dataclasses.replace` varies them."""
    return Settings(
        task="classification", data=str(data), data_config="parquet", model=str(models["bert"]), dtype="float32",
        rank=4, alpha=8.0, num_clients=3, split="iid", batch_size=4, local_steps=3, max_length=16, lr=0.1, head_lr=0.1,
    ).resolved()  # fmt: skip


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A folder with a site's kit and data (`kits`)."""
    make_kit(tmp_path / "kit")
    make_data(tmp_path / "data")
    return tmp_path
