"""How a setting or an argument names layers: by path, by the end of a path, by an expression, or all linear ones."""

import re

from fedasym.fields import names_in

ALL_LINEAR = "all-linear"
REGEX = "regex:"  # begins a name that is a regular expression


def layer_names_in(text: str) -> tuple[str, ...]:
    """Return the names in a setting that lists them by commas; one expression alone may hold commas of its own.

    >>> layer_names_in("query, value"), layer_names_in("regex:a{1,2}")
    (('query', 'value'), ('regex:a{1,2}',))
    """
    return (text.strip(),) if text.strip().startswith(REGEX) else names_in(text)


def means(name: str, path: str, linear: bool) -> bool:
    """Say whether a name means the layer at a path.

    Args:
        name: a path, or how it ends after a dot (PEFT's rule), ``regex:EXPRESSION`` that matches the whole path, or
            ``all-linear``.
        path: of the layer.
        linear: whether the layer is a linear one.

    Raises:
        ValueError: no regular expression.

    >>> means("query", "layer.0.query", True), means("uery", "layer.0.query", True), means("all-linear", "x", False)
    (True, False, False)
    """
    if name == ALL_LINEAR:
        return linear
    if name.startswith(REGEX):
        try:
            return re.fullmatch(name.removeprefix(REGEX), path) is not None
        except re.error as error:
            raise ValueError(f"{name!r} is no regular expression: {error}; mend it") from None
    return path == name or path.endswith(f".{name}")
