"""Which extra brings a library that is not installed."""

_EXTRAS = {
    "pandas": "data", "pyarrow": "data", "sklearn": "data", "scipy": "data", "datasets": "data",
    "flwr_datasets": "data", "matplotlib": "report", "rich": "report", "cryptography": "server", "grpc": "site",
    "grpc_health": "site", "ray": "simulation",
}  # fmt: skip


def in_words(error: ModuleNotFoundError) -> str:
    """Say what is missing and what brings it.

    >>> in_words(ModuleNotFoundError("No module named 'matplotlib.figure'", name="matplotlib.figure"))
    "matplotlib is not installed; pip install 'fedasym[report]'"
    """
    name = (error.name or "").partition(".")[0]
    return f"{name} is not installed; pip install 'fedasym[{_EXTRAS[name]}]'" if name in _EXTRAS else str(error)
