"""The seams: a new task, codec, rule of averaging and transform is a new file each, and no other line changes.

The files below are put into a copy of the app, which then runs in one process and in Flower's engine.
"""

import json
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from world import tiny_values

from fedasym.aggregation.base import aggregator_of
from fedasym.ops.app_bundle import stage
from fedasym.plugins import plugins_of
from fedasym.runs.record import read_json, read_rounds
from fedasym.settings import from_run_config
from fedasym.training.transforms import transforms_of
from fedasym.wire.codecs import codec_of
from fedasym.wire.records import heard

ROOT = Path(__file__).resolve().parents[1]
TOYS = {
    "fedasym/tasks/toy.py": '''
"""Classification of the words of a text in reverse, by the squared hinge loss of one class against the other."""
from dataclasses import replace
from fedasym.tasks.targets import Classes
from fedasym.tasks.text import Texts, classification

class Reversed(Texts):
    def read(self, frame, split):
        return tuple([" ".join(text.split()[::-1]) for text in column] for column in super().read(frame, split))

class Margin(Classes):
    def loss(self, logits, labels):
        gap = (logits[:, 1] - logits[:, 0]).float() * (2.0 * labels - 1.0)
        return (1.0 - gap).clamp(min=0.0).square().mean()

def hinge(settings):
    task = classification(settings)
    target = Margin(task.target.column, task.target.values)
    return replace(task, inputs=Reversed(task.inputs.columns), target=target, metrics=("accuracy",))

TASKS = {"hinge": hinge}
''',
    "fedasym/wire/codecs/half.py": '''
"""Every value in half precision; what is lost is added to the sender's next message."""
import numpy as np
from fedasym.plugins import without

class Half:
    def layout(self, schema):
        return {"half": ("float16", (sum(int(np.prod(shape)) for _, shape in schema),))}

    def encode(self, matrices, schema, rest):
        wanted = {name: matrices[name] + rest.get(name, np.float32(0)) for name, _ in schema}
        sent = {name: matrix.astype(np.float16) for name, matrix in wanted.items()}
        flat = np.concatenate([sent[name].reshape(-1) for name, _ in schema])
        return {"half": flat}, {name: wanted[name] - sent[name].astype(np.float32) for name in wanted}

    def decode(self, arrays, schema):
        found, start = {}, 0
        for name, shape in schema:
            size = int(np.prod(shape))
            found[name] = arrays["half"][start : start + size].astype(np.float32).reshape(shape)
            start += size
        return found

def codec(parameter):
    without(parameter)
    return Half()
''',
    "fedasym/aggregation/middle.py": '''
"""The median of the replies, value by value, whatever their weights."""
import numpy as np
from fedasym.plugins import without

class Middle:
    single_replies, least = True, 1

    def __init__(self):
        self.replies = []

    def begin(self, held):
        pass

    def add(self, weight, matrices):
        self.replies.append(matrices)

    def result(self):
        names = self.replies[0]
        exact = {n: np.median(np.stack([r[n] for r in self.replies]).astype(np.float64), axis=0) for n in names}
        return {name: matrix.astype(np.float32) for name, matrix in exact.items()}, exact

def aggregator(parameter):
    without(parameter)
    return Middle()
''',
    "fedasym/training/transforms/shrink.py": '''
"""The change times a factor: ``shrink:0.5`` sends half of it."""
import numpy as np

def transform(parameter):
    factor = np.float32(float(parameter))
    return lambda change, rng: {
        name: change.before[name] + factor * (after - change.before[name]) for name, after in change.after.items()
    }
''',
}
CHOSEN = {"task": "hinge", "codec": "half", "aggregation": "middle", "transforms": "shrink:0.5"}


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the app with the toys' files in it."""
    folder = stage(tmp_path_factory.mktemp("app") / "fedasym")
    for name, text in TOYS.items():
        assert not (folder / name).exists()
        (folder / name).write_text(text)
    return folder


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("world")
    tiny_values(root)
    return root


