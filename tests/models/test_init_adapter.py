"""A run begins with the very model of a PEFT LoRA folder, or the folder is refused by name."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
import transformers
from pictures import image_settings
from quiz import quiz_settings
from safetensors.torch import load_file, save_file
from warm import kill_one_process_after_round
from world import TEXTS, simulate, split_values, tiny_settings, tiny_values, watched_run, what_is_left

from fedasym.adapters import trainable_state
from fedasym.data.examples import load_examples
from fedasym.methods import METHODS
from fedasym.models.build import build
from fedasym.runs.peft_folder import write_adapter
from fedasym.runs.record import read_rounds
from fedasym.settings import from_run_config
from fedasym.tasks import task_of
from fedasym.wire.contract import contract_of

ROOT = "base_model.model."


def peft_folder(base, folder: Path, **config) -> peft.PeftModel:
    """Adapt a model with PEFT, fill all that trains with random values, save it; return it."""
    model = peft.get_peft_model(base, peft.LoraConfig(**{"r": 4, "lora_alpha": 8, "lora_dropout": 0.1, **config}))
    rng = np.random.default_rng(2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                parameter.copy_(torch.from_numpy(rng.standard_normal(tuple(parameter.shape)) * 0.3))
    model.save_pretrained(folder)
    return model.eval()


def close(one, other) -> None:
    # float32 roundings of 1e-7 of the largest logit through two layers, in PEFT's order of the products.
    torch.testing.assert_close(one, other, atol=1e-5 * max(1.0, float(other.abs().max())), rtol=1e-5)


def text_model(settings):
    return transformers.AutoModelForSequenceClassification.from_pretrained(settings.model, num_labels=3)


def beginning(settings, labels=3):
    """Return what a run of these settings begins with, and an input."""
    task = task_of(settings)
    built = build(settings, labels, task.inputs)
    examples, _ = load_examples(settings)
    encoded = task.inputs.encode(built.processor, examples, settings.max_length, settings.pooling)
    return built, task.inputs.collate(built.processor, encoded, [0, 1, 2])[0]


@pytest.fixture(scope="module")
def texts(tiny, tmp_path_factory):
    """Settings that begin with a folder of PEFT's for the tiny BERT, and PEFT's model."""
    folder = tmp_path_factory.mktemp("adapter")
    model = peft_folder(text_model(tiny), folder, task_type="SEQ_CLS", target_modules="all-linear")
    return dataclasses.replace(tiny, init_adapter=str(folder)), model


def test_a_run_begins_with_A_and_B_and_the_logits_of_the_peft_model(texts) -> None:
    settings, theirs = texts
    built, inputs = beginning(settings)
    with torch.no_grad():
        close(built.model(**inputs).logits, theirs(**inputs).logits)
        plain, _ = beginning(dataclasses.replace(settings, init_adapter=""))
        assert (plain.model(**inputs).logits - theirs(**inputs).logits).abs().max() > 0.1
    stored = load_file(Path(settings.init_adapter) / "adapter_model.safetensors")
    assert built.layers == plain.layers and len(stored) == 2 * len(built.layers) + 2
    for name, layer in trainable_state.adapted_layers(built.model):
        assert torch.equal(layer.A, stored[f"{ROOT}{name}.lora_A.weight"])
        assert torch.equal(layer.B, stored[f"{ROOT}{name}.lora_B.weight"])


def test_a_head_of_two_layers_a_part_of_the_layers_and_another_scale_are_taken_over(tiny, models, tmp_path) -> None:
    more = {"head": "full", "targets": "query,value", "scaling": "alpha/sqrt(r)", "init_adapter": str(tmp_path)}
    settings = dataclasses.replace(tiny, model=str(models["roberta"]), **more)
    theirs = peft_folder(
        text_model(settings), tmp_path, task_type="SEQ_CLS", target_modules=["query", "value"], use_rslora=True
    )
    built, inputs = beginning(settings)
    with torch.no_grad():
        close(built.model(**inputs).logits, theirs(**inputs).logits)


def test_convolutions_and_tables_are_taken_over(tmp_path) -> None:
    settings = image_settings(
        tmp_path, targets="all-linear,projection", rank=4, alpha=8.0, init_adapter=str(tmp_path / "adapter")
    ).resolved()
    base = transformers.AutoModelForImageClassification.from_pretrained(settings.model, num_labels=2)
    linear = [name for name, m in base.named_modules() if isinstance(m, torch.nn.Linear) and name != "classifier"]
    theirs = peft_folder(
        base, tmp_path / "adapter", target_modules=[*linear, "projection"], modules_to_save=["classifier"]
    )
    built, inputs = beginning(settings, 2)
    with torch.no_grad():
        close(built.model(**inputs).logits, theirs(**inputs).logits)
    assert "vit.embeddings.patch_embeddings.projection" in built.layers


def test_a_model_that_writes_begins_with_grouped_queries_and_a_table_adapted(tmp_path) -> None:
    settings = quiz_settings(tmp_path, init_adapter=str(tmp_path / "adapter"), targets="all-linear,embed_tokens")
    settings = dataclasses.replace(settings, alpha=8.0).resolved()
    base = transformers.AutoModelForCausalLM.from_pretrained(settings.model)
    linear = [name for name, m in base.named_modules() if isinstance(m, torch.nn.Linear) and name != "lm_head"]
    theirs = peft_folder(base, tmp_path / "adapter", task_type="CAUSAL_LM", target_modules=[*linear, "embed_tokens"])
    with pytest.raises(ValueError, match=r"embed_tokens\.base_layer\.weight, a frozen .* save_embedding_layers=F"):
        build(settings, 0, task_of(settings).inputs)
    theirs.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    built = build(settings, 0, task_of(settings).inputs)
    ids = torch.arange(24).reshape(2, 12)
    with torch.no_grad():
        close(built.model(input_ids=ids).logits, theirs(input_ids=ids).logits)


@pytest.mark.parametrize("pooling", ["model", "mean"])
def test_what_a_run_has_written_another_begins_with(tiny, tmp_path, pooling) -> None:
    settings = dataclasses.replace(tiny, pooling=pooling)
    built, inputs = beginning(settings)
    rng, moving = np.random.default_rng(3), trainable_state.trainable(built.model)
    trainable_state.load(moving, {n: rng.standard_normal(tuple(p.shape)).astype(np.float32) for n, p in moving.items()})
    write_adapter(tmp_path, built, settings)
    again, _ = beginning(dataclasses.replace(settings, init_adapter=str(tmp_path), seed=5))  # another A, another head
    for (name, one), (_, other) in zip(
        trainable_state.trainable(again.model).items(), trainable_state.trainable(built.model).items(), strict=True
    ):
        assert torch.equal(one, other), name
    assert again.A == built.A
    with torch.no_grad():
        assert torch.equal(again.model(**inputs).logits, built.model(**inputs).logits)


QUERY = f"{ROOT}bert.encoder.layer.0.attention.self.query.lora_B.weight"
MERGE = r"merge the adapter into its base model with PEFT \(merge_and_unload, then save_pretrained\), set model to"
REFUSED = {
    "another kind of adapter": ({"peft_type": "LOHA"}, {}, {}, f"peft_type='LOHA' is not LORA; {MERGE}"),
    "DoRA": ({"use_dora": True}, {}, {}, f"use_dora=True is more than A and B of one rank and scale; {MERGE}"),
    "ranks by layer": ({"rank_pattern": {"query": 2}}, {}, {}, r"rank_pattern=\{'query': 2\} is more than"),
    "alphas by layer": ({"alpha_pattern": {"query": 2}}, {}, {}, r"alpha_pattern=\{'query': 2\} is more than"),
    "layers twice": ({"layer_replication": [[0, 1]]}, {}, {}, r"layer_replication=\[\[0, 1\]\] is more than"),
    "a bias of B": ({"lora_bias": True}, {}, {}, "lora_bias=True is more than A and B"),
    "a quantised base": ({"loftq_config": {"bits": 4}}, {}, {}, r"loftq_config=\{'bits': 4\} is more than"),
    "what no version has yet": ({"use_magic": True}, {}, {}, "use_magic=True is more than A and B"),
    "biases": ({"bias": "all"}, {}, {}, f"bias='all', and no biases train here beside A and B; {MERGE}"),
    "a changed W": ({"init_lora_weights": "pissa"}, {}, {}, "init_lora_weights='pissa' may have changed the base"),
    "another rank": ({}, {}, {"rank": 2}, "the adapter has rank=4, the run has rank=2; set rank=4"),
    "another alpha": ({}, {}, {"alpha": 16.0}, "the adapter has alpha=8, the run has alpha=16.0; set alpha=8"),
    "another scaling": ({"use_rslora": True}, {}, {}, r"has scaling='alpha/sqrt\(r\)', .*; set scaling='alpha/sqrt\(r"),
    "fewer layers than the run": (
        {}, {QUERY: None}, {}, f"it lacks {QUERY}, A and B of bert.encoder.*query, which is adapted; leave layers out"
    ),
    "more layers than the run": (
        {}, {}, {"targets": "query,value"}, "it adapts bert.*, which the run does not; name in targets the layers .* "
        "end in dense, key, query, value, and no others",
    ),
    "layers of another model": (
        {}, {f"{ROOT}bert.encoder.layer.7.x.lora_A.weight": torch.ones(4, 16)}, {},
        r"holds .*layer\.7\.x\.lora_A\.weight, and the model has no such layer; the adapter is of '.*/bert', the run",
    ),
    "another width": (
        {}, {QUERY: torch.ones(24, 4)}, {},
        r"query\.lora_B\.weight has the shape \(24, 4\), the model's layer wants \(16, 4\); the adapter is of '",
    ),
    "not a number": (
        {}, {QUERY: torch.full((16, 4), torch.nan)}, {}, "64 of the 64 values of .*query.* are not finite; take another"
    ),
    "whole numbers": ({}, {QUERY: torch.ones(16, 4, dtype=torch.int8)}, {}, "is torch.int8; only float32, bfloat16 an"),
    "half a layer": ({}, {f"{ROOT}classifier.bias": None}, {}, "lacks .*classifier.bias, a part of classifier that"),
    "a table in full": (
        {"modules_to_save": ["classifier", "word_embeddings"]},
        {f"{ROOT}bert.embeddings.word_embeddings.weight": torch.ones(28, 16)}, {},
        "holds .*word_embeddings.weight in full, and bert.embeddings.word_embeddings does not train in the run",
    ),
    "a head that is frozen": ({}, {}, {"head": "frozen"}, "classifier does not train in the run; .* head='output' or"),
    "a head that it does not name": ({"modules_to_save": None}, {}, {}, "modules_to_save=.* does not name it"),
    "a head that it lacks": (
        {}, {f"{ROOT}classifier.bias": None, f"{ROOT}classifier.weight": None}, {},
        "modules_to_save names 'classifier', and adapter_model.safetensors holds nothing of it",
    ),
    "another number of labels": ({}, {f"{ROOT}classifier.bias": torch.ones(2)}, {}, r"shape \(2,\), .* wants \(3,\)"),
}  # fmt: skip


@pytest.mark.parametrize(("config", "tensors", "more", "message"), REFUSED.values(), ids=REFUSED)
def test_a_folder_that_the_run_would_not_compute_as_peft_does_is_refused_by_name(
    texts, tmp_path, config, tensors, more, message
) -> None:
    settings, _ = texts
    folder = shutil.copytree(settings.init_adapter, tmp_path / "adapter")
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
    held = {**load_file(folder / "adapter_model.safetensors"), **tensors}
    save_file({k: t for k, t in held.items() if t is not None}, folder / "adapter_model.safetensors")
    with pytest.raises(ValueError, match=message) as caught:
        build(dataclasses.replace(settings, init_adapter=str(folder), **more), 3, TEXTS)
    assert str(caught.value).startswith(f"init-adapter={str(folder)!r}: ")


def test_files_that_are_missing_spoilt_or_pickled_are_refused_by_name(texts, tmp_path) -> None:
    settings, _ = texts
    folder = shutil.copytree(settings.init_adapter, tmp_path / "adapter")
    settings = dataclasses.replace(settings, init_adapter=str(folder))
    tensors, config = folder / "adapter_model.safetensors", folder / "adapter_config.json"
    for spoil, message in (
        (lambda: tensors.write_bytes(tensors.read_bytes()[:-9]), "adapter_model.safetensors cannot be read .*; take"),
        (
            lambda: tensors.rename(folder / "adapter_model.bin"),
            "no adapter_model.safetensors in it, and adapter_model.",
        ),
        (lambda: config.write_text("[1]"), "adapter_config.json holds a list, not settings by name"),
        (lambda: config.write_text("{"), "adapter_config.json is no JSON"),
        (config.unlink, "there is no adapter_config.json in it on this machine; give every party the same folder"),
    ):
        spoil()
        with pytest.raises(ValueError, match=message):
            build(settings, 3, TEXTS)


def test_who_has_another_folder_is_refused_by_the_contract(texts, tmp_path) -> None:
    settings, _ = texts
    folder = shutil.copytree(settings.init_adapter, tmp_path / "adapter")

    def contract(init_adapter):
        built = build(dataclasses.replace(settings, init_adapter=str(init_adapter)), 3, TEXTS)
        return contract_of(settings, built, ("a", "b", "c"), "d" * 64)

    ours = contract(settings.init_adapter)
    assert contract(folder) == ours and len(ours.init_adapter) == 64  # wherever it lies
    held = load_file(folder / "adapter_model.safetensors")
    save_file({**held, QUERY: held[QUERY] * 1.5}, folder / "adapter_model.safetensors")
    assert "init_adapter: " in (reason := contract(folder).refusal(ours.to_json())) and "A: " not in reason
    A = QUERY.replace("lora_B", "lora_A")
    save_file({**held, A: held[A] * 1.5}, folder / "adapter_model.safetensors")
    assert "A: " in contract(folder).refusal(ours.to_json())
    assert "init_adapter: '' there" in ours.refusal(contract("").to_json())


@pytest.mark.parametrize("method", ["full", "a-only", "flora"])
def test_a_method_without_use_for_a_given_A_is_refused(tmp_path, method) -> None:
    with pytest.raises(
        ValueError, match=f"init-adapter='x' does not go with method='{method}': .*; use another method"
    ):
        tiny_settings(tmp_path, method=method, init_adapter="x")


def test_sites_are_refused_with_what_to_do() -> None:
    with pytest.raises(
        ValueError, match=r"'x' does not go with sites: its A does not travel, .* give every site that f"
    ):
        from_run_config(
            {"sites": "a,b", "labels": "bad,good", "data": "reviews", "model": "minilm", "init-adapter": "x"}
        )


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> dict[str, object]:
    """The run config of a federation that begins with a folder of PEFT's for the tiny world's encoder."""
    root = tmp_path_factory.mktemp("world")
    values = tiny_values(root, init_adapter=str(root / "adapter"), alpha=8.0, num_rounds=2)
    base = transformers.AutoModel.from_pretrained(values["model"], add_pooling_layer=False)
    linear = [name for name, m in base.named_modules() if isinstance(m, torch.nn.Linear)]
    peft_folder(base, root / "adapter", task_type="FEATURE_EXTRACTION", target_modules=linear)
    return values


@pytest.fixture(scope="module")
def whole(world, tmp_path_factory):
    """A run that was never killed, and what travelled."""
    return watched_run(from_run_config({**world, "out": str(tmp_path_factory.mktemp("runs") / "whole")}))


def test_B_of_the_folder_opens_the_first_round_and_A_never_travels(world, whole) -> None:
    folder, seen = whole
    settings = from_run_config(world).resolved()
    built = build(settings, 2, task_of(settings).inputs)
    stored = load_file(Path(settings.init_adapter) / "adapter_model.safetensors")
    sent = split_values(
        seen[0].down, {name: tuple(p.shape) for name, p in trainable_state.trainable(built.model).items()}
    )
    left = load_file(folder / "adapter" / "adapter_model.safetensors")
    for name in built.layers:
        key = ROOT + name.removeprefix("encoder.")
        assert np.array_equal(sent[f"{name}.B"], stored[f"{key}.lora_B.weight"].numpy())
        assert torch.equal(left[f"{key}.lora_A.weight"], stored[f"{key}.lora_A.weight"])
        assert not torch.equal(left[f"{key}.lora_B.weight"], stored[f"{key}.lora_B.weight"])


def test_stopped_and_continued_equals_never_stopped(world, whole, tmp_path) -> None:
    for rounds in (1, 2):
        simulate(from_run_config({**world, "out": str(tmp_path), "num-rounds": rounds}))
    assert what_is_left(tmp_path) == what_is_left(whole[0])


@pytest.mark.slow
def test_killed_and_resumed_equals_never_killed(world, whole, tmp_path) -> None:
    kill_one_process_after_round(world, tmp_path, 1, 2)
    simulate(from_run_config({**world, "out": str(tmp_path)}))
    assert what_is_left(tmp_path) == what_is_left(whole[0])


@pytest.mark.slow
@pytest.mark.parametrize("method", sorted(METHODS.keys() - {"asymmetric", "full", "a-only", "flora"}))
def test_every_method_that_takes_a_given_A_federates_from_it(world, tmp_path, method) -> None:
    more = {"client-holdout": 0.25} if METHODS[method].personal else {"num-clients": 1} if method == "central" else {}
    values = {**world, "method": method, **more}
    one, other = (simulate(from_run_config({**values, "out": str(tmp_path / name)})) for name in ("one", "other"))
    assert what_is_left(one) == what_is_left(other)
    rows = read_rounds(one)
    assert len(rows) == 2 and all(row["clients_valid"] == row["clients_asked"] for row in rows)
    measured = [row["mismatch"] for row in rows if row["mismatch"] is not None]
    assert bool(measured) == (not METHODS[method].personal and METHODS[method].fold is None)
    assert method in ("lora", "flexlora") or max(measured, default=0.0) < 1e-6
