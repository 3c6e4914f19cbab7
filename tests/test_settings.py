"""Settings are checked at the door: whatever is unknown, of another type or out of range is refused by its name."""

import dataclasses
import tomllib
from pathlib import Path

import pytest

from fedasym.fields import choices_of, difference
from fedasym.methods import METHODS
from fedasym.settings import Settings, from_run_config
from simulations.__main__ import main
from simulations.run import read_settings

PROJECT = Path(__file__).parents[1] / "pyproject.toml"
FIELDS = {field.name.replace("_", "-"): field for field in dataclasses.fields(Settings)}
JUDGED = {"task": "instruct", "choices-data": "mmlu"}
WRONG = {bool: (1, "true"), int: (True, 1.0, "1"), float: (True, "1.0"), str: (1, 1.0, False)}


def test_the_defaults_are_those_of_the_flower_app_with_the_same_keys_order_values_and_types() -> None:
    config = tomllib.loads(PROJECT.read_text())["tool"]["flwr"]["app"]["config"]
    defaults = Settings().run_config()
    assert list(config.items()) == list(defaults.items())
    assert [type(value) for value in config.values()] == [type(value) for value in defaults.values()]
    assert from_run_config(config) == Settings()


def test_every_setting_says_what_it_is() -> None:
    assert all(field.metadata["about"] for field in FIELDS.values())
    assert {field.type for field in FIELDS.values()} == {bool, int, float, str}


def test_an_unknown_key_is_refused_with_the_nearest_known_one() -> None:
    with pytest.raises(ValueError, match="'num-round' is unknown; did you mean 'num-rounds'"):
        from_run_config({"num-round": 3})
    with pytest.raises(ValueError, match="'num_rounds' is unknown; did you mean 'num-rounds'"):
        from_run_config({"num_rounds": 3})  # the attribute's name is not the key
    with pytest.raises(ValueError, match=r"'zzzz' is unknown; see `python -m simulations settings`"):
        from_run_config({"zzzz": 3})


@pytest.mark.parametrize("key", FIELDS)
def test_a_value_of_another_type_is_refused_by_name_value_and_type(key) -> None:
    for value in WRONG[FIELDS[key].type]:
        with pytest.raises(ValueError) as caught:
            from_run_config({key: value})
        wanted = f"setting {key}={value!r} is a {type(value).__name__}; give a {FIELDS[key].type.__name__}"
        assert str(caught.value) == wanted


def test_a_whole_number_is_taken_for_a_float_and_becomes_one() -> None:
    settings = from_run_config({"alpha": 32, "lr": 1})
    assert (settings.alpha, settings.lr) == (32.0, 1.0)
    assert type(settings.alpha) is float and type(settings.lr) is float
    with pytest.raises(ValueError, match="setting alpha=32 is a int; give a float"):
        Settings(alpha=32)  # only the run config is lenient


@pytest.mark.parametrize("key", [key for key, field in FIELDS.items() if field.metadata["least"] is not None])
def test_a_number_below_its_least_value_is_refused_and_not_a_number_too(key) -> None:
    least, kind = FIELDS[key].metadata["least"], FIELDS[key].type
    with pytest.raises(ValueError, match=f"setting {key}=.* is below {least}"):
        from_run_config({key: kind(least - 1)})
    if kind is float:
        with pytest.raises(ValueError, match=f"setting {key}=nan is not a finite number"):
            from_run_config({key: float("nan")})


