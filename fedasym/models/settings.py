"""The settings of the model: which, what of its head trains, and where and how it computes."""

import re
from dataclasses import dataclass

from fedasym.adapters.settings import AdapterSettings
from fedasym.fields import require_named, setting
from fedasym.methods import METHODS
from fedasym.methods.settings import MethodSettings

MINILM = ("demo", "minilm")  # two names of the packaged MiniLM; with sites the second alone, which is no default
DEVICES = "auto, cpu, cuda, cuda:N or mps"


@dataclass(frozen=True)
class ModelSettings(AdapterSettings, MethodSettings):
    """Base model, head, device, precision, and the adapters on it."""

    model: str = setting(
        "demo",
        "'demo' or 'minilm' (packaged MiniLM), 'smollm2' (packaged), a hub id, a folder, FILE.gguf or ID:FILE.gguf",
    )
    revision: str = setting("main", "revision of a model on the hub")
    pooling: str = setting(
        "auto",
        "the model's own head, the masked mean, or for sentence pairs two masked means",
        choices=("auto", "model", "mean", "pair"),
    )
    head: str = setting(
        "auto", "what of the head trains; auto: the method's", choices=("auto", "output", "frozen", "full", "local")
    )
    fresh_head: bool = setting(False, "draw the output layer from the seed though the checkpoint has one")
    device: str = setting("auto", f"where a node computes: {DEVICES}; auto: the GPU that is visible, else the CPU")
    dtype: str = setting(
        "auto",
        "dtype of the frozen weights; auto: bfloat16 where the server's device has it natively, else float32",
        choices=("auto", "float32", "bfloat16"),
    )
    quantize: str = setting(
        "none", "how frozen linear layers are stored; nf4 and int8: by bitsandbytes", choices=("none", "nf4", "int8")
    )
    attention: str = setting(
        "auto", "attention; auto: sdpa where the model has it and it is fast", choices=("auto", "sdpa", "eager")
    )
    deterministic: bool = setting(True, "on a GPU: the same bits in every run; false: whatever is fastest")
    max_length: int = setting(64, "tokens of an example; longer ones are cut", least=1)
    init_adapter: str = setting(
        "", "folder of a PEFT LoRA that the run begins with, read by every party; its A replaces the drawn one"
    )

    @property
    def may_take_one_product(self) -> bool:
        """Whether a layer may be computed by one product with W + s B A, by the dtype that has been chosen."""
        return self.one_product and self.dtype == "float32" and METHODS[self.method].factors != "W"

    def _check(self) -> None:
        super()._check()
        require_named(self, "model")
        if not re.fullmatch(r"auto|cpu|cuda(:\d{1,3})?|mps", self.device):
            raise ValueError(f"setting device={self.device!r} is not one of {DEVICES}")
        if METHODS[self.method].factors == "W" and self.head not in ("auto", "full"):
            raise ValueError(f"head={self.head!r}: full fine-tuning trains the whole head; leave head at 'auto'")
        if METHODS[self.method].factors == "W" and self.quantize != "none":
            raise ValueError(
                f"quantize={self.quantize!r}: full fine-tuning trains the weights themselves, which have no gradient "
                "in so few bits; leave quantize at 'none', or use another method"
            )
        if self.init_adapter and (reason := _unfit_to_begin_with(self.method)):
            raise ValueError(
                f"init-adapter={self.init_adapter!r} does not go with method={self.method!r}: {reason}; use another "
                "method, or merge the adapter into its base model with PEFT (merge_and_unload, then save_pretrained), "
                "set model to that folder and leave init-adapter out"
            )


def _unfit_to_begin_with(name: str) -> str:
    """Say why a method cannot begin with a given A and B; "" if it can."""
    method = METHODS[name]
    if method.factors == "W":
        return "it trains the model itself, which has no adapters"
    if method.factors == "A":
        return "its B is drawn from the seed and frozen, and its A starts at zero"
    return "later rounds begin with another A, drawn from the seed" if method.redraws else ""
