"""A mixture of experts: every token visits a few of many feed-forward networks.

Shazeer et al., 2017, arXiv:1701.06538; fine-grained and shared experts: DeepSeekMoE, Dai et al.,
2024, arXiv:2401.06066.
"""

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec
from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from jaxformer.model.channel_mixers.base import ChannelMixer, ChannelMixerConfig
from jaxformer.model.channel_mixers.dense import (
    CLAMP,
    GATED,
    Activation,
    Dense,
    DenseConfig,
    activate,
)
from jaxformer.model.channel_mixers.expert_choice import ExpertChoice
from jaxformer.model.channel_mixers.router import Router, RouterOptions, within_capacity
from jaxformer.model.projections import Projection
from jaxformer.model.rows import LayerAux, RowInfo
from jaxformer.ops.routing import experts_of_rows, grouped_products, take_rows
from jaxformer.parallel.expert import Rows, exchange, once, visit_experts
from jaxformer.schema.base import Schema


class SharedConfig(Schema):
    """Experts that every token visits, as one feed-forward network of their joint width."""

    count: PositiveInt = Field(1, description="how many")
    d_hidden: PositiveInt | None = Field(
        None, description="the width of each; null is that of the other experts"
    )
    gate: bool = Field(False, description="multiplies their output by σ(w · x), as Qwen2-MoE does")


class MoEConfig(RouterOptions, ChannelMixerConfig):
    """A mixture of experts. Where tokens choose, nothing is dropped unless `capacity_factor` says
    so."""

    kind: Literal["moe"] = "moe"
    d_hidden: PositiveInt = Field(description="the width between the matrices of an expert")
    activation: Activation = Field("swiglu", description="of the experts")
    clamp: PositiveFloat | None = Field(None, description=CLAMP)
    bias: bool = Field(False, description="adds a bias to each matrix of an expert")
    capacity_factor: PositiveFloat | None = Field(
        None,
        description="how many of a row's tokens an expert takes at most, as a multiple of an equal "
        "share; later ones are dropped, so a token depends on the rest of its row; null drops "
        "none. With expert_choice, how many each takes; null is 1",
    )
    shared: SharedConfig | None = Field(
        None, description="experts that every token visits; null for none"
    )

    @property
    def experts(self) -> int:
        return self.num_experts

    @property
    def active_share(self) -> float:
        if self.routing == "expert_choice":
            return self.taken
        return self.experts_per_token / self.num_experts

    @property
    def taken(self) -> float:
        """The share of a row's tokens that each expert takes, with expert_choice."""
        equal = self.experts_per_token / self.num_experts
        return equal * (self.capacity_factor or 1.0)

    @property
    def is_causal(self) -> bool:
        return self.routing != "expert_choice" or self.predictor_weight is not None

    @property
    def reads_tokens(self) -> bool:
        return self.routing == "hash"

    @property
    def shared_width(self) -> int:
        """The joint width of the experts that every token visits."""
        shared = self.shared
        return 0 if shared is None else shared.count * (shared.d_hidden or self.d_hidden)

    @property
    def keys(self) -> tuple[str, ...]:
        dropout = ("dropout",) if self.jitter else ()
        # The presence of the other says that it is training.
        return (*dropout, *(("depth",) if self.predictor_weight is not None else ()))

    @model_validator(mode="after")
    def _can_be_chosen(self) -> "MoEConfig":
        if self.experts_per_token > self.num_experts:
            raise ValueError(
                f"experts_per_token is {self.experts_per_token}, more than num_experts "
                f"{self.num_experts}; choose at most all of them"
            )
        if self.experts_per_token == 1 and self.normalize:
            raise ValueError(
                "experts_per_token is 1, and gates are divided by their sum, so that all would be "
                "1, and the router would learn nothing of the tokens; give normalize: false"
            )
        if self.num_experts % self.groups:
            raise ValueError(
                f"groups is {self.groups}, which does not divide num_experts {self.num_experts}; "
                f"allowed: {_divisors(self.num_experts)}"
            )
        if self.kept_groups > self.groups:
            raise ValueError(
                f"kept_groups is {self.kept_groups}, more than groups {self.groups}; keep at most "
                f"all of them"
            )
        of_group = self.num_experts // self.groups
        if self.experts_per_token > self.kept_groups * of_group:
            raise ValueError(
                f"experts_per_token is {self.experts_per_token}, but kept_groups "
                f"{self.kept_groups} have {self.kept_groups * of_group} experts; keep more groups"
            )
        if self.groups > 1 and self.group_score == "sum_of_two" and of_group < 2:
            raise ValueError(
                "group_score is sum_of_two, but a group has one expert; give max, or fewer groups"
            )
        if self.predictor_weight is not None and self.routing != "expert_choice":
            raise ValueError(
                f"predictor_weight is given with routing {self.routing}, which depends on no later "
                f"token, so there is nothing to predict; leave it out"
            )
        if self.routing != "token_choice":
            balanced = self.balance.auxiliary or self.balance.bias_rate is not None
            if balanced or self.groups > 1:
                raise ValueError(
                    f"{'balance' if balanced else 'groups'} is given with routing {self.routing}, "
                    f"where tokens do not choose; leave it out, or use token_choice"
                )
        if self.routing == "expert_choice" and self.taken > 1:
            raise ValueError(
                f"capacity_factor is {self.capacity_factor:g} with routing expert_choice, so that "
                f"each expert would take more tokens than a row has; allowed: up to num_experts / "
                f"experts_per_token, {self.num_experts / self.experts_per_token:g}"
            )
        if self.routing == "expert_choice" and self.balance.z_loss:
            raise ValueError("balance.z_loss is given with routing expert_choice; leave it out")
        return self


