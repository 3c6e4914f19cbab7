"""What is built for summaries trains B alone, is exported to PEFT, travels as computed; what cannot be is named."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import peft
import pytest
import torch
import transformers
from far_device import found_far_away
from safetensors.torch import load_file
from summaries import KINDS, SECTIONS, make_documents, settings_of, values_of
from world import assert_moved, simulate

from fedasym.adapters import trainable_state
from fedasym.data.examples import load_examples
from fedasym.data.partition import partition
from fedasym.models import device
from fedasym.models.build import build
from fedasym.runs.communication import communication_cost, config_of
from fedasym.runs.peft_folder import write_adapter
from fedasym.settings import Settings, from_run_config
from fedasym.tasks import task_of
from fedasym.tasks.next_tokens import write
from fedasym.training.loop import draw_batches, evaluate, train_steps
from fedasym.wire.contract import contract_of

__all__ = ["found_far_away"]  # the fixture ``far``
ATTENTION = ("k_proj", "out_proj", "q_proj", "v_proj")
LAYERS = {
    "bart": {
        *(f"model.encoder.layers.0.self_attn.{name}" for name in ATTENTION),
        *(f"model.decoder.layers.0.{part}.{name}" for part in ("self_attn", "encoder_attn") for name in ATTENTION),
        *(f"model.{side}.layers.0.{name}" for side in ("encoder", "decoder") for name in ("fc1", "fc2")),
    },
    "t5": {
        *(f"{side}.block.0.layer.0.SelfAttention.{name}" for side in ("encoder", "decoder") for name in "kqvo"),
        *(f"decoder.block.0.layer.1.EncDecAttention.{name}" for name in "kqvo"),
        *(f"encoder.block.0.layer.1.DenseReluDense.{name}" for name in ("wi", "wo")),
        *(f"decoder.block.0.layer.2.DenseReluDense.{name}" for name in ("wi", "wo")),
    },
    "llama": {
        f"model.layers.{i}.{name}"
        for i in (0, 1)
        for name in (
            *(f"self_attn.{one}_proj" for one in "kqvo"), *(f"mlp.{one}_proj" for one in ("gate", "up", "down"))
        )
    },
}  # fmt: skip
CLASS = {kind: transformers.AutoModelForSeq2SeqLM for kind in KINDS} | {"llama": transformers.AutoModelForCausalLM}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("summaries")


@pytest.fixture
def of(models, root):
    """Return a function that gives resolved settings of a kind of model."""
    return lambda kind, **more: settings_of(kind, models, root, **more)


def built_of(settings: Settings):
    task = task_of(settings)
    return build(settings, task.outputs(()), task.inputs)


@pytest.mark.parametrize("kind", KINDS)
def test_every_linear_layer_of_both_sides_is_adapted_but_the_output_layer_and_nothing_else_trains(of, kind) -> None:
    settings = of(kind)
    built = built_of(settings)
    assert set(built.layers) == LAYERS[kind] and built.output == ""
    assert trainable_state.trainable(built.model).keys() == {f"{name}.B" for name in built.layers}
    assert settings.head == "frozen" and not trainable_state.local_only(built.model)
    assert len(built.logits) > 9 and all(np.isfinite(built.logits))
    assert built.logits == built_of(of(kind, method="lora")).logits  # B is zero: the base model's own


def test_the_output_layer_of_an_encoder_decoder_is_its_embedding_and_nothing_of_it_is_drawn(of) -> None:
    for kind in ("bart", "t5"):  # the tiny BART is the base model alone, T5 whole
        built = built_of(of(kind))
        stored = load_file(Path(of(kind).model) / "model.safetensors")
        assert built.model.lm_head.weight is built.model.get_input_embeddings().weight
        assert torch.equal(built.model.lm_head.weight, stored["shared.weight"])
        assert built.seeded == ()
    assert not built_of(of("bart")).model.final_logits_bias.any()


def by_peft(settings: Settings, folder: Path, kind: str):
    return peft.PeftModel.from_pretrained(CLASS[kind].from_pretrained(settings.model), folder).eval()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", ["asymmetric", "lora", "fedex", "full"])
def test_transformers_and_peft_compute_the_same_logits_from_the_folder(of, tmp_path, kind, method) -> None:
    settings = of(kind, method=method)
    built, task = built_of(settings), task_of(settings)
    moved, rng = trainable_state.common(built.model), np.random.default_rng(1)
    start = trainable_state.read(moved)
    trainable_state.load(
        moved, {n: m + np.float32(0.1) * rng.standard_normal(m.shape, np.float32) for n, m in start.items()}
    )
    examples, _ = load_examples(settings)
    encoded = task.inputs.encode(built.processor, examples, settings.max_length)
    inputs, _ = task.inputs.collate(built.processor, encoded, [0, 1, 5])
    write_adapter(tmp_path, built, settings)
    with torch.no_grad():
        expected = built.model(**inputs).logits
        if method == "full":
            found = CLASS[kind].from_pretrained(tmp_path).eval()
        else:
            stated = json.loads((tmp_path / "adapter_config.json").read_text())
            assert stated["task_type"] == ("CAUSAL_LM" if kind == "llama" else "SEQ_2_SEQ_LM")
            auto = {"llama": peft.AutoPeftModelForCausalLM}.get(kind, peft.AutoPeftModelForSeq2SeqLM)
            found = by_peft(settings, tmp_path, kind)
            if kind != "llama" or not built.seeded:  # whose output layer no checkpoint holds
                torch.testing.assert_close(auto.from_pretrained(tmp_path).eval()(**inputs).logits, expected)
        # float32 roundings of 1e-7 through two layers, in PEFT's order of the products.
        torch.testing.assert_close(found(**inputs).logits, expected, atol=1e-5, rtol=1e-5)
    base = built_of(of(kind)).logits
    assert np.abs(np.subtract(build_logits(built, settings), base)).max() > 1e-3


def build_logits(built, settings: Settings) -> tuple[float, ...]:
    from fedasym.models.party_equivalence import initial_logits

    return initial_logits(built.model, built.processor, task_of(settings).inputs, settings)


@pytest.mark.parametrize("kind", ["bart", "t5"])
def test_in_full_fine_tuning_of_a_model_that_writes_everything_takes_the_adapters_rate(of, kind) -> None:
    settings = dataclasses.replace(of(kind, method="full"), lr=0.0, head_lr=0.5)
    built, task = built_of(settings), task_of(settings)
    examples, _ = load_examples(settings)
    encoded = task.inputs.encode(built.processor, examples, settings.max_length)
    moved = trainable_state.trainable(built.model)
    before = trainable_state.read(moved)
    batches = draw_batches(encoded.lengths, 4, 1, 0, np.random.default_rng(0))
    for rates, moves in (({}, False), ({"lr": 0.5, "head_lr": 0.0}, True)):
        train_steps(built.model, moved, built.processor, encoded, batches, task, dataclasses.replace(settings, **rates))
        assert any(not np.array_equal(m, before[name]) for name, m in trainable_state.read(moved).items()) == moves


@pytest.mark.parametrize(
    ("kind", "method"), [("bart", "asymmetric"), ("t5", "lora"), ("llama", "asymmetric"), ("t5", "full")]
)
def test_a_run_moves_the_computed_bytes_and_says_what_it_was_judged_by(
    models, root, tmp_path, kind: str, method: str
) -> None:
    values = values_of(kind, models, root, method=method, out=str(tmp_path / "run"), test_cap=7, local_steps=1)
    settings = from_run_config(values)
    folder = simulate(settings)
    assert_moved(folder, communication_cost(settings.resolved(), config_of(settings.model), 0), 2)
    config = json.loads((folder / "config.json").read_text())
    assert (config["metric"], config["held_out_examples"], config["head_values"]) == ("rougeL", 7, 0)
    rows = [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]
    assert [list(row["metrics"]) for row in rows] == [["rougeL", "rouge1", "rouge2", "rougeL_stderr", "loss"]] * 2


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_and_an_evaluation_on_a_second_device_leave_no_tensor_behind(of, request, kind) -> None:
    settings, found = of(kind, attention="eager"), []
    for where in ("near", "far"):
        if where == "far":
            request.getfixturevalue("far")
        built, task = built_of(settings), task_of(settings)
        examples, _ = load_examples(settings)
        encoded = task.inputs.encode(built.processor, examples, settings.max_length).take(np.arange(8))
        moved = trainable_state.trainable(built.model)
        batches = draw_batches(encoded.lengths, 4, 2, 0, np.random.default_rng(0))
        loss = train_steps(built.model, moved, built.processor, encoded, batches, task, settings).loss
        found.append((loss, evaluate(built.model, built.processor, encoded, task, 5)["loss"]))
        assert device.device_of(built.model).type == {"near": "cpu", "far": "far"}[where]
    # The far device computes on this CPU; another place in memory can choose another kernel, which rounds otherwise.
    assert found[1] == pytest.approx(found[0], rel=1e-4)


def test_every_section_is_a_client_and_no_split_goes_by_labels(of) -> None:
    settings = of("bart")
    train, held = load_examples(settings)
    found = partition(train, settings)
    frame = pd.read_json(Path(settings.data) / "train.jsonl", lines=True)
    for section, places in zip(SECTIONS, found.indices, strict=True):
        assert set(frame["section"][places]) == {section}
        assert [train.inputs[1][i] for i in places] == frame["summary"][places].tolist()
    assert (len(train), len(held)) == (48, 12)
    for split in ("dirichlet:0.5", "severe", "shard:2"):
        with pytest.raises(ValueError, match="goes by labels, or bins of scores: the task has no labels; use iid"):
            partition(train, dataclasses.replace(settings, split=split))


def test_what_is_read_of_documents_and_prompts_is_in_the_contract(of) -> None:
    one = contract_of(of("bart"), built_of(of("bart")), (), "d")
    for change in ({"answer_length": 7}, {"prompt": "word1 "}, {"schedule": "cosine"}, {"warmup_rounds": 1}):
        (name,) = change
        other = contract_of(of("bart", **change), built_of(of("bart")), (), "d")
        assert other.hash != one.hash and f"{name}={getattr(of('bart', **change), name)}" in other.local
    longer = of("bart", schedule="cosine", num_rounds=9)
    assert "num_rounds=9" in contract_of(longer, built_of(longer), (), "d").local


@pytest.mark.parametrize("column", ["document", "summary"])
@pytest.mark.parametrize(("cell", "said"), [("", "empty|blank"), ("  \t", "blank"), (None, "empty")])
def test_an_empty_document_or_summary_is_named_with_split_and_row(of, tmp_path, column, cell, said) -> None:
    file = make_documents(tmp_path) / "train.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    rows[17][column] = cell
    file.write_text("\n".join(map(json.dumps, rows)) + "\n")
    with pytest.raises(ValueError, match=f"split 'train', row 17: column '{column}' is ({said}); fill or drop it"):
        load_examples(of("bart", data=str(tmp_path)))


def test_a_missing_column_is_named_with_those_that_are_there(of) -> None:
    for more in ({"text_columns": "article"}, {"answer_column": "highlights"}):
        with pytest.raises(ValueError, match=r"has no column (article|highlights); it has document, summary, section"):
            load_examples(of("bart", **more))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"answer-length": 0}, "setting answer-length=0 is below 1"),
        ({"beams": 0}, "setting beams=0 is below 1"),
        ({"answer-column": " "}, "answer-column=' ' names nothing; leave it out for 'summary'"),
        ({"answer-column": "text"}, "answer-column='text' is the document's column too"),
        ({"text-columns": "a,b"}, "text-columns='a,b' names 2 columns; name the document's"),
        ({"labels": "a,b"}, "labels='a,b' does nothing with task='summarize'; leave it out"),
        ({"prompt": "{document} {document}"}, "holds {document} more than once"),
        ({"prompt": "Read: {document}\n", "task": "summarize-causal"}, "has no words after {document}"),
        ({"beams": 2, "task": "reviews"}, "beams=2 does nothing with task='reviews'; leave it at 1"),
        ({"prompt": "x", "task": "sst2"}, "prompt='x' does nothing with task='sst2'; leave it at ''"),
        ({"head": "output"}, "head='output': the task trains no head of its own; leave head at 'auto'"),
    ],
)
def test_settings_that_cannot_be_are_refused_by_name(models, config: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        built_of(from_run_config({"task": "summarize", "model": str(models["bart"]), **config}).resolved())
    assert message in str(caught.value)


def test_a_length_without_room_for_a_text_is_refused_with_the_least(of) -> None:
    for name in ("max_length", "answer_length"):
        settings = of("bart", **{name: 2})
        with pytest.raises(ValueError, match=f"{name.replace('_', '-')}=2 leaves no room .* the 2 tokens .* 3 or more"):
            built_of(settings)
    with pytest.raises(ValueError, match="answer-length=1 leaves no room beside the end; set 2 or more"):
        built_of(of("llama", answer_length=1))


@pytest.mark.parametrize(
    ("task", "family", "message"),
    [
        ("summarize", "llama", "configured by a LlamaConfig, which is no AutoModelForSeq2SeqLM: .*'summarize-causal'"),
        ("summarize", "bert", "configured by a BertConfig, which is no AutoModelForSeq2SeqLM"),
        ("summarize-causal", "bart", "configured by a BartConfig, which is no AutoModelForCausalLM: .*'summarize' for"),
        ("summarize-causal", "bert", "a token sees those after it, so it cannot learn to predict them"),
    ],
)
def test_a_model_of_another_kind_is_refused_by_its_class_with_what_to_set(models, task, family, message) -> None:
    settings = from_run_config({"task": task, "model": str(models[family]), "dtype": "float32"}).resolved()
    with pytest.raises(ValueError, match=message):
        built_of(settings)


def test_a_bert_that_is_made_a_decoder_may_write(models, tmp_path) -> None:
    folder = shutil.copytree(models["bert"], tmp_path / "bert")
    config = json.loads((folder / "config.json").read_text()) | {"is_decoder": True}
    (folder / "config.json").write_text(json.dumps(config))
    transformers.BertLMHeadModel.from_pretrained(folder).save_pretrained(folder)  # with the head that writes
    values = {"task": "summarize-causal", "model": str(folder), "dtype": "float32", "max-length": 16}
    assert built_of(from_run_config(values).resolved()).layers


def test_lengths_beyond_the_positions_of_either_side_are_refused_and_the_longest_are_taken(of, tmp_path) -> None:
    source = of("bart").model
    config = transformers.AutoConfig.from_pretrained(source)
    config.max_position_embeddings = 16
    transformers.AutoModelForSeq2SeqLM.from_config(config).save_pretrained(tmp_path / "bart")
    transformers.AutoTokenizer.from_pretrained(source).save_pretrained(tmp_path / "bart")
    model = {"model": str(tmp_path / "bart")}
    with pytest.raises(ValueError, match=r"max-length=17 exceeds the 16 positions .*encoder.* set max-length=16"):
        built_of(of("bart", max_length=17, **model))
    with pytest.raises(ValueError, match=r"answer-length=17 exceeds the 16 .*decoder.*; set answer-length=16 or less"):
        built_of(of("bart", answer_length=17, **model))
    with pytest.raises(
        ValueError, match=r"max-length=16 and what .* 17 tokens, exceed the 16 .*; lower max-length by 1"
    ):
        built_of(of("bart", max_length=16, prompt="{document} word1", **model))
    long = of("bart", max_length=16, answer_length=16, **model)
    built, task = built_of(long), task_of(long)
    examples, _ = load_examples(long)
    words = " ".join(f"word{i}" for i in range(24))
    examples = dataclasses.replace(examples, inputs=([words] * 48, [words] * 48))
    encoded = task.inputs.encode(built.processor, examples, 16)
    assert encoded.lengths.max() == 32
    built.model.generation_config.eos_token_id = None  # so that it writes to the end
    assert np.isfinite(evaluate(built.model, built.processor, encoded.take(np.arange(2)), task)["loss"])


def test_a_causal_model_has_positions_for_document_cue_and_summary_together(models, root, tmp_path) -> None:
    config = transformers.GPT2Config(
        vocab_size=31, n_positions=20, n_embd=16, n_layer=1, n_head=2, bos_token_id=2, eos_token_id=3, pad_token_id=0
    )
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path)
    transformers.AutoTokenizer.from_pretrained(models["bart"]).save_pretrained(tmp_path)
    more = {"model": str(tmp_path), "prompt": "{document} word1"}
    settings = settings_of("llama", models, root, max_length=12, answer_length=9, **more)
    with pytest.raises(ValueError, match=r"12 and what .* 21 tokens, exceed the 20 positions .*wpe.*max-length by 1"):
        built_of(settings)


def writing(built, says: list[list[int]]) -> list[int]:
    """Make a model say these tokens, row by row; return a list to which each pass adds its number of rows."""
    passes: list[int] = []

    def hook(module, inputs, logits):
        step = len(passes)
        passes.append(len(logits))
        said = torch.full_like(logits, -1e4)
        for row, tokens in enumerate(says):
            said[row, :, tokens[min(step, len(tokens) - 1)]] = 0.0
        return said

    built.model.get_output_embeddings().register_forward_hook(hook)
    return passes


@pytest.mark.parametrize("kind", KINDS)
def test_a_summary_ends_with_the_tokenizers_end_and_what_fills_a_batch_is_no_word_of_it(of, kind) -> None:
    settings = of(kind)
    built, task = built_of(settings), task_of(settings)
    examples, _ = load_examples(settings)
    encoded = task.inputs.encode(built.processor, examples, settings.max_length)
    word, other, end = *built.processor("word1 word2", add_special_tokens=False)["input_ids"][:2], 3
    assert built.processor.eos_token_id == end
    own = built.model.generation_config
    own.eos_token_id, own.pad_token_id = 30, other  # of another tokenizer
    passes = writing(built, [[word, end], [word, word, word, end]])
    inputs, labels = task.inputs.collate(built.processor, encoded, [0, 1])
    assert task.target.answers(built.model, built.processor, (inputs, labels), ()) == ["word1", "word1 word1 word1"]
    assert passes == [2] * 4 and settings.answer_length > 4


def test_rotary_positions_end_no_evaluation_and_a_length_beyond_them_all_is_refused(of) -> None:
    settings = of("llama", max_length=14, answer_length=4)
    built, task = built_of(settings), task_of(settings)
    built.model.config.max_position_embeddings = 8
    examples, _ = load_examples(settings)
    encoded = task.inputs.encode(built.processor, examples, 14)
    assert encoded.lengths.max() > 8
    assert np.isfinite(evaluate(built.model, built.processor, encoded.take(np.arange(4)), task)["loss"])
    batch = task.inputs.collate(built.processor, encoded, [0])
    with pytest.raises(ValueError, match="exceed the 8 positions of the model; lower the length"):
        write(built.model, built.processor, *batch, 12, 1)


def test_a_special_token_in_a_summary_is_text(of) -> None:
    settings = of("llama")
    built, task = built_of(settings), task_of(settings)
    examples, _ = load_examples(settings)
    end = built.processor.eos_token
    examples = dataclasses.replace(examples, inputs=(["word1"], [f"word2 {end} word3"])).take(np.arange(1))
    (item,) = task.inputs.encode(built.processor, examples, settings.max_length).items
    assert item["answer"][-1] == built.processor.eos_token_id
    assert built.processor.eos_token_id not in item["answer"][:-1]
