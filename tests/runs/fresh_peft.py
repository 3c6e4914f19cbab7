"""Load adapter folders with PEFT alone and compare: ``python fresh_peft.py FOLDER``, a folder of cases of a test."""

import sys
from collections import OrderedDict
from pathlib import Path

import peft
import torch
import transformers
from torch import nn
from transformers.pytorch_utils import Conv1D


def main(folder: Path) -> None:
    """Go through the cases; print the name of each that holds."""
    for case in sorted(folder.iterdir()):
        told = torch.load(case / "told.pt")
        if told["class"]:
            source = told["source"]
            base = getattr(transformers, told["class"]).from_pretrained(source, **told["options"])
        else:
            base = net()
        model = peft.PeftModel.from_pretrained(base, case / "adapter").eval()
        with torch.no_grad():
            close(logits(model, told["inputs"]), told["logits"], case.name)
            merged = model.merge_and_unload()
            close(logits(merged, told["inputs"]), told["merged_logits"], f"{case.name}, merged")
        found = merged.state_dict()
        if found.keys() != told["merged"].keys():
            raise SystemExit(f"{case.name}: {found.keys() ^ told['merged'].keys()}")
        for name, value in told["merged"].items():
            close(found[name], value, f"{case.name}, {name}")
        print(case.name)


def net() -> nn.Module:
    """One layer of each kind after another; the widest has 50 times as many inputs as outputs, or the reverse."""
    torch.manual_seed(0)
    return nn.Sequential(
        OrderedDict(
            table=nn.Embedding(300, 6),
            packed=Conv1D(18, 6),
            wide=nn.Linear(18, 400),
            narrow=nn.Linear(400, 8, bias=False),
            one=nn.Conv1d(9, 4, 3, padding=1, stride=2),
            fold=nn.Unflatten(2, (2, 2)),
            two=nn.Conv2d(4, 3, (2, 1), padding=(1, 0)),
            flat=nn.Flatten(),
        )
    )


def logits(model: torch.nn.Module, inputs: dict[str, torch.Tensor] | torch.Tensor) -> torch.Tensor:
    """Return what a model says."""
    if isinstance(inputs, torch.Tensor):
        return model(inputs)
    return model(**inputs).logits


def close(one: torch.Tensor, other: torch.Tensor, name: str) -> None:
    """Require equality up to float32 roundings of 1e-7 of the largest value, in PEFT's order of the products."""
    bound = 1e-5 * max(1.0, float(other.abs().max()))
    torch.testing.assert_close(one, other, atol=bound, rtol=1e-5, msg=lambda why: f"{name}: {why}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    if "fedasym" in sys.modules:
        raise SystemExit("fedasym was imported")
