"""The router of a mixture of experts: which experts a token visits, and what balances them."""

import math
from functools import partial
from typing import Annotated, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from jaxformer.model.dims import Dims
from jaxformer.model.rows import RowInfo
from jaxformer.ops import shards
from jaxformer.ops.routing import of_documents
from jaxformer.parallel.expert import Picks, Tokens, of_own_tokens
from jaxformer.schema.base import Schema

SELECTION_BIAS = "selection_bias"  # a parameter that no gradient reaches: see `train.balance`

HIGHEST = jax.lax.Precision.HIGHEST  # float32 products, also where there are faster ones
FAR = -30.0  # below, softplus(x) is e^x in float32, and soon 0, where a root has no gradient


def _sqrt_softplus(x: jax.Array) -> jax.Array:
    near = jnp.sqrt(jax.nn.softplus(jnp.maximum(x, FAR)))
    return jnp.where(x < FAR, jnp.exp(jnp.minimum(x, FAR) / 2), near)


SCORES = {
    "softmax": jax.nn.softmax,
    "sigmoid": jax.nn.sigmoid,
    "sqrt_softplus": _sqrt_softplus,
}


class BalanceConfig(Schema):
    """What keeps experts equally busy. `auxiliary` and `z_loss` are losses, added to that of the
    tokens; `bias_rate` is DeepSeek-V3's way without a loss."""

    auxiliary: NonNegativeFloat = Field(
        0.0, description="weight of experts · Σ f p, which is 1 where all are equally busy"
    )
    scope: Literal["sequence", "batch"] = Field(
        "sequence",
        description="where f is counted: in each document, or in all rows of a micro-batch, so "
        "that the loss depends on train.accumulation and on stages",
    )
    z_loss: NonNegativeFloat = Field(0.0, description="weight of log²Z of the router's logits")
    bias_rate: NonNegativeFloat | None = Field(
        None,
        description="by how much each step raises the biases that choose idle experts, and lowers "
        "those of busy ones; 0 keeps them as they are, null has none",
    )


class RouterOptions(Schema):
    """The options of a router; `MoEConfig` has them as its own."""

    num_experts: PositiveInt = Field(description="experts per layer")
    experts_per_token: PositiveInt = Field(
        description="experts that each token visits; on average, where experts choose"
    )
    routing: Literal["token_choice", "expert_choice", "hash"] = Field(
        "token_choice",
        description="who chooses: tokens their best experts, experts their best tokens of a row, "
        "or nobody: experts are fixed by the token's id, and the router gives their gates alone",
    )
    predictor_weight: PositiveFloat | None = Field(
        None,
        description="with expert_choice, trains a predictor of what experts choose, used in "
        "evaluation and decoding, where later tokens are not known; the weight of its loss. Models "
        "that predict the next token need it",
    )
    score: Literal["softmax", "sigmoid", "sqrt_softplus"] = Field(
        "softmax", description="what makes scores of the router's logits"
    )
    normalize: bool = Field(True, description="divides a token's gates by their sum")
    scale: PositiveFloat = Field(1.0, description="multiplies the gates")
    groups: PositiveInt = Field(1, description="groups that the experts are divided into")
    kept_groups: PositiveInt = Field(1, description="groups that a token may choose from")
    group_score: Literal["max", "sum_of_two"] = Field(
        "max", description="a group's score: that of its best expert, or of its two best ones"
    )
    router_bias: bool = Field(False, description="adds a bias to the router's logits")
    jitter: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(
        0.0, description="in training, multiplies the router's input by 1 ± up to this"
    )
    balance: BalanceConfig = Field(BalanceConfig(), description="what keeps experts equally busy")


class Routing(NamedTuple):
    """Which experts compute which tokens, and what follows for the loss, in float32."""

    visits: Tokens | Picks  # for padding, nobody
    loss: jax.Array | None  # [], weighted sum over tokens
    stats: dict[str, jax.Array]  # sums over tokens; `expert_load` is [experts]


