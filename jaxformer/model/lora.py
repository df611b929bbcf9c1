"""Low-rank adapters of projections (Hu et al., 2021, arXiv:2106.09685)."""

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Annotated, Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from pydantic import Field, PositiveFloat, PositiveInt

from jaxformer.model.channel_mixers.moe import ExpertMatrix
from jaxformer.model.dropout import Dropout
from jaxformer.model.parameter_paths import by_path, matches
from jaxformer.model.projections import Projection
from jaxformer.schema.base import Schema

A, B = "lora/a", "lora/b"  # beside `kernel`

PyTree = Any


class LoRAConfig(Schema):
    """Low-rank adapters beside the projections that `targets` match; everything else is frozen."""

    rank: PositiveInt = Field(8, description="the rank of each adapter")
    alpha: PositiveFloat = Field(16.0, description="adapters are multiplied by alpha / rank")
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(
        0.0, description="on the inputs of adapters, in training alone; not on those of experts"
    )
    targets: tuple[str, ...] = Field(
        ("*/mixer/*",),
        min_length=1,
        strict=False,
        description="patterns of the paths of kernels; by default, the projections of all mixers",
    )

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


@contextlib.contextmanager
def adapted(config: LoRAConfig | None) -> Iterator[None]:
    """A context in which the targeted projections compute

        y = x W + (alpha / rank) · dropout(x) A B,

    with A [inputs, rank] uniform in ±1/√inputs, as in the authors' code (the paper has normal),
    and B [rank, outputs] zero, so that the model starts unchanged. A is sharded like the inputs of
    W, B like its outputs. Dropout needs the random stream `dropout`, and is off without it. Each
    matrix of an expert has an adapter of its own, without dropout.
    """
    if config is None:
        yield
        return

    def add_adapter(
        project: Callable[..., jax.Array], arguments: tuple, options: dict, context: Any
    ) -> Any:
        y: Any = project(*arguments, **options)
        module = context.module
        if not isinstance(module, Projection | ExpertMatrix) or not _is_target(module, config):
            return y
        if isinstance(module, ExpertMatrix):
            own = ExpertAdapter(module.experts, module.shape, module.names, config, name="lora")
            return y | {"kernel": y["kernel"] + own()}
        adapter = Adapter(module.features, module.names, config, name="lora")
        return y + adapter(arguments[0])

    with nn.intercept_methods(add_adapter):
        yield


def _is_target(module: Projection | ExpertMatrix, config: LoRAConfig) -> bool:
    if not module.is_initializing():
        return module.has_variable("params", "lora")
    kernel = ["/".join((*module.path, "kernel"))]
    return any(matches(pattern, kernel) for pattern in config.targets)


class Adapter(nn.Module):
    """(alpha / rank) · dropout(x) A B; `features` and `names` are those of the projection."""

    features: tuple[int, ...]
    names: tuple[str, ...]
    config: LoRAConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        config, num_inputs = self.config, len(self.names) - len(self.features)
        inputs = x.shape[x.ndim - num_inputs :]
        into, out_of = self.names[:num_inputs], self.names[num_inputs:]
        start = _uniform(math.prod(inputs) ** -0.5)
        named, zeros = nn.with_logical_partitioning, nn.initializers.zeros
        a = self.param("a", named(start, (*into, "adapter")), (*inputs, config.rank), jnp.float32)
        b = self.param(
            "b", named(zeros, ("adapter", *out_of)), (config.rank, *self.features), jnp.float32
        )
        x = Dropout(config.dropout, name="dropout")(x)
        low = checkpoint_name(jnp.tensordot(x, a.astype(x.dtype), num_inputs), "projection")
        return config.scale * jnp.tensordot(low, b.astype(x.dtype), 1)


class ExpertAdapter(nn.Module):
    """(alpha / rank) · A_e B_e of every expert e, [experts, inputs, outputs]."""

    experts: int
    shape: tuple[int, int]
    names: tuple[str, str]
    config: LoRAConfig

    @nn.compact
    def __call__(self) -> jax.Array:
        (inputs, outputs), rank = self.shape, self.config.rank
        named, zeros = nn.with_logical_partitioning, nn.initializers.zeros
        start = named(_uniform(inputs**-0.5), ("experts", self.names[0], "adapter"))
        a = self.param("a", start, (self.experts, inputs, rank), jnp.float32)
        zero = named(zeros, ("experts", "adapter", self.names[1]))
        b = self.param("b", zero, (self.experts, rank, outputs), jnp.float32)
        return self.config.scale * jnp.einsum("eir,ero->eio", a, b)


def _uniform(bound: float) -> nn.initializers.Initializer:
    def draw(key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return draw


def adapter_paths(params: PyTree) -> set[str]:
    """The paths of all A and B in a tree of parameters."""
    return {path for path in by_path(params) if path.endswith((f"/{A}", f"/{B}"))}
