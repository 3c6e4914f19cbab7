"""The classes that a checkpoint's own output layer tells apart, by name."""

import logging
import re

from fedasym.models.model_files import source_of
from fedasym.models.settings import ModelSettings

_CLASSIFIES = re.compile(r"For(Sequence|Image)Classification$")
_NAMELESS = re.compile(r"LABEL_\d+")  # what transformers calls a class that nobody has named
log = logging.getLogger("fedasym")


def classes_of_checkpoint(settings: ModelSettings) -> tuple[str, ...]:
    """Return the names in a checkpoint's ``id2label``, in the order of the ids; empty where they are nobody's.

    They are nobody's where the checkpoint has no output layer of its own, or it is not used (``fresh-head``, another
    pooling), or its classes have no names.

    Args:
        settings: resolved.

    Raises:
        FileNotFoundError, OSError, ModuleNotFoundError, ValueError: the model is not there, as `source_of`.
    """
    from transformers import PretrainedConfig

    if settings.pooling != "model" or settings.fresh_head:
        return ()
    source = source_of(settings.model, settings.revision)
    raw, _ = PretrainedConfig.get_config_dict(source, revision=settings.revision)
    named = {int(number): str(name) for number, name in (raw.get("id2label") or {}).items()}
    classifies = any(_CLASSIFIES.search(name) for name in raw.get("architectures") or ())
    names = tuple(named[number] for number in sorted(named))
    if not classifies or sorted(named) != list(range(len(named))) or all(map(_NAMELESS.fullmatch, names)):
        return ()
    log.info("model %r tells apart, in the order of their ids: %s", settings.model, ", ".join(names))
    return names
