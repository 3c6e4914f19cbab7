"""Looks at a site's data once, in a process of its own, so that the one that stays holds neither them nor pandas.

``python -m clients.deploy.data_check CONFIG FOLDER``: CONFIG is a run config as JSON. What it says stays at the site.
"""

import json
import sys
from collections import Counter
from pathlib import Path

from fedasym.data.examples import load_own_examples
from fedasym.settings import from_run_config
from fedasym.tasks import task_of


def look(config: str, folder: str) -> str:
    """Read a site's training data and say how many rows and of which classes they are.

    Raises:
        ValueError, FileNotFoundError, ModuleNotFoundError: as `fedasym.data.examples.load_own_examples`.
    """
    settings = from_run_config(json.loads(config))
    examples = load_own_examples(settings, Path(folder))
    said = f"{len(examples)} rows of {settings.train_split}"
    if not task_of(settings).target.has_head:
        return said
    if not examples.class_names:
        return f"{said}; labels from {examples.labels.min():g} to {examples.labels.max():g}"
    counts = Counter(examples.labels.tolist())
    return f"{said}; " + ", ".join(f"{name} {counts[i]}" for i, name in enumerate(examples.class_names))


if __name__ == "__main__":
    try:
        print(look(sys.argv[1], sys.argv[2]))
    except (ValueError, OSError, ModuleNotFoundError) as error:
        sys.exit(str(error))
