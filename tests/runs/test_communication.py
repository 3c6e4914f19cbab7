"""What would travel, computed from a configuration alone, is what a run measures; known models give known numbers.

The runs of every method are those of test_travel.py.
"""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from quiz import make_writer, quiz_settings
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, ViTConfig
from world import assert_moved, simulate, tiny_settings

from fedasym.runs.communication import PRESETS, WRITERS, communication_cost, config_of, skeleton
from fedasym.settings import Settings
from simulations.__main__ import main
from simulations.cost.computed_bytes import communication_costs

ROUNDS = 3  # round 1 and, of the longest cycle, one whole turn


@pytest.mark.parametrize(
    ("family", "method", "head", "targets"),
    [
        ("bert", "fedsvd", "output", "all-linear"),
        ("roberta", "rolora", "full", "all-linear"),
        ("roberta", "fedex", "output", "query,value"),  # and the head's hidden layer, which is new
        ("distilbert", "lora", "local", "all-linear"),
        ("bart", "fedex", "full", "q_proj,v_proj"),
        ("llama", "rolora", "frozen", "q_proj,v_proj"),
        ("roberta", "lora", "frozen", "all-linear"),  # a head of two layers, of which nothing travels
        ("llama", "full", "auto", "all-linear"),
    ],
)
def test_every_family_and_head_moves_the_computed_bytes(
    tiny: Settings, models: dict[str, Path], tmp_path: Path, family: str, method: str, head: str, targets: str
) -> None:
    settings = dataclasses.replace(
        tiny, model=str(models[family]), method=method, head=head, out=str(tmp_path), client_holdout=0.2,
        num_rounds=ROUNDS, local_steps=1, kind="kaiming", targets=targets,
    )  # fmt: skip
    found = communication_cost(settings.resolved(), config_of(settings.model), 3)
    assert_moved(simulate(settings), found, settings.num_clients)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("method", ["asymmetric", "lora", "full"])
def test_a_model_that_writes_moves_the_computed_bytes_and_nothing_of_its_own_head(
    tmp_path: Path, method: str, tied: bool
) -> None:
    folder = make_writer(tmp_path / "own", tied=tied)
    settings = quiz_settings(
        tmp_path, model=str(folder), method=method, out=str(tmp_path / "run"), local_steps=1, test_cap=2
    )
    found = communication_cost(settings.resolved(), config_of(settings.model), 0)
    assert_moved(simulate(settings), found, 3)
    assert found.output == "" and found.head_values == 0
    shapes = [p.numel() for p in AutoModelForCausalLM.from_pretrained(folder).parameters()]
    assert found.parameters == sum(shapes)
    assert found.rounds[0].up == 4 * {"asymmetric": found.B, "lora": found.A + found.B, "full": sum(shapes)}[method]


def test_a_sampled_stack_has_the_factors_of_the_clients_of_a_round(tmp_path: Path) -> None:
    settings = tiny_settings(tmp_path, method="fedex", clients_per_round=2).resolved()
    found = communication_cost(settings, config_of(settings.model), 2)
    assert found.later[0].down_adapter == 2 * found.later[0].up_adapter


def test_roberta_base_has_the_numbers_that_follow_from_its_shapes() -> None:
    asymmetric, lora = communication_costs(
        "roberta-base", ["asymmetric", "lora"], 8, "query,value", "full", "auto", clients=10, labels=2
    )
    assert asymmetric.A == asymmetric.B == 12 * 2 * 8 * 768 == 147_456  # 12 layers, q and v, r times 768
    assert asymmetric.head_values == 768 * 768 + 768 + 2 * 768 + 2 == 592_130  # dense, then two outputs
    assert asymmetric.parameters == 124_055_040 + 592_130  # the published encoder without its pooler, and the head
    whole, half = 2 * 147_456 + 592_130, 147_456 + 592_130
    assert lora.later[0].up == lora.later[0].down == 4 * whole
    assert asymmetric.later[0].up == asymmetric.later[0].down == 4 * half
    assert asymmetric.saving(lora) == pytest.approx(1 - half / whole)
    assert asymmetric.saving_adapter(lora) == 0.5


