"""What trivial summaries score on the held-out documents that a run of summaries is judged by.

python -m simulations.study.trivial_summaries CONFIG [--set KEY=VALUE ...] [--out FILE]
"""

import argparse
import json
import math
from collections.abc import Callable
from pathlib import Path

from fedasym.data.examples import load_examples
from fedasym.files import append_line
from fedasym.tasks import task_of
from fedasym.tasks.metrics import rouge
from simulations.run import read_settings

KINDS: dict[str, Callable[[str], str]] = {
    "first 12 words": lambda document: " ".join(document.split()[:12]),
    "first sentence": lambda document: document.split(". ")[0],
}


def main() -> None:
    """Print one line for each kind, with the standard error of its ROUGE-L over the documents."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--out", type=Path, help="append the lines to this file too")
    told = parser.parse_args()
    settings = read_settings(told.config, told.set, Path("nowhere")).resolved()
    task = task_of(settings)
    _, held_out = load_examples(settings)
    documents, references = held_out.inputs
    for kind, made in KINDS.items():
        scores = rouge(task.metrics, [made(text) for text in documents], references)
        spread = scores[:, 0].std(ddof=1) / math.sqrt(len(scores))
        line = {"summaries": kind, "documents": len(scores), "validation_cut": settings.validation_cut}
        line |= dict(zip(task.metrics, scores.mean(axis=0).round(4).tolist(), strict=True))
        line |= {f"{task.metrics[0]}_stderr": round(float(spread), 4)}
        print(json.dumps(line))
        if told.out:
            append_line(told.out, line)


if __name__ == "__main__":
    main()
