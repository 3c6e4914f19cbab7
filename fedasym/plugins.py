"""Plugins by name: each file of a folder that defines what the folder is for is one, so a new file is a new plugin.

A setting names a plugin, and what it takes after a colon: ``trimmed:0.1`` is the plugin ``trimmed`` with the parameter
``0.1``, as in ``split="dirichlet:0.5"``.
"""

import pkgutil
from functools import cache
from importlib import import_module
from typing import Any


@cache
def plugins_of(package: str, attribute: str) -> dict[str, Any]:
    """Return what the files of a package define under a name, by the file's name.

    >>> sorted(plugins_of("fedasym.wire.codecs", "codec"))
    ['identity']
    """
    files = [import_module(f"{package}.{info.name}") for info in pkgutil.iter_modules(import_module(package).__path__)]
    return {file.__name__.rpartition(".")[2]: getattr(file, attribute) for file in files if hasattr(file, attribute)}


def plugin(package: str, attribute: str, named: str, setting: str) -> Any:
    """Return the plugin that a setting names, made with its parameter.

    Args:
        package: whose files are the plugins.
        attribute: the function in each that makes it of its parameter, "" where none is given.
        named: the setting's value.
        setting: its key, for the error.

    Raises:
        ValueError: there is no such plugin, or it does not take this parameter.
    """
    name, _, parameter = named.partition(":")
    plugins = plugins_of(package, attribute)
    if name not in plugins:
        raise ValueError(f"setting {setting}={named!r} is not one of {', '.join(sorted(plugins))}")
    try:
        return plugins[name](parameter)
    except ValueError as error:
        raise ValueError(f"setting {setting}={named!r}: {error}") from error


def without(parameter: str) -> None:
    """Require that a plugin that takes no parameter is given none.

    Raises:
        ValueError: it is.
    """
    if parameter:
        raise ValueError(f"it takes no parameter, and {parameter!r} is given; leave it out")