def _divisors(number: int) -> str:
    return ", ".join(str(each) for each in range(1, number + 1) if number % each == 0)


class ExpertMatrix(nn.Module):
    """A matrix [inputs, outputs] per expert, and a bias [outputs] if there is one."""

    experts: int
    shape: tuple[int, int]
    names: tuple[str, str]
    kernel_init: nn.initializers.Initializer
    use_bias: bool

    @property
    def axes(self) -> dict[str, PartitionSpec]:
        """The logical axes of what a call returns."""
        inputs, outputs = self.names
        kernel = {"kernel": PartitionSpec("experts", inputs, outputs)}
        return kernel | ({"bias": PartitionSpec("experts", outputs)} if self.use_bias else {})

    @nn.compact
    def __call__(self) -> dict[str, jax.Array]:
        start = {"kernel": self.kernel_init, "bias": nn.initializers.zeros}
        shape = {"kernel": (self.experts, *self.shape), "bias": (self.experts, self.shape[1])}
        return {
            name: self.param(
                name, nn.with_logical_partitioning(start[name], axes), shape[name], jnp.float32
            )
            for name, axes in self.axes.items()
        }


class MoE(ChannelMixer):
    """y = Σ_{i∈I} gate_i E_i(x) + shared(x), with I and the gates from `Router`.

    An expert is E_i(x) = W_out a(W_in x), or W_out (a(W_gate x) ⊙ W_in x) when gated. Statistics
    per token: `expert_load`, how many times each expert was chosen; `router_entropy` in nats;
    `balance_loss` and `router_z` where they have a weight; `dropped`, the share of the choices that
    had no room, with `capacity_factor`.
    """

    config: MoEConfig

    @nn.compact
    def __call__(self, x: jax.Array, rows: RowInfo) -> tuple[jax.Array, LayerAux]:
        config = self.config
        if config.routing == "expert_choice":
            router: Router = ExpertChoice(config, self.dims, config.taken, name="router")
        else:
            router = Router(config, self.dims, name="router")
        visits, loss, stats = router(x, rows)
        if config.routing != "expert_choice" and config.capacity_factor is not None:
            batch, length = rows.segment_ids.shape
            experts, dropped = within_capacity(
                visits.experts, (batch, length), config.num_experts, config.capacity_factor
            )
            visits = visits._replace(experts=experts)
            stats |= {"dropped": dropped / config.experts_per_token}
        matrices = self._matrices()
        y = visit_experts(
            self._of_rows,
            {name: matrix() for name, matrix in matrices.items()},
            {name: matrix.axes for name, matrix in matrices.items()},
            visits,
            config.num_experts,
        ).reshape(x.shape)
        if config.shared is not None:
            y += self._shared(x, rows, config.shared)
        return y, LayerAux(stats, loss)

    def _matrices(self) -> dict[str, ExpertMatrix]:
        config, init, width = self.config, self.dims.init, self.dims.d_model
        into = ("in", "gate") if config.activation in GATED else ("in",)
        shape, names = (width, config.d_hidden), ("d_model", "d_hidden")
        out = init.output_matrix(config.d_hidden, self.dims.num_layers)
        starts = {name: init.inner_matrix(width) for name in into} | {"out": out}
        return {
            name: ExpertMatrix(
                config.num_experts,
                shape[::-1] if name == "out" else shape,
                names[::-1] if name == "out" else names,
                start,
                config.bias,
                name=f"experts_{name}",
            )
            for name, start in starts.items()
        }

    def _of_rows(self, weights: dict[str, dict[str, jax.Array]], rows: Rows) -> jax.Array:
        """What every row's own expert gives, times the row's gate.

        The gate multiplies what the last matrix takes: its gradient then needs no product again.
        """
        x, gates, counts = rows
        expert = experts_of_rows(counts, len(x))
        expert = jnp.where(expert < len(counts), expert, -1)

        def kernels(*names: str) -> tuple[jax.Array, ...]:
            return tuple(weights[name]["kernel"].astype(x.dtype) for name in names)

        def biased(y: jax.Array, name: str) -> jax.Array:
            if "bias" not in weights[name]:
                return y
            bias = weights[name]["bias"].astype(x.dtype)
            if name == "out":
                return y + weighted(take_rows(once(bias), expert))
            return y + take_rows(bias, expert)

        def weighted(y: jax.Array) -> jax.Array:
            return (y * gates[:, None]).astype(y.dtype)

        # What the last matrix gives is kept where it has returned to its token.
        into = [name for name in ("in", "gate") if name in weights]
        inner = zip(into, grouped_products(x, kernels(*into), counts), strict=True)
        made = {name: biased(checkpoint_name(y, "projection"), name) for name, y in inner}
        config = self.config
        hidden = activate(config.activation, made["in"], made.get("gate"), config.clamp)
        (y,) = grouped_products(weighted(hidden), kernels("out"), counts)
        return biased(y, "out")

    def _shared(self, x: jax.Array, rows: RowInfo, shared: SharedConfig) -> jax.Array:
        config = self.config
        dense = DenseConfig(
            kind=config.activation,
            d_hidden=config.shared_width,
            bias=config.bias,
            clamp=config.clamp,
        )
        y, _ = Dense(dense, self.dims, name="shared")(x, rows)
        if shared.gate:
            start = self.dims.init.matrix(self.dims.d_model)
            y *= jax.nn.sigmoid(
                Projection((1,), ("d_model", "choices"), start, name="shared_gate")(x)
            )
        return y

    def kernels(self) -> list[str]:
        devices = jax.sharding.get_abstract_mesh().shape.get("expert", 1)
        how = exchange(devices, self.config.experts_per_token)
        how = "all_to_all" if self.config.routing == "expert_choice" else how
        return [] if devices == 1 else [f"experts {how} over {devices} devices"]

    def flops(self, length: int) -> float:
        config, width = self.config, self.dims.d_model
        matrices = 3 if config.activation in GATED else 2
        chosen = config.active_share * config.num_experts
        hidden = chosen * config.d_hidden + config.shared_width
        gate = 2.0 * width if config.shared is not None and config.shared.gate else 0.0
        scored = config.num_experts * (1 if config.predictor_weight is None else 2)
        return 2.0 * width * (matrices * hidden + scored) + gate
