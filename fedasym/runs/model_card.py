"""The README.md of a folder with an adapter or a model: what it is, and the lines of Python that load it."""

import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedasym import __version__
from fedasym.files import write_atomic
from fedasym.models.build import Built
from fedasym.models.pooling import MeanPooledClassifier
from fedasym.settings import Settings
from fedasym.tasks import task_of

_CLASSES = {
    "SEQ_CLS": "AutoPeftModelForSequenceClassification",
    "SEQ_2_SEQ_LM": "AutoPeftModelForSeq2SeqLM",
    "CAUSAL_LM": "AutoPeftModelForCausalLM",
    "FEATURE_EXTRACTION": "AutoPeftModelForFeatureExtraction",
}


def write_card(folder: Path, built: Built, settings: Settings, classes: Sequence[str], task_type: str) -> None:
    """Write README.md.

    Args:
        folder: of the adapter, or after full fine-tuning of the model.
        built: the model.
        settings: resolved.
        classes: names by id; empty: there are none.
        task_type: PEFT's; "": it has none.
    """
    facts = {
        "Base model": f"{settings.model}, revision {settings.revision}",
        "Method": settings.method,
        "Task": f"{settings.task} on {settings.judging_data}",
        "Rank, alpha, scaling": f"{settings.rank}, {settings.alpha:g}, {settings.scaling}",
        "Federation": f"{settings.num_clients} clients, {settings.num_rounds} rounds, split {settings.split}",
        "Seed": str(settings.seed),
        "Dtype of the frozen weights": settings.dtype
        + ("" if settings.quantize == "none" else f", linear layers stored as {settings.quantize}"),
        "Classes, by id": ", ".join(classes) or "none",
        "SHA-256 of the frozen weights, as fedasym counts it": built.base,
    }
    lines = [
        "---",
        "library_name: " + ("transformers" if settings.method == "full" else "peft"),
        "tags: [fedasym]",
        "---",
    ]
    lines += ["", f"# {settings.task}, {settings.method}", "", f"Trained in a federation by fedasym {__version__}.", ""]
    lines += [f"* {name}: {_as_text(fact)}" for name, fact in facts.items()]
    lines += ["", "```python", *_loading(built, settings, classes, task_type), "```", ""]
    write_atomic(folder / "README.md", "\n".join(lines).encode())


def _as_text(fact: str) -> str:
    """Return a fact as one line of Markdown without HTML: names of classes and folders are data."""
    return html.escape("".join(c if c.isprintable() else " " for c in fact), quote=False)


def _loading(built: Built, settings: Settings, classes: Sequence[str], task_type: str) -> list[str]:
    """Return the lines of Python that load the folder, which lies in ``folder``."""
    task, model = task_of(settings), built.model
    reader = task.inputs.processor_class
    read = [f"processor = {reader}.from_pretrained(folder)"]
    named = _named(model, classes)
    if isinstance(model, MeanPooledClassifier):
        return [
            f"from transformers import {reader}",
            *(
                ["from transformers import AutoModel", "encoder = AutoModel.from_pretrained(folder)"]
                if settings.method == "full"
                else ["from peft import AutoPeftModelForFeatureExtraction",
                      "encoder = AutoPeftModelForFeatureExtraction.from_pretrained(folder)"]
            ),
            *read,
            "# logits = mean of the token vectors under the attention mask, times `weight` transposed, plus `bias`,",
            "# both in output.safetensors; of a pair of texts with vectors u and v, of [|u - v|, u * v]",
        ]  # fmt: skip
    if settings.method == "full":
        return [
            f"from transformers import {task.inputs.model_class}, {reader}",
            f"model = {task.inputs.model_class}.from_pretrained(folder)", *read,
        ]  # fmt: skip
    loads = _CLASSES.get(task_type, "AutoPeftModel")
    return [
        f"from peft import {loads}", f"from transformers import {reader}",
        f"model = {loads}.from_pretrained(folder{named})", *read,
    ]  # fmt: skip


def _named(model: Any, classes: Sequence[str]) -> str:
    """Return the arguments that tell a base model its classes, of which PEFT's folder has no place to speak."""
    if not hasattr(getattr(model, "config", None), "num_labels") or not classes:
        return ""
    ids = {number: str(name) for number, name in enumerate(classes)}
    pad = getattr(model.config, "pad_token_id", None)
    padding = "" if pad is None else f", pad_token_id={pad}"
    return f", id2label={ids!r}, label2id={ {name: number for number, name in ids.items()}!r}{padding}"
