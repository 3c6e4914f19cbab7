"""Load adapter folders with PEFT alone and compare: ``python fresh_peft.py FOLDER``, a folder of cases of a test."""

import sys
from pathlib import Path

import peft
import torch
import transformers


def main(folder: Path) -> None:
    """Go through the cases; print the name of each that holds."""
    for case in sorted(folder.iterdir()):
        told = torch.load(case / "told.pt", weights_only=False)
        if told["class"]:
            source = told["source"]
            base = getattr(transformers, told["class"]).from_pretrained(source, **told["options"])
        else:
            base = torch.load(case / "base.pt", weights_only=False)
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