def run(app: Path, world: Path, *runs: tuple[dict[str, str], str, list[str]]) -> list[Path]:
    """Run federations of some settings into folders, with options, by one process with the copy's code for ours."""
    lines, folders = [], []
    for chosen, name, options in runs:
        values = tiny_values(world, **{"num_rounds": 2, **chosen})
        folders.append(world / name)
        lines.append(["run", *(f"--set={k}={v}" for k, v in values.items()), "--out", str(folders[-1]), *options])
    # The copy comes first on the path; only simulations/ is the project's.
    script = (
        f"import sys; sys.path[:0] = [{str(app)!r}, {str(ROOT)!r}]\n"
        "sys.modules['matplotlib'] = None  # no reports, of which these tests say nothing\n"
        f"from simulations.__main__ import main\nsys.exit(any([main(words) for words in {lines!r}]))"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(app), str(ROOT)])}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=world, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folders


@pytest.fixture(scope="module")
def in_process(app: Path, world: Path) -> list[Path]:
    """A run with all four, and for each of them one without it."""
    without = [({k: v for k, v in CHOSEN.items() if k != key}, f"without-{key}", []) for key in CHOSEN]
    behind = {"codec": "half", "method": "fedex", "clients_per_round": "2", "num_rounds": "5"}
    return run(app, world, (CHOSEN, "toys", []), *without, (behind, "behind", []))


def test_new_files_alone_make_a_task_a_codec_a_rule_and_a_transform_of_a_run(in_process: list[Path]) -> None:
    toys = in_process[0]
    config = read_json(toys / "config.json")
    assert {key: config["settings"][key] for key in CHOSEN} == CHOSEN
    assert json.loads(config["contract"])["codec"] == "half"
    for row in read_rounds(toys):
        assert row["clients_valid"] == 4
        assert row["payload_up"] == row["payload_down"] == 2 * 4 * config["trainable_values"]  # half precision
    assert list((toys / "clients").glob("*/*/codec-*"))  # what was lost waits for the next message
    assert {entry["expected"] for entry in read_json(toys / "examples.json")} <= {"bad", "good"}


def test_a_client_that_is_behind_is_sent_all_as_it_is_whatever_the_codec(in_process: list[Path]) -> None:
    rows = read_rounds(in_process[-1])
    assert any({*row["asked"]} - {*before["asked"]} for before, row in pairwise(rows)), "nobody was behind"
    assert [(row["clients_valid"], row["rejections"]) for row in rows] == 5 * [(2, {})]


def digest(folder: Path) -> str:
    return str(read_json(folder / "summary.json")["digest"])


def test_each_of_them_changes_what_comes_out(in_process: list[Path]) -> None:
    whole, *without = map(digest, in_process[:-1])
    assert len(without) == len(CHOSEN) and whole not in without


@pytest.mark.slow
def test_flowers_engine_runs_them_to_the_same_bits(app: Path, world: Path, in_process: list[Path]) -> None:
    (there,) = run(app, world, (CHOSEN, "flower", ["--engine", "flower", "--workers", "2"]))
    assert digest(there) == digest(in_process[0])


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("codec", "zip", r"setting codec='zip' is not one of identity"),
        ("codec", "identity:3", r"setting codec='identity:3': it takes no parameter, and '3' is given"),
        ("aggregation", "mean", r"setting aggregation='mean' is not one of bulyan, exact, krum"),
        ("transforms", "noise:1", r"setting transforms='noise:1' is not one of"),
        ("task", "toys", r"setting task='toys' is not one of .*reviews"),
    ],
)
def test_a_part_that_is_not_there_is_refused_with_those_that_are(key: str, value: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_run_config({key: value})


def test_the_defaults_are_parts_like_any_other() -> None:
    assert set(plugins_of("fedasym.wire.codecs", "codec")) == {"identity"}
    assert not aggregator_of("exact").single_replies and transforms_of("") == []


@pytest.mark.parametrize("name", plugins_of("fedasym.wire.codecs", "codec"))
@given(matrix=arrays(np.float32, (3, 5), elements=st.floats(-(2.0**99), 2.0**99, width=32)))
def test_what_a_codec_decodes_is_decoded_to_the_same_bits_when_it_is_sent_on(name: str, matrix: np.ndarray) -> None:
    schema, codec = (("layer.B", (3, 5)), ("output.bias", (1,))), codec_of(name)
    once = heard({"layer.B": matrix, "output.bias": np.ones(1, np.float32)}, schema, codec)
    again = heard(once, schema, codec)
    assert {name: m.tobytes() for name, m in again.items()} == {name: m.tobytes() for name, m in once.items()}
    encoded, _ = codec.encode(once, schema, {})
    assert {n: (a.dtype.name, a.shape) for n, a in encoded.items()} == codec.layout(schema)