@pytest.mark.parametrize("key", [key for key, field in FIELDS.items() if choices_of(field)])
def test_a_choice_is_one_of_those_listed(key) -> None:
    choices = choices_of(FIELDS[key])
    for choice in choices:
        more = {"client-holdout": 0.5} if choice in ("local", "fedsa") else {}
        more |= {"num-clients": 1} if choice == "central" else {}
        more |= {"task": "instruct"} if key in ("instruct-format", "choices-score") else {}
        more |= {"choices-data": "questions"} if key == "choices-score" else {}
        more |= {"task": "images"} if key == "image-layout" else {}
        assert from_run_config({key: choice, **more}).run_config()[key] == choice
    with pytest.raises(ValueError) as caught:
        from_run_config({key: "nonsense"})
    assert str(caught.value) == f"setting {key}='nonsense' is not one of {', '.join(choices)}"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"local-steps": 0}, "local-steps and local-epochs are both 0"),
        ({"client-holdout": 1.0}, "client-holdout=1.0 leaves nothing to train on"),
        ({"head": "local"}, "set client-holdout"),
        ({"method": "fedsa"}, "method='fedsa' is evaluated at the clients only; set client-holdout"),
        ({"method": "central"}, "set num-clients=1, not 10"),
        ({"method": "full", "head": "frozen"}, "full fine-tuning trains the whole head"),
        ({"method": "fedex", "server-optimizer": "adam"}, "needs a mean change, which fedex does not form"),
        ({"clients-per-round": 4, "num-clients": 3}, "clients-per-round=4 exceeds num-clients=3"),
        ({"text-columns": "title,label"}, "text-columns='title,label' holds label-column='label'"),
        ({"text-columns": "a, y", "label-column": "y", "task": "regression"}, "holds label-column='y'"),
        ({"test-split": "train"}, "test-split='train' is the training split too; set it to another, or validation-cut"),
        ({"instruct-format": "chat"}, "instruct-format='chat' does nothing with task='reviews'"),
        ({"choices-data": "mmlu"}, "choices-data='mmlu' does nothing with task='reviews'; leave it at ''"),
        ({"task": "instruct", "labels": "a,b"}, "labels='a,b' does nothing with task='instruct'"),
        (
            {"task": "instruct", "text-columns": "body"},
            "text-columns='body' does nothing with instruct-format='alpaca'",
        ),
        ({"task": "instruct", "choices-shots": 0}, "choices-shots=0 does nothing without choices-data"),
        ({**JUDGED, "choices-split": "dev"}, "choices-split='dev' is where the shots come from"),
        ({**JUDGED, "validation-cut": 9}, "choices-data='mmlu' does not judge this run, validation-cut=9 does"),
        ({**JUDGED, "method": "fedsa", "client-holdout": 0.2}, "does not judge this run, its clients judge it"),
        ({"min-valid": 4, "num-clients": 3}, "min-valid=4 exceeds the clients asked"),
        ({"min-valid": 3, "clients-per-round": 2}, "min-valid=3 exceeds the clients asked"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(config, message) -> None:
    with pytest.raises(ValueError, match=message):
        from_run_config(config)


@pytest.mark.parametrize("key", ["targets", "text-columns", "label-column", "image-column", "model", "data"])
@pytest.mark.parametrize("value", ["", " ", ","])
def test_a_name_that_is_left_empty_is_refused_with_its_default(key, value) -> None:
    with pytest.raises(ValueError) as caught:
        from_run_config({key: value})
    assert str(caught.value) == f"{key}={value!r} names nothing; leave it out for {FIELDS[key].default!r}"


@pytest.mark.parametrize(
    "config",
    [
        {"local-steps": 0, "local-epochs": 1},
        {"train-split": "all", "test-split": "all", "validation-cut": 5},
        {"data": "none", "model": "minilm", "sites": "north,south", "labels": "a,b", "client-holdout": 0.2},
        {
            "data": "reviews",
            "model": "minilm",
            "sites": "north,south",
            "labels": "a,b",
            "test-split": "train",
        },  # the server's file and the sites' own
        {
            "sites": "north,south",
            "model": "smollm2",
            "data": "none",
            **JUDGED,
        },  # the server judges by questions of its own
        {**JUDGED, "test-split": "train"},  # which then is not read
        {**JUDGED, "choices-split": "dev", "choices-shots": 0},
        {"task": "instruct", "instruct-format": "text", "text-columns": "body"},
        {"client-holdout": 0.99},
        {"head": "local", "client-holdout": 0.2},
        {"clients-per-round": 3, "num-clients": 3, "min-valid": 3},
    ],
)
def test_settings_at_the_edge_of_a_contradiction_are_taken(config) -> None:
    assert config.items() <= from_run_config(config).run_config().items()


@pytest.mark.parametrize(
    "file", sorted((PROJECT.parent / "simulations" / "configs").glob("*.toml")), ids=lambda file: file.stem
)
def test_every_committed_file_of_settings_is_taken(file: Path) -> None:
    given = {"data": "quiz", "choices-data": "quiz"} if file.stem == "llama-quiz" else {}  # on the command line
    values = {**tomllib.loads(file.read_text()), **given}
    assert values.items() <= from_run_config(values).resolved().run_config().items()


@pytest.mark.parametrize("name", METHODS)
def test_resolved_puts_the_methods_defaults_in_place_of_auto_and_zero(name) -> None:
    method = METHODS[name]
    holdout = 0.2 if method.personal else 0.0
    settings = Settings(method=name, client_holdout=holdout, num_clients=1 if name == "central" else 10).resolved()
    found = (settings.kind, settings.optimizer, settings.lr, settings.head_lr, settings.head, settings.pooling)
    assert found == (method.kind, method.optimizer, method.lr, method.head_lr, method.head, "mean")
    assert method.lr > 0 and method.head_lr > 0
    assert settings.resolved() == settings


def test_resolved_leaves_alone_what_is_set() -> None:
    chosen = Settings(kind="block", head="frozen", optimizer="adamw", lr=0.25, head_lr=0.125, pooling="model")
    assert chosen.resolved() == chosen
    assert Settings(model="some/folder").resolved().pooling == "model"  # mean pooling is the demo's alone
    assert Settings(text_columns="one,two").resolved().pooling == "pair"


def test_settings_survive_the_run_config_and_back() -> None:
    settings = Settings(num_rounds=3, alpha=2.5, head="local", client_holdout=0.25, targets="query,value", seed=-7)
    assert from_run_config(settings.run_config()) == settings
    assert all(type(value) in (bool, int, float, str) for value in settings.run_config().values())


def test_lists_of_names_are_split_at_commas_and_stripped() -> None:
    settings = Settings(text_columns="question, sentence", targets="q_proj , v_proj,")
    assert settings.text_column_names == ("question", "sentence")
    assert settings.target_names == ("q_proj", "v_proj")


def test_settings_cannot_be_changed_once_made() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Settings().rank = 4  # type: ignore[misc]


def test_difference_names_exactly_the_keys_that_differ() -> None:
    assert difference({"a": 1, "b": 2}, {"b": 2, "a": 1}) == []
    lines = difference({"a": 1, "b": 2, "gone": 3}, {"a": 1, "b": "2", "new": 4})
    assert lines == ["b: 2 there, '2' here", "gone: 3 there, 'absent' here", "new: 'absent' there, 4 here"]


@pytest.mark.parametrize("text", ["num-rounds: 3", "lr = 0.1\nlr = 0.2", "\xff".encode("latin-1")])
def test_a_settings_file_that_is_not_toml_is_named_with_what_is_wrong_in_it(tmp_path: Path, capsys, text) -> None:
    file = tmp_path / "mine.toml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=r"mine\.toml is not TOML: .*(line|position)"):
        read_settings(file, [], None)
    assert main(["compare", "--config", str(file), "--out", str(tmp_path)]) == 1
    assert "mine.toml" in capsys.readouterr().out


def test_a_settings_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no settings file .*mine\.toml"):
        read_settings(tmp_path / "mine.toml", [], None)
