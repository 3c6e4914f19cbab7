"""What the parties of a federation agree on: the settings that the contract states, the codec among them."""

from dataclasses import dataclass

from fedasym.fields import setting
from fedasym.tasks.settings import TaskSettings
from fedasym.training.settings import TrainingSettings
from fedasym.wire.codecs import codec_of


@dataclass(frozen=True)
class AgreedSettings(TrainingSettings, TaskSettings):
    """Task, model, adapters, local training, and how matrices travel."""

    codec: str = setting("identity", "how matrices travel; identity: as they are, float32")

    def _check(self) -> None:
        super()._check()
        codec_of(self.codec)
