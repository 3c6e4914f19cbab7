"""Which extra brings a library that is not installed."""

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager

_EXTRAS = {
    "pandas": "data", "pyarrow": "data", "PIL": "data", "sklearn": "data", "scipy": "data", "datasets": "data",
    "flwr_datasets": "data", "jinja2": "report", "matplotlib": "report", "rich": "report", "cryptography": "server",
    "ray": "simulation", "gguf": "gguf", "bitsandbytes": "quantize", "rouge_score": "data",
}  # fmt: skip
_LEAN = ("pandas", "pyarrow", "PIL", "sklearn", "scipy", "rouge_score")  # what a site installs of the data's libraries


def is_extra(error: ModuleNotFoundError) -> bool:
    """Say whether what is missing is a library that an extra brings, and no part of ours or of another's."""
    return _library(error) in _EXTRAS


def in_words(error: ModuleNotFoundError) -> str:
    """Say what is missing and what brings it.

    >>> in_words(ModuleNotFoundError("No module named 'matplotlib.figure'", name="matplotlib.figure"))
    "matplotlib is not installed; pip install 'fedasym[report]'"
    >>> in_words(ModuleNotFoundError("No module named 'pandas'", name="pandas"))
    "pandas is not installed; pip install 'fedasym[data]', or at a site 'fedasym[site]'"
    """
    library = _library(error)
    if library not in _EXTRAS:
        return str(error)
    at_a_site = ", or at a site 'fedasym[site]'" if library in _LEAN else ""
    return f"{library} is not installed; pip install 'fedasym[{_EXTRAS[library]}]'{at_a_site}"


@contextmanager
def named() -> Iterator[None]:
    """Let what is imported in this block fail in words.

    Raises:
        ModuleNotFoundError: a library is not installed; the text names the extra that brings it.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if not is_extra(error):
            raise
        raise ModuleNotFoundError(in_words(error), name=error.name) from None


def require(library: str) -> None:
    """Require a library before the work that ends with it, or that lets another program import it.

    Raises:
        ModuleNotFoundError: it is not installed; the text names the extra that brings it.
    """
    with named():
        if importlib.util.find_spec(library) is None:
            raise ModuleNotFoundError(f"No module named {library!r}", name=library)


def _library(error: ModuleNotFoundError) -> str:
    return (error.name or "").partition(".")[0]