class Router(nn.Module):
    """With s = score(W x + b) in float32 and β the selection biases,

        I = top-k(s + β),   gate_i = scale · s_i / Σ_{j∈I} s_j   for i ∈ I,

    without the division unless `normalize`. With groups, I is chosen within the `kept_groups`
    groups with the best scores. The biases choose, and are in no gate. With routing `hash`, I
    depends on the token's id alone, see `hashed_experts`.

    Softmax: Shazeer et al., 2017, arXiv:1701.06538. Sigmoid, groups and biases: DeepSeek-V3, 2024,
    arXiv:2412.19437, equations 12 to 20. Balance: `balance_losses`. z-loss: Zoph et al., 2022,
    arXiv:2202.08906. Jitter: Fedus et al., 2021, arXiv:2101.03961. Hash: Roller et al., 2021,
    arXiv:2106.04426.
    """

    options: RouterOptions
    dims: Dims

    @nn.compact
    def __call__(self, x: jax.Array, rows: RowInfo) -> Routing:
        """x [batch · length, d_model] → where its tokens go."""
        options = self.options
        logits, scores = self.scores(x)
        if options.routing == "hash":
            assert rows.tokens is not None  # as `ModelConfig` has checked
            ids = rows.tokens.reshape(-1)
            experts = hashed_experts(ids, options.num_experts, options.experts_per_token)
        else:
            experts = of_own_tokens(partial(_choose, options=options), self._preferred(scores))
        gates = self.gates(jnp.take_along_axis(scores, experts, axis=1))
        real = rows.segment_ids.reshape(-1) != 0
        experts = jnp.where(real[:, None], experts.astype(jnp.int32), options.num_experts)
        loss, stats = self._balance(logits, scores, experts, rows.segment_ids)
        return Routing(Tokens(x, experts, gates), loss, stats)

    def scores(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """x [tokens, d_model] → (logits, scores), each [tokens, experts]."""
        options, named = self.options, nn.with_logical_partitioning
        wide = jnp.promote_types(x.dtype, jnp.float32)
        x = x.astype(wide)
        if options.jitter and self.has_rng("dropout"):
            low, high = 1 - options.jitter, 1 + options.jitter
            x *= jax.random.uniform(self.make_rng("dropout"), x.shape, wide, low, high)
        kernel = self.param(
            "kernel",
            named(self.dims.init.matrix(x.shape[-1]), ("d_model", "choices")),
            (x.shape[-1], options.num_experts),
            jnp.float32,
        )
        logits = jnp.dot(x, kernel.astype(wide), precision=HIGHEST)
        if options.router_bias:
            logits += self.biases("bias")
        return logits, SCORES[options.score](logits)

    def _preferred(self, scores: jax.Array) -> jax.Array:
        preferred = jax.lax.stop_gradient(scores)
        if self.options.balance.bias_rate is not None:
            preferred += jax.lax.stop_gradient(self.biases(SELECTION_BIAS))
        return preferred

    def gates(self, scores: jax.Array, chosen: jax.Array | bool = True) -> jax.Array:
        """The gates of the scores [tokens, n] that are `chosen`; 0 elsewhere."""
        gates = jnp.where(chosen, scores, 0.0)
        if self.options.normalize:
            gates /= jnp.sum(gates, axis=1, keepdims=True) + 1e-20
        return self.options.scale * gates

    def biases(self, name: str) -> jax.Array:
        zeros = nn.with_logical_partitioning(nn.initializers.zeros, ("choices",))
        return self.param(name, zeros, (self.options.num_experts,), jnp.float32)

    def _balance(
        self, logits: jax.Array, scores: jax.Array, experts: jax.Array, segment_ids: jax.Array
    ) -> tuple[jax.Array | None, dict[str, jax.Array]]:
        balance, count = self.options.balance, self.options.num_experts
        real = segment_ids.reshape(-1) != 0

        def total(values: jax.Array) -> jax.Array:
            return jnp.sum(jnp.where(real, values, 0.0))

        shares = shares_of(scores)
        load = jnp.sum(jax.nn.one_hot(experts, count, dtype=shares.dtype), axis=(0, 1))
        stats = {"expert_load": load, "router_entropy": total(entropy(shares))}
        losses = []
        if balance.auxiliary:
            each = total(balance_losses(shares, experts, segment_ids, balance.scope))
            stats["balance_loss"] = each
            losses.append(balance.auxiliary * each)
        if balance.z_loss:
            each = total(jnp.square(jax.nn.logsumexp(logits, axis=1)))
            stats["router_z"] = each
            losses.append(balance.z_loss * each)
        return (sum(losses[1:], losses[0]) if losses else None), stats


def shares_of(scores: jax.Array) -> jax.Array:
    """Scores [tokens, experts] that sum to 1."""
    return scores / (jnp.sum(scores, axis=1, keepdims=True) + 1e-20)


def entropy(shares: jax.Array) -> jax.Array:
    """The entropy of each token's choice in nats, [tokens, experts] → [tokens]."""
    return -jnp.sum(jax.scipy.special.xlogy(shares, shares), axis=1)


def _choose(preferred: jax.Array, options: RouterOptions) -> jax.Array:
    """[tokens, experts] → the experts of each token, [tokens, k]."""
    return jax.lax.top_k(_within_groups(preferred, options), options.experts_per_token)[1]


def _within_groups(preferred: jax.Array, options: RouterOptions) -> jax.Array:
    """The scores, −∞ outside of each token's best groups."""
    if options.groups == 1:
        return preferred
    grouped = preferred.reshape(len(preferred), options.groups, -1)
    best, _ = jax.lax.top_k(grouped, 1 if options.group_score == "max" else 2)
    _, kept = jax.lax.top_k(jnp.sum(best, axis=2), options.kept_groups)
    is_kept = jnp.any(jax.nn.one_hot(kept, options.groups, dtype=bool), axis=1)
    return jnp.where(is_kept[:, :, None], grouped, -jnp.inf).reshape(preferred.shape)


def hashed_experts(ids: jax.Array, num_experts: int, chosen: int) -> jax.Array:
    """The experts [tokens, chosen] of token ids [tokens]: first + j · step modulo `num_experts` for
    j = 0, 1, …, with `first` and `step` from two hashes of the id, and no divisor in common with
    `num_experts` but 1, so that all are different."""
    steps = [step for step in range(1, num_experts + 1) if math.gcd(step, num_experts) == 1]
    first = _hash(ids, 0x9E3779B9) % num_experts
    step = jnp.asarray(steps, jnp.uint32)[_hash(ids, 0x7F4A7C15) % len(steps)]
    places = jnp.arange(chosen, dtype=jnp.uint32)
    return ((first[:, None] + places * step[:, None]) % num_experts).astype(jnp.int32)


def _hash(ids: jax.Array, seed: int) -> jax.Array:
    """32 bits of each id, mixed by the last steps of MurmurHash3."""
    bits = ids.astype(jnp.uint32) + jnp.uint32(seed)
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        bits = (bits ^ (bits >> shift)) * jnp.uint32(factor)
    return bits ^ (bits >> 16)


def balance_losses(
    shares: jax.Array, experts: jax.Array, segment_ids: jax.Array, scope: str
) -> jax.Array:
    """E Σ_i f_i p_ti of every token, with f_i the share of the assignments that expert i has, in
    the token's document or in all rows, without a gradient: over a document, the mean is

        E Σ_i f_i P_i,   which is 1 where all f_i or all P_i are equal.

    Fedus et al., 2021, arXiv:2101.03961, equation 4, and over sequences DeepSeek-V3, 2024,
    arXiv:2412.19437, equation 17.

    Args:
        shares: [tokens, experts], p: scores that sum to 1.
        experts: [tokens, k], the experts chosen; E is nobody.
        segment_ids: [batch, length]

    Returns:
        [tokens]
    """
    count = shares.shape[1]

    def counts(experts: jax.Array) -> jax.Array:
        return jnp.sum(jax.nn.one_hot(experts, count, dtype=shares.dtype), axis=-2)

    if scope == "batch":
        taken = shards.total(jnp.sum(counts(experts), axis=0))
    else:
        of_rows = experts.reshape(*segment_ids.shape, -1)
        taken = shards.of_whole(
            lambda experts, ids: of_documents(counts(experts), ids), of_rows, segment_ids
        ).reshape(-1, count)
    f = taken / jnp.maximum(jnp.sum(taken, axis=-1, keepdims=True), 1.0)
    return count * jnp.sum(jax.lax.stop_gradient(f) * shares, axis=-1)


def within_capacity(
    experts: jax.Array, rows: tuple[int, int], count: int, factor: float
) -> tuple[jax.Array, jax.Array]:
    """Each expert keeps the first ⌈factor · k · length / count⌉ assignments per row, in the order
    of the tokens; the others go to nobody.

    Args:
        experts: [tokens, k]; `count` is nobody.
        rows: (batch, length)

    Returns:
        (experts [tokens, k], how many assignments are dropped, float32)
    """
    k = experts.shape[1]

    def kept(experts: jax.Array) -> jax.Array:
        most = math.ceil(factor * k * experts.shape[1] / count)
        taken = jax.nn.one_hot(experts, count, dtype=jnp.int32)  # [batch, length, k, experts]
        place = jnp.cumsum(taken.reshape(len(experts), -1, count), axis=1).reshape(taken.shape)
        fits = jnp.any((taken > 0) & (place <= most), axis=-1)
        return jnp.where(fits, experts, count)

    found = shards.of_whole(kept, experts.reshape(*rows, k)).reshape(experts.shape)
    dropped = jnp.sum((found == count) & (experts != count), dtype=jnp.float32)
    return found, dropped