def test_grouped_queries_make_B_smaller_than_A() -> None:
    config = LlamaConfig(  # TinyLlama-1.1B: 32 heads of 64, of which 4 have keys and values of their own
        hidden_size=2048, intermediate_size=5632, num_hidden_layers=22, num_attention_heads=32, num_key_value_heads=4
    )
    settings = Settings(method="asymmetric", model="-", targets="q_proj,v_proj", head="frozen").resolved()
    found = communication_cost(settings, config, 2)
    assert found.A == 22 * 2 * 8 * 2048
    assert found.B == 22 * 8 * (2048 + 256)
    lora = communication_cost(dataclasses.replace(settings, method="lora"), config, 2)
    assert found.saving(lora) == pytest.approx(0.64)  # d_in / (d_in + d_out) over q and v: 4096 / 6400


@pytest.mark.parametrize(
    ("model", "parameters"),  # published sizes of the base models, and their heads of two outputs
    [
        ("roberta-base", 124_055_040 + 768 * 768 + 768 + 2 * 768 + 2),
        ("roberta-large", 354_310_144 + 1024 * 1024 + 1024 + 2 * 1024 + 2),
        ("bart-large", 406_291_456 + 1024 * 1024 + 1024 + 2 * 1024 + 2),
        ("llama-2-7b", 6_738_415_616 - 32_000 * 4096 + 2 * 4096),  # the language head gives way to `score`
        ("llama-3.2-1b", 1_235_814_400 + 2 * 2048),  # its language head is its embedding
        ("llama-3.1-70b", 70_553_706_496 - 128_256 * 8192 + 2 * 8192),
        ("qwen2.5-0.5b", 494_032_768 + 2 * 896),
        ("vit-b16", 85_798_656 + 2 * 768 + 2),
    ],
)
def test_a_preset_has_as_many_parameters_as_the_published_model_and_no_weights(model: str, parameters: int) -> None:
    settings = Settings(model=model).resolved()
    bare, _ = skeleton(config_of(model), settings, 2)
    assert {tensor.device.type for tensor in [*bare.parameters(), *bare.buffers()]} == {"meta"}
    found = communication_cost(settings, config_of(model), 2)
    assert found.parameters == parameters
    assert found.layers > 0 and found.A > 0
    full = communication_cost(Settings(model=model, method="full").resolved(), config_of(model), 2)
    assert full.rounds[0].up == 4 * parameters


def test_all_presets_are_tested() -> None:
    encoders = {"roberta-base", "roberta-large", "bart-large", "vit-b16"}
    assert set(PRESETS) == encoders | set(WRITERS) and len(WRITERS) == 4


@pytest.mark.parametrize(
    ("model", "layers", "hidden", "inner", "grouped", "words", "biases", "parameters"),
    [
        ("llama-3.2-1b", 16, 2048, 8192, 8 * 64, 128_256, 0, 1_235_814_400),  # parameters: as published
        ("qwen2.5-0.5b", 24, 896, 4864, 2 * 64, 151_936, 1, 494_032_768),
    ],
)
def test_the_presets_with_grouped_queries_have_the_published_parameters_and_a_small_B(
    model: str, layers: int, hidden: int, inner: int, grouped: int, words: int, biases: int, parameters: int
) -> None:
    attention = 2 * hidden * hidden + 2 * hidden * grouped + biases * (hidden + 2 * grouped)
    layer = attention + 3 * hidden * inner + 2 * hidden  # the feed-forward part's three, and two norms
    assert words * hidden + layers * layer + hidden == parameters  # the output layer is the embedding
    asymmetric, lora = communication_costs(
        model, ["asymmetric", "lora"], 8, "all-linear", "auto", "auto", clients=10, labels=0
    )
    assert asymmetric.parameters == parameters
    assert layers * 8 * (6 * hidden + inner) == asymmetric.A  # q, k, v, o, gate and up read d values, down the inner
    assert layers * 8 * (3 * hidden + 2 * grouped + 2 * inner) == asymmetric.B
    assert asymmetric.rounds[0].up == 4 * asymmetric.B and asymmetric.head_values == 0
    assert lora.rounds[0].up == 4 * (asymmetric.A + asymmetric.B)
    small = communication_costs(model, ["asymmetric", "lora"], 8, "q_proj,v_proj", "auto", "auto", clients=10, labels=0)
    assert small[0].saving(small[1]) == pytest.approx(2 * hidden / (3 * hidden + grouped))  # d_in / (d_in + d_out)


