"""A site's kit: the folder that the server's side made for it, with its name, its key and the server's certificate."""

import re
import stat
import tomllib
from dataclasses import dataclass
from pathlib import Path

_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}"
_SERVER = r"[A-Za-z0-9._-]+:[0-9]{1,5}|\[[0-9A-Fa-f:]+\]:[0-9]{1,5}"


@dataclass(frozen=True)
class Kit:
    """What a site was given.

    Attributes:
        name: the site's, as registered with the server.
        server: its address, ``host:port``.
        key: file of the site's private key.
        certificate: file of the authority that signed the server's certificate.
    """

    name: str
    server: str
    key: Path
    certificate: Path


def read_kit(folder: Path, *, secure: bool = True) -> Kit:
    """Read a kit and check it.

    Args:
        folder: with ``site.toml``, ``node.key`` and ``ca.crt``.
        secure: whether key and certificate must be there.

    Raises:
        FileNotFoundError: the folder or a file of it is not there.
        ValueError: ``site.toml`` lacks a name or a server, or holds what is none.
        PermissionError: others than the owner may read the private key.
    """
    folder = folder.absolute()
    path, key, certificate = folder / "site.toml", folder / "node.key", folder / "ca.crt"
    for file in (path, certificate, key) if secure else (path,):
        if not file.is_file():
            what = "ask whoever runs the server for the kit of this site"
            if file == key:
                what = f"the site's private key; if the site made it itself: install -m 600 KEY {file}; else {what}"
            raise FileNotFoundError(f"the kit has no {file}; {what}")
    try:
        told = tomllib.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # no TOML, no UTF-8, a number of thousands of digits
        raise ValueError(f"{path} is no TOML ({error}); ask for the kit anew") from error
    for name, form, example in (("name", _NAME, "north"), ("server", _SERVER, "server.example:443")):
        value = told.get(name)
        if not isinstance(value, str) or not re.fullmatch(form, value):
            raise ValueError(f"{path} has {name} = {value!r}, expected one like {example!r}; ask for the kit anew")
    if secure and stat.S_IMODE(key.stat().st_mode) & 0o077:
        raise PermissionError(f"{key} is the site's private key, and others may read it; chmod 600 {key}")
    return Kit(told["name"], told["server"], key, certificate)
