"""How devices are arranged, and what lies where on them."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from jaxformer.parallel.mesh import AXES
from jaxformer.parallel.rules import Rules, overridden
from jaxformer.schema import Schema

AxisSize = int | None
Axis = Literal["data", "stage", "fsdp", "expert", "tensor", "context"]
Axes = Axis | Annotated[tuple[Axis, ...], Field(strict=False)] | None


class RulesConfig(Schema):
    """Over which mesh axes a dimension of the parameters lies, in place of the usual ones; null:
    whole on every device."""

    vocab: Axes = "tensor"
    heads: Axes = "tensor"
    kv_heads: Axes = "tensor"
    d_hidden: Axes = "tensor"
    d_model: Axes = "fsdp"
    head_dim: Axes = None
    state: Axes = None
    layers: Axes = "stage"


class MeshConfig(Schema):
    """Devices along each axis; at most one −1 takes what the others leave.

    What is not given is up to the preset: `ddp` copies parameters to all devices, `fsdp` splits
    them, `fsdp_tensor` also splits heads and hidden widths over the devices of a host, `hsdp`
    copies them to every slice, or host, and splits them inside it. `stage` splits the repetitions
    of the pattern into a pipeline.
    """

    preset: Literal["ddp", "fsdp", "fsdp_tensor", "hsdp"] = "ddp"
    data: AxisSize = None
    stage: AxisSize = None
    fsdp: AxisSize = None
    expert: AxisSize = None
    tensor: AxisSize = None
    context: AxisSize = None
    rules: RulesConfig = RulesConfig()

    @property
    def table(self) -> Rules:
        """Every logical axis, those of activations too, with its mesh axes."""
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
        if given.get("expert", 1) != 1:
            raise ValueError(
                f"expert is {given['expert']}, but the model has no experts; use mesh.data or "
                f"mesh.fsdp"
            )
        open_axes = [axis for axis, size in given.items() if size == -1]
        if len(open_axes) > 1:
            raise ValueError(f"axes {' and '.join(open_axes)} are both -1; at most one may be")
        return self
