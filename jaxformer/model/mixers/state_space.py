"""The options of the state spaces with one decay per head, Mamba-2 and Mamba-3."""

from pydantic import Field, PositiveFloat, PositiveInt

from jaxformer.model.mixers.base import MixerConfig
from jaxformer.model.mixers.matrix_memory import MemorySizes
from jaxformer.model.positions import PositionsUnion


class StateSpaceConfig(MixerConfig):
    expansion: PositiveFloat = Field(2.0, description="the inner width, as a multiple of d_model")
    head_dim: PositiveInt = Field(64, description="features per head")
    state_size: PositiveInt = Field(128, description="states per feature")
    num_groups: PositiveInt = Field(1, description="groups of heads that share B and C")

    def check(self, d_model: int, positions: PositionsUnion) -> None:
        if self.expansion * d_model % self.head_dim:
            raise ValueError(
                f"expansion × d_model = {self.expansion * d_model:g} is not divisible by head_dim "
                f"{self.head_dim}; change one of them"
            )
        if self.sizes(d_model).heads % self.num_groups:
            raise ValueError(
                f"expansion × d_model / head_dim = {self.sizes(d_model).heads} heads are not "
                f"divisible by num_groups {self.num_groups}; change one of them"
            )

    def sizes(self, d_model: int) -> MemorySizes:
        """The memory's sizes at this width."""
        heads = round(self.expansion * d_model) // self.head_dim
        return MemorySizes(heads, self.state_size, self.head_dim)
