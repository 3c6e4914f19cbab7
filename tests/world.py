"""A small real world for tests that span: a tiny BERT and labelled sentences in a folder, and a run that is watched."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from clients.app import app as honest
from fedasym.runs import checkpoint
from fedasym.runs.communication import CommunicationCost
from fedasym.runs.record import read_json, read_rounds
from fedasym.settings import Settings, from_run_config
from fedasym.tasks.text import Texts
from fedasym.wire import records
from fedasym.wire.codecs.identity import PACKED
from server.app import app as server_app
from simulations.engines.grid import RUN_ID, SERVER_NODE, InProcessGrid
from simulations.engines.in_process import run_local

TEXTS = Texts(("text",))  # how the tiny world's models read
GOOD, BAD = ("fine", "warm", "clever", "bright"), ("dull", "cold", "stale", "grey")
PLAIN = ("film", "story", "scene", "actor", "plot", "music", "the", "a", "and", "very")


def make_model(folder: Path, seed: int = 0) -> Path:
    """Save a one-layer BERT (hidden size 32) and its word-level tokenizer."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *GOOD, *BAD, *PLAIN]
    raw = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    raw.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    ).save_pretrained(folder)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = BertConfig(
            vocab_size=len(words),
            hidden_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=64,
            max_position_embeddings=64,  # as many as the default max-length
            initializer_range=0.3,
        )
        BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    return folder


def make_data(folder: Path, train: int = 160, test: int = 60) -> Path:
    """Write train.jsonl and test.jsonl: sentences of 3 to 8 words whose good or bad words decide the label."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(5)
    for name, count in (("train", train), ("test", test)):
        rows = []
        for i in range(count):
            label = i % 2
            telling = rng.choice(GOOD if label else BAD, rng.integers(1, 3))
            text = [*rng.choice(PLAIN, rng.integers(2, 6)), *telling]
            rng.shuffle(text)
            rows.append(json.dumps({"text": " ".join(text), "label": ("bad", "good")[label]}))
        (folder / f"{name}.jsonl").write_text("\n".join(rows) + "\n")
    return folder


def make_sites(root: Path, names: Sequence[str] = ("north", "south", "east")) -> Path:
    """Deal the tiny world's training data to one folder per site, of sizes 1 : 2 : 3 ...; return the folder of all."""
    rows = (make_data(root / "data") / "train.jsonl").read_text().splitlines()
    owners = [name for place, name in enumerate(names) for _ in range(place + 1)]
    for place, name in enumerate(names):
        folder = root / "sites" / name
        folder.mkdir(parents=True)
        own = [row for i, row in enumerate(rows) if owners[i % len(owners)] == names[place]]
        (folder / "train.jsonl").write_text("\n".join(own) + "\n")
    return root / "sites"


def site_settings(root: Path, **more: object) -> Settings:
    """Return settings of the tiny world's three sites."""
    values = tiny_values(root, **{"sites": "north,south,east", "labels": "bad,good", **more})
    del values["num-clients"], values["split"]
    return from_run_config(values)


def tiny_values(root: Path, **more: object) -> dict[str, object]:
    """Return the run config of a federation of four clients on the tiny world under root."""
    model, data = root / "model", root / "data"
    if not model.exists():
        make_model(model)
        make_data(data)
    values: dict[str, object] = {
        "task": "classification",
        "model": str(model),
        "pooling": "mean",
        "data": str(data),
        "dtype": "float32",
        "num-clients": 4,
        "num-rounds": 3,
        "local-steps": 3,
        "batch-size": 8,
        "rank": 4,
        "split": "dirichlet:1.0",
        "min-examples": 5,
    }
    return values | {key.replace("_", "-"): value for key, value in more.items()}


def tiny_settings(root: Path, **more: object) -> Settings:
    """Return settings on the tiny world; keyword arguments override."""
    return from_run_config(tiny_values(root, **more))


