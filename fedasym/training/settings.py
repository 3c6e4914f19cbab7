"""The settings of local training and evaluation."""

from dataclasses import dataclass

from fedasym.fields import RoundSettings, setting
from fedasym.models.settings import ModelSettings
from fedasym.training.transforms import transforms_of


@dataclass(frozen=True)
class TrainingSettings(ModelSettings, RoundSettings):
    """Local optimizer, steps, batches, and the model they train. ``auto`` and 0 mean the method's where so said."""

    optimizer: str = setting("auto", "local optimizer", choices=("auto", "sgd", "adamw"))
    lr: float = setting(0.0, "rate of the adapters; 0: the method's", least=0.0)
    head_lr: float = setting(0.0, "rate of the output layer; 0: the method's", least=0.0)
    schedule: str = setting("constant", "both rates over the rounds of the run", choices=("constant", "cosine"))
    warmup_rounds: int = setting(0, "rounds in which both rates rise to what they are, in equal steps", least=0)
    weight_decay: float = setting(0.0, "decoupled weight decay of AdamW", least=0.0)
    clip: float = setting(1.0, "largest gradient norm of a step; 0: no clipping", least=0.0)
    batch_size: int = setting(14, "examples of a local step", least=1)
    micro_batch: int = setting(0, "examples at a time within a step, to save memory; 0: the whole batch", least=0)
    eval_batch: int = setting(0, "examples at a time in an evaluation; 0: what suits the device", least=0)
    gradient_checkpointing: bool = setting(False, "compute activations again in the backward pass, to save memory")
    local_steps: int = setting(8, "local steps a round; 0: local-epochs instead", least=0)
    local_epochs: int = setting(0, "passes over the client's data a round, if local-steps is 0", least=0)
    cohort: int = setting(1, "clients of a simulation that are trained in one pass; 1: one after another", least=1)
    client_holdout: float = setting(0.0, "share of a client's data kept out to evaluate on it", least=0.0)
    threads: int = setting(1, "threads of a client's training", least=1)
    transforms: str = setting("", "what happens to a client's change before it is sent, by commas; empty: nothing")

    def _check(self) -> None:
        super()._check()
        transforms_of(self.transforms)
        if self.local_steps == 0 and self.local_epochs == 0:
            raise ValueError("local-steps and local-epochs are both 0: nothing would train; set one of them")
        if self.local_steps and self.local_epochs:
            raise ValueError(
                f"local-steps={self.local_steps} and local-epochs={self.local_epochs} are both set; set one to 0"
            )
        if self.warmup_rounds >= self.num_rounds:
            raise ValueError(
                f"warmup-rounds={self.warmup_rounds} leaves none of num-rounds={self.num_rounds} at the whole rate; "
                "lower it"
            )
        if self.micro_batch > self.batch_size:
            raise ValueError(f"micro-batch={self.micro_batch} exceeds batch-size={self.batch_size}; lower it")
        if self.client_holdout >= 1.0:
            raise ValueError(f"client-holdout={self.client_holdout} leaves nothing to train on; use less than 1")
