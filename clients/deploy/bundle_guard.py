"""Flower's `flwr-clientapp` with a check before it: no code of an app bundle but the pinned one runs at this site.

``python -P clients/deploy/bundle_guard.py SHA256 ...``: the rest is what Flower gave ``flwr-clientapp``. Of what runs
at a site this file alone touches a private part of Flower (``install_from_fab``, as
`flwr.supernode.runtime.run_clientapp` calls it), because Flower has no public place between the arrival of a bundle and
its first import. If that part is gone, nothing runs.

A script and no module of a package, so that the `clients` of the bundle, not ours, is what Flower imports.
"""

import hashlib
import re
import sys
from collections.abc import Callable
from typing import Any

_INSTALL = "install_from_fab"


class BundleRefused(Exception):
    """The app bundle is not the pinned one."""


def checked(install: Callable[..., Any], pinned: str) -> Callable[..., Any]:
    """Return Flower's installation of a bundle, preceded by the check of its bytes.

    Args:
        install: Flower's.
        pinned: SHA-256 of the only bundle that may run, hexadecimal.
    """

    def install_pinned(bundle: bytes, *args: Any, **options: Any) -> Any:
        came = hashlib.sha256(bundle).hexdigest()
        if came != pinned:
            raise BundleRefused(
                f"the app bundle has the SHA-256 {came}, and this site is pinned to {pinned}; agree on it with the "
                "site, which pins it anew (--pin-bundle)"
            )
        return install(bundle, *args, **options)

    return install_pinned


def guarded(pinned: str) -> Callable[[], None]:
    """Return Flower's command, which installs no bundle but the pinned one.

    Raises:
        SystemExit: no whole digest, or a Flower that has lost the place of the check.
    """
    if not re.fullmatch("[0-9a-f]{64}", pinned):
        sys.exit(f"the pinned bundle {pinned!r} is not 64 hexadecimal digits; nothing runs")
    try:
        from flwr.supernode.cli import flwr_clientapp
        from flwr.supernode.runtime import run_clientapp as flower

        install = getattr(flower, _INSTALL)
        if _INSTALL not in flower.run_clientapp.__code__.co_names:
            raise AttributeError(f"run_clientapp does not call {_INSTALL}")
    except (ImportError, AttributeError) as error:
        sys.exit(
            f"this version of Flower has no {_INSTALL} where a bundle's digest is to be checked ({error}), so nothing "
            "runs; use flwr 1.41 or 1.42, or do without --pin-bundle"
        )
    setattr(flower, _INSTALL, checked(install, pinned))
    return flwr_clientapp


if __name__ == "__main__":
    guarded(sys.argv.pop(1) if len(sys.argv) > 1 else "")()
