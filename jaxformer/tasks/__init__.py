"""The registry of synthetic tasks: a new one is a class and an entry in `TaskUnion`."""

from typing import Annotated

from pydantic import Field

from jaxformer.tasks.base import Example, TaskConfig
from jaxformer.tasks.copying import SelectiveCopyConfig
from jaxformer.tasks.memory import MemorizeConfig
from jaxformer.tasks.needle import NeedleConfig
from jaxformer.tasks.recall import InductionConfig, MQARConfig
from jaxformer.tasks.state_tracking import (
    ModularArithmeticConfig,
    ParityConfig,
    WordProblemConfig,
)
from jaxformer.tasks.unequal import UnequalConfig

TaskUnion = Annotated[
    MQARConfig
    | InductionConfig
    | SelectiveCopyConfig
    | ParityConfig
    | WordProblemConfig
    | ModularArithmeticConfig
    | MemorizeConfig
    | NeedleConfig
    | UnequalConfig,
    Field(discriminator="kind"),
]

__all__ = ["Example", "TaskConfig", "TaskUnion"]
