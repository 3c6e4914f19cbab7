"""How matrices become the arrays of a message: one file per codec, named by the setting ``codec``."""

from fedasym.plugins import plugin
from fedasym.wire.codecs.base import Codec


def codec_of(named: str) -> Codec:
    """Return the codec that the setting names.

    Raises:
        ValueError: there is none of this name, or it does not take this parameter.
    """
    found: Codec = plugin("fedasym.wire.codecs", "codec", named, "codec")
    return found