def test_counting_asks_nothing_of_the_global_generator() -> None:
    before = torch.get_rng_state()
    communication_cost(Settings(model="roberta-base").resolved(), config_of("roberta-base"), 2)
    assert torch.equal(before, torch.get_rng_state())


def test_a_folder_with_a_configuration_and_no_weights_is_enough(tmp_path: Path) -> None:
    ViTConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=48).save_pretrained(
        tmp_path
    )
    found = communication_cost(Settings(model=str(tmp_path)).resolved(), config_of(str(tmp_path)), 5)
    assert found.output == "classifier" and found.head_values == 5 * 32 + 5
    assert found.B == 8 * (4 * 32 + 48 + 32)  # q, k, v, o; up and down of the feed-forward part


def test_the_packaged_model_needs_no_network() -> None:
    found = communication_cost(Settings().resolved(), config_of("demo"), 2)
    assert found.rounds[0].up == 666_632  # as the demo measures


def test_a_model_that_cannot_be_had_is_named_with_what_can() -> None:
    with pytest.raises(OSError, match=r"'nobody/nothing': no configuration was found .* roberta-base"):
        config_of("nobody/nothing")


def test_a_model_without_a_classifier_and_a_rank_that_no_A_has_are_refused() -> None:
    whisper = AutoConfig.for_model("wav2vec2")
    with pytest.raises(ValueError, match="no text classifier for a Wav2Vec2Config"):
        communication_cost(Settings(model="-").resolved(), whisper, 2)
    with pytest.raises(ValueError, match="rank 800 exceeds d_in 768"):
        communication_cost(Settings(model="-", rank=800).resolved(), config_of("roberta-base"), 2)


def test_the_command_prints_the_same_numbers_as_a_table_and_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    chosen = ["bytes", "--model", "roberta-base", "--targets", "query,value", "--head", "full"]
    assert main([*chosen, "--methods", "lora,asymmetric,fedex,full,local", "--clients", "3", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    rows = {row["method"]: row for row in said["methods"]}
    assert rows["asymmetric"]["B_bytes"] == 4 * 147_456 and rows["asymmetric"]["head_bytes"] == 4 * 592_130
    assert rows["fedex"]["rounds"][1]["down"] == 4 * (3 * 2 * 147_456 + 592_130)
    assert rows["local"]["rounds"][0]["up"] == 0 and rows["full"]["saving_adapter"] is None
    writing = ["bytes", "--model", "llama-2-7b", "--targets", "q_proj,v_proj", "--labels", "0", "--methods", "lora"]
    assert main([*writing, "--json"]) == 0
    unsaid = [word for word in writing if word not in ("--labels", "0")]  # a preset that writes needs not say so
    said = capsys.readouterr().out
    assert main([*unsaid, "--json"]) == 0 and capsys.readouterr().out == said
    (row,) = json.loads(said)["methods"]
    assert row["A_bytes"] == row["B_bytes"] == 4 * 32 * 2 * 8 * 4096 and row["head_bytes"] == 0
    assert row["parameters"] == 6_738_415_616  # the published model, its own head included
    assert main(writing) == 0
    assert "parameters with its own head, which stays as it is" in capsys.readouterr().out
    assert main([*chosen, "--methods", "lora,asymmetric"]) == 0
    table = capsys.readouterr().out
    assert "147,456 values" in table and "592,130 values" in table and "16.6 %" in table


def test_an_unknown_method_or_head_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bytes", "--methods", "lora,nothing"]) == 1
    assert "methods nothing are unknown" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["bytes", "--methods", ","])
    assert "names nothing" in capsys.readouterr().err
    assert main(["bytes", "--methods", "lora,central"]) == 1
    assert "central has all data in one place" in capsys.readouterr().out
    assert main(["bytes", "--head", "none"]) == 1
    assert "head='none' is not one of" in capsys.readouterr().out
