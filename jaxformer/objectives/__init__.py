"""The registry of objectives: a new one is its file, and its line in `OBJECTIVES`."""

from typing import TYPE_CHECKING, Annotated, TypeAlias, Union

from pydantic import Field

from jaxformer.objectives.base import Loss, ObjectiveConfig, Reference
from jaxformer.objectives.distillation import DistillationConfig
from jaxformer.objectives.next_token import NextTokenConfig

OBJECTIVES: tuple[type[ObjectiveConfig], ...] = (NextTokenConfig, DistillationConfig)

if TYPE_CHECKING:  # a type checker cannot read a registry
    ObjectiveUnion: TypeAlias = ObjectiveConfig
else:
    ObjectiveUnion = Annotated[Union[OBJECTIVES], Field(discriminator="kind")]  # noqa: UP007

__all__ = [
    "OBJECTIVES",
    "Loss",
    "NextTokenConfig",
    "ObjectiveConfig",
    "ObjectiveUnion",
    "Reference",
]