def what_is_left(folder: Path, *but: str) -> tuple[list[dict[str, object]], dict[str, object], dict[str, bytes]]:
    """Return a run's record and summary without their clock (and other named columns) and the files of its adapter."""
    hidden = ("seconds", *but)
    rows = [{k: v for k, v in row.items() if not k.startswith(hidden)} for row in read_rounds(folder)]
    summary = {k: v for k, v in read_json(folder / "summary.json").items() if not k.startswith(hidden)}
    files = {path.name: path.read_bytes() for path in (folder / "adapter").iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors"} <= files.keys()
    return rows, summary, files


def settings_of_sites(count: int, **more: object) -> Settings:
    """Return settings of so many sites, of which nothing is built or read."""
    own = {"labels": "0,1", "data": "none", "client_holdout": 0.2, "model": "minilm"}
    return Settings(sites=",".join(f"site-{k}" for k in range(count)), **own, **more)  # type: ignore[arg-type]


@contextmanager
def no_report() -> Iterator[None]:
    """Leave the report out of all runs: its figures take longer than all else of a tiny run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("server.lifecycle.write_report", lambda folders, out: None)
        yield


def simulate(settings: Settings, workers: int = 1, data: Path | None = None) -> Path:
    """Run a federation in process as `run_local` does, less its report."""
    with no_report():
        return run_local(settings, workers, data)


@dataclass(frozen=True)
class Seen:
    """One training message and its reply, as they travelled: the packed values, and what is said beside them."""

    round: int
    client: int
    whole: bool
    down: np.ndarray
    up: np.ndarray  # empty if the reply was a refusal
    examples: int  # n_k; 0 if the reply was a refusal


def watched_run(
    settings: Settings, workers: int = 1, first: Callable[[int, int], None] = lambda number, client: None
) -> tuple[Path, list[Seen]]:
    """Run a federation in process, less its report, with a ClientApp that notes what it is sent and what it answers.

    Args:
        settings: ``out`` must name the run folder.
        workers: clients at the same time.
        first: called with (round, client) before a client takes up a training message.
    """
    seen: list[Seen] = []
    app = ClientApp()
    app.query()(lambda message, context: honest(message, context))

    @app.train()
    def train(message: Message, context: Context) -> Message:
        down, about = _packed(message.content), records.about(message.content)
        first(about["round"], about["client"])
        reply = honest(message, context)
        counts = dict(reply.content.metric_records.get("metrics", {}))
        whole, examples = bool(about["whole"]), int(counts.get("num-examples", 0))
        seen.append(Seen(about["round"], about["client"], whole, down, _packed(reply.content), examples))
        return reply

    config = settings.run_config()
    with InProcessGrid(app, config, settings.num_clients, workers) as grid, no_report():
        server_app(grid, Context(RUN_ID, SERVER_NODE, {}, RecordDict(), dict(config)))
    return Path(settings.out), sorted(seen, key=lambda one: (one.round, one.client, one.whole))


class Crash(Exception):
    """The server's process ends here."""


def crash_in_round(settings: Settings, number: int) -> Path:
    """Run a federation in process until the checkpoint of a round is about to be written: its line is there already."""
    save = checkpoint.save

    def crash_or_save(folder: Path, state: checkpoint.State, keep: int) -> None:
        if state.round == number:
            raise Crash
        save(folder, state, keep)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Crash):
        patch.setattr(checkpoint, "save", crash_or_save)
        simulate(settings)
    return Path(settings.out)


def _packed(content: RecordDict) -> np.ndarray:
    arrays = content.array_records
    return arrays["matrices"][PACKED].numpy().copy() if "matrices" in arrays else np.zeros(0, np.float32)


def assert_moved(folder: Path, computed: CommunicationCost, asked: int) -> None:
    """Require that in each round of a run exactly the computed bytes travelled."""
    for row in read_rounds(folder):
        number = row["round"]
        traffic = computed.rounds[0] if number == 1 else computed.later[(number - 2) % len(computed.later)]
        assert row["clients_valid"] == row["clients_asked"] == asked
        assert row["payload_up"] == asked * traffic.up, (computed.method, number)
        assert row["payload_down"] == asked * traffic.down, (computed.method, number)
    config = read_json(folder / "config.json")
    assert number == config["settings"]["num_rounds"]
    assert computed.head_values == config["head_values"]


def split_values(values: np.ndarray, shapes: dict[str, Sequence[int]]) -> dict[str, np.ndarray]:
    """Take packed values apart by hand: the matrices lie in the order of their names."""
    found, start = {}, 0
    for name in sorted(shapes):
        size = int(np.prod(shapes[name]))
        found[name] = values[start : start + size].reshape(shapes[name])
        start += size
    assert start == len(values), "the message holds other matrices than these"
    return found


def federate(tmp_path: Path, app: ClientApp, client_values: dict[str, object] | None = None, **more: object) -> Path:
    """Run server and clients in process; the clients may see another run config than the server."""
    values = tiny_values(tmp_path, **{"out": str(tmp_path / "run"), "num_rounds": 1, **more})
    server_config = from_run_config(values).run_config()
    client_config = from_run_config({**values, **(client_values or {})}).run_config()
    with InProcessGrid(app, client_config, nodes=4) as grid, no_report():
        server_app(grid, Context(RUN_ID, SERVER_NODE, {}, RecordDict(), dict(server_config)))
    return tmp_path / "run"
