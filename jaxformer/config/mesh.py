"""How devices are arranged, and what lies where on them."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from jaxformer.parallel.mesh import AXES
from jaxformer.parallel.rules import FULLY, Rules, overridden
from jaxformer.schema.base import Schema

AxisSize = int | None
Axis = Literal["data", "stage", "fsdp", "expert", "tensor", "context"]
Axes = Axis | Annotated[tuple[Axis, ...], Field(strict=False)] | None


class RulesConfig(Schema):
    """The mesh axes over which each dimension of the parameters is split; null keeps it whole on
    every device."""

    vocab: Axes = Field("tensor", description="rows of the embedding, and columns of the head")
    heads: Axes = Field("tensor", description="attention heads, and heads of other mixers")
    kv_heads: Axes = Field("tensor", description="heads of keys and values")
    d_hidden: Axes = Field("tensor", description="the hidden width of feed-forward networks")
    d_model: Axes = Field(
        FULLY,
        description="the width of the residual stream; over expert, that of weights outside of "
        "experts",
    )
    head_dim: Axes = Field(None, description="features of a head")
    state: Axes = Field(None, description="states of state-space models")
    layers: Axes = Field("stage", description="the repetitions of the pattern")


class MeshConfig(Schema):
    """The number of devices along each axis. One axis may be −1 and takes what the others leave.

    The preset decides the axes that are not given: `ddp` copies parameters to all devices, `fsdp`
    splits them, `fsdp_tensor` also splits heads and hidden widths over the devices of a host, and
    `hsdp` splits parameters within a slice (or a host) and copies them to every other one.
    """

    preset: Literal["ddp", "fsdp", "fsdp_tensor", "hsdp"] = Field(
        "ddp", description="sets the sizes that are not given"
    )
    data: AxisSize = Field(
        None, description="replicas of the parameters; each trains on its own rows"
    )
    stage: AxisSize = Field(
        None, description="pipeline stages, each with a share of the pattern's repetitions"
    )
    fsdp: AxisSize = Field(
        None, description="devices that split parameters, optimizer state and rows"
    )
    expert: AxisSize = Field(
        None,
        description="devices that split experts, and rows and other weights as fsdp does; must be "
        "1 for a model without experts",
    )
    tensor: AxisSize = Field(None, description="devices that split heads and hidden widths")
    context: AxisSize = Field(None, description="devices that split each row by tokens")
    rules: RulesConfig = Field(
        RulesConfig(),
        description="the mesh axes over which each dimension of the parameters is split",
    )

    @property
    def table(self) -> Rules:
        """The mesh axes of every logical axis, including those of activations."""
        return overridden(self.rules.model_dump())

    @property
    def sizes(self) -> dict[str, AxisSize]:
        return {axis: getattr(self, axis) for axis in AXES}

    @model_validator(mode="after")
    def _sizes_are_sizes(self) -> "MeshConfig":
        given = {axis: size for axis, size in self.sizes.items() if size is not None}
        for axis, size in given.items():
            if size < 1 and size != -1:
                raise ValueError(
                    f"axis '{axis}' is {size}; allowed: a positive count, or -1 for the rest"
                )
        open_axes = [axis for axis, size in given.items() if size == -1]
        if len(open_axes) > 1:
            raise ValueError(f"axes {' and '.join(open_axes)} are both -1; at most one may be")
        return self
