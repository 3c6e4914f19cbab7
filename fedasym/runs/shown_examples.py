"""Some held-out examples of a run with what its model says to them before and after: examples.json in the run folder.

An entry holds texts: ``question``, ``expected``, ``before``, ``after``, and of an image ``picture``, a PNG in base64.
They are cut to one printable line each: people read them, and both data and model may hold anything.
"""

import base64
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fedasym.models.build import Built
from fedasym.rng import generator
from fedasym.runs.record import EXAMPLES, write_json
from fedasym.settings import Settings
from fedasym.tasks.base import Answer, Examples, Task
from fedasym.training.loop import ask
from fedasym.wire.records import clean

_COUNT = 5  # examples
_LONGEST = 400  # characters of a text


def choose_examples(held_out: Examples, seed: int) -> Examples:
    """Draw some examples by the seed, in file order."""
    order = generator(seed, "shown examples").permutation(len(held_out))
    return held_out.take(np.sort(order[:_COUNT]))


def answers_now(built: Built, settings: Settings, task: Task, examples: Examples) -> list[Answer]:
    """Return what a model says to examples as it is now; none where there is nothing to ask.

    Raises:
        FloatingPointError, DeviceMemoryError, ValueError: as `ask`.
    """
    if not all(told.question for told in task.inputs.told(examples)):
        return []
    inputs = task.inputs.asked
    encoded = inputs.encode(built.processor, examples, settings.max_length, settings.pooling)
    return ask(built.model, built.processor, encoded, task, examples.class_names, batch_size=len(examples))


def write_examples(
    folder: Path, task: Task, examples: Examples, before: Sequence[Answer], after: Sequence[Answer]
) -> None:
    """Write examples.json to a run folder."""
    entries = []
    for place, (told, first, last) in enumerate(zip(task.inputs.told(examples), before, after, strict=True)):
        entry = {
            "question": told.question,
            "expected": told.answer or _label(examples, place),
            "before": in_words(first),
            "after": in_words(last),
        }
        picture = {"picture": base64.b64encode(told.picture).decode()} if told.picture else {}
        entries.append({key: clean(text, _LONGEST) for key, text in entry.items()} | picture)
    write_json(folder / EXAMPLES, entries)


def in_words(answer: Answer) -> str:
    """Return an answer as text: of classes the likeliest with its probability.

    >>> in_words({"no": 0.25, "yes": 0.75}), in_words(2.0 / 3.0), in_words("so it is")
    ('yes (0.75)', '0.667', 'so it is')
    """
    if isinstance(answer, dict):
        name = max(answer, key=answer.__getitem__)
        return f"{name} ({answer[name]:.2f})"
    return answer if isinstance(answer, str) else f"{answer:.3f}"


def _label(examples: Examples, place: int) -> str:
    label = examples.labels[place]
    return examples.class_names[label] if examples.class_names else f"{label:.3f}"
