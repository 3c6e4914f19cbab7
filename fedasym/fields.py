"""What a setting is: a field with a type, a default, choices and a least value; and two sets of them compared."""

import math
from collections.abc import Mapping
from dataclasses import Field, field
from typing import Any

Value = bool | int | float | str


def knob(default: Value, about: str, *, choices: tuple[str, ...] = (), least: float | None = None) -> Any:
    """Return the field of a setting; ``about`` is what `python -m simulations settings` says of it."""
    return field(default=default, metadata={"about": about, "choices": choices, "least": least})


def check(knob: "Field[Any]", value: Any) -> None:
    """Require a value of the setting's very type, among its choices, finite and not below its least.

    Raises:
        ValueError: names setting, value and expectation.
    """
    key = knob.name.replace("_", "-")
    if type(value) is not knob.type:
        wanted = getattr(knob.type, "__name__", knob.type)
        raise ValueError(f"setting {key}={value!r} is a {type(value).__name__}; give a {wanted}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"setting {key}={value!r} is not a finite number")
    choices, least = knob.metadata["choices"], knob.metadata["least"]
    if choices and value not in choices:
        raise ValueError(f"setting {key}={value!r} is not one of {', '.join(choices)}")
    if least is not None and not value >= least:
        raise ValueError(f"setting {key}={value!r} is below {least}")


def difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Say in words where two flat mappings differ, one line per key, sorted."""
    return [
        f"{key}: {old.get(key, 'absent')!r} there, {new.get(key, 'absent')!r} here"
        for key in sorted(old.keys() | new.keys())
        if old.get(key, "absent") != new.get(key, "absent")
    ]
