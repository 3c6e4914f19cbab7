"""What a setting is: a field with a type, a default, choices and a least value; and two sets of them compared.

Each room of the package that has settings declares them as a frozen dataclass of its own (`Checked`), with its checks
beside it; `fedasym.settings.Settings` inherits from all of them, so a function of a room takes the room's alone.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass, field, fields
from typing import Any

Value = bool | int | float | str


Choices = tuple[str, ...] | Callable[[], tuple[str, ...]]


def setting(default: Value, about: str, *, choices: Choices = (), least: float | None = None) -> Any:
    """Return the field of a setting.

    Args:
        default: its value where it is left out.
        about: what `python -m simulations settings` says of it.
        choices: all values it may have, or what returns them when they are wanted; empty: any.
        least: the least number it may be.
    """
    return field(default=default, metadata={"about": about, "choices": choices, "least": least})


def choices_of(declared: "Field[Any]") -> tuple[str, ...]:
    """Return all values that a setting may have; empty: any."""
    choices: Choices = declared.metadata["choices"]
    return choices() if callable(choices) else choices


def check(declared: "Field[Any]", value: Any) -> None:
    """Require a value of the setting's very type, among its choices, finite and not below its least.

    Raises:
        ValueError: names setting, value and expectation.
    """
    key = declared.name.replace("_", "-")
    if type(value) is not declared.type:
        wanted = getattr(declared.type, "__name__", declared.type)
        raise ValueError(f"setting {key}={value!r} is a {type(value).__name__}; give a {wanted}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"setting {key}={value!r} is not a finite number")
    choices, least = choices_of(declared), declared.metadata["least"]
    if choices and value not in choices:
        raise ValueError(f"setting {key}={value!r} is not one of {', '.join(choices)}")
    if least is not None and not value >= least:
        raise ValueError(f"setting {key}={value!r} is below {least}")


@dataclass(frozen=True)
class Checked:
    """Settings that are checked when they are made: each by itself first, then what a class adds to `_check`."""

    def __post_init__(self) -> None:
        for each in fields(self):
            check(each, getattr(self, each.name))
        self._check()

    def _check(self) -> None:
        """Check what spans settings; a subclass calls its bases' first.

        Raises:
            ValueError: two settings contradict each other; names both, and what to do.
        """


@dataclass(frozen=True)
class SeedSettings(Checked):
    """The seed, which several rooms share."""

    seed: int = setting(0, "common seed of A, split, batches and sampling")


@dataclass(frozen=True)
class RoundSettings(Checked):
    """The number of rounds, which the schedule of local training goes by too."""

    num_rounds: int = setting(4, "rounds", least=1)


def names_in(text: str) -> tuple[str, ...]:
    """Return the names in a setting that lists them by commas."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


def require_named(settings: Checked, *names: str) -> None:
    """Require that settings which name something are not blank.

    Raises:
        ValueError: one names nothing.
    """
    for name in names:
        value, default = getattr(settings, name), type(settings).__dataclass_fields__[name].default
        if not names_in(value):
            raise ValueError(f"{name.replace('_', '-')}={value!r} names nothing; leave it out for {default!r}")


def difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Say in words where two flat mappings differ, one line per key, sorted."""
    return [
        f"{key}: {old.get(key, 'absent')!r} there, {new.get(key, 'absent')!r} here"
        for key in sorted(old.keys() | new.keys())
        if old.get(key, "absent") != new.get(key, "absent")
    ]
