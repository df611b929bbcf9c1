"""Mixture-of-Recursions: tokens pass shared layers a different number of times (Bae et al., 2025,
arXiv:2507.10524)."""

from collections.abc import Callable
from itertools import pairwise
from typing import Annotated, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from jaxformer.model.depth.base import Visit
from jaxformer.model.depth.routing import (
    Choice,
    Learned,
    Router,
    Scores,
    continue_through,
    pass_through,
    router_flops,
)
from jaxformer.model.depth.shared_layers import SharedLayers, SharedLayersConfig
from jaxformer.model.depth.stack import joined
from jaxformer.model.mixers import Cache
from jaxformer.model.rows import LayerAux, RowInfo
from jaxformer.ops import shards


class RecursionConfig(SharedLayersConfig):
    """Mixture-of-Recursions: the layers between the first and the last ones are shared, and every
    token passes them as often as a router says. `num_layers` counts the layers that there are."""

    kind: Literal["recursion"] = "recursion"
    decoder = "one token after another, in the turns that a predictor chooses"
    keys = ("depth",)  # their presence says that it is training; nothing is drawn

    before: NonNegativeInt = Field(1, description="layers below the shared ones")
    after: NonNegativeInt = Field(1, description="layers above the shared ones")
    turns: PositiveInt = Field(3, description="how often a token passes the shared layers at most")
    routing: Literal["expert_choice", "token_choice"] = Field(
        "expert_choice",
        description="every turn takes a share of the tokens, or every token chooses its turns",
    )
    capacities: tuple[Annotated[float, Field(gt=0.0, le=1.0)], ...] | None = Field(
        None,
        strict=False,
        description="the share of a row's tokens in each turn of expert_choice; with n turns, "
        "1, (n − 1)/n, … 1/n if null",
    )
    auxiliary_weight: PositiveFloat = Field(
        0.01,
        description="the weight of the loss of what predicts the choice for decoding "
        "(expert_choice), or of the loss that balances the numbers of turns (token_choice)",
    )

    @model_validator(mode="after")
    def _capacities_fit(self) -> "RecursionConfig":
        given = self.capacities
        if given is None:
            return self
        if self.routing == "token_choice":
            raise ValueError(
                f"capacities are {list(given)}, but with routing token_choice every token chooses "
                f"for itself; leave them out, or take expert_choice"
            )
        if len(given) != self.turns:
            raise ValueError(
                f"capacities are {list(given)}, {len(given)} for turns {self.turns}; give one for "
                f"each turn"
            )
        if any(later > earlier for earlier, later in pairwise(given)):
            raise ValueError(
                f"capacities are {list(given)}, and one is above that of the turn before; a token "
                f"that leaves does not come back, so give shares that do not rise"
            )
        return self

    @property
    def shares(self) -> tuple[float, ...]:
        """The share of a row's tokens that every turn computes in training."""
        if self.routing == "token_choice":
            return (1.0,) * self.turns
        falling = tuple((self.turns - turn) / self.turns for turn in range(self.turns))
        return self.capacities or falling


# (turn, x, candidates) → (the choice, what a loss of its own teaches)
Chooser = Callable[[int, jax.Array, jax.Array], tuple[Choice, Learned | None]]


class Recursion(SharedLayers):
    """x ← before(x); x ← x + g_r(x) · (shared(x) − x) for the tokens that take part in turn r = 1,
    2, …, x for the others; after(x).

    `expert_choice`: a router for each turn picks from the tokens of the turn before, see `Router`,
    and g_r = σ(its score). `token_choice`: with p = softmax(W x + b) of x below the first turn, a
    token takes argmax p turns; g is p of this number in the token's last turn and 1 before. Its
    loss is that of Switch (Fedus et al., 2021, arXiv:2101.03961, eq. 4) for each row: Σ_t n Σ_r f_r
    p_r(t), with n turns and f_r the share of the row's tokens that take r. All its turns compute
    whole rows, so it saves nothing in training; what it saves is a cache that fewer tokens fill.

    With capacities 1, where the routers' biases are so large that g = 1, and with such a bias for
    the most turns, this is a stack with the shared layers repeated and their weights tied.

    Every turn has caches of its own, which only tokens that take part write to, see
    `continue_through`. Statistics: `turns`, the sum over tokens of the turns they take, and
    `predicted`, the number of tokens for which the predictors were right in every turn, both of the
    shared layers. The shared layers' own are summed over the turns, but for `activation`, which is
    a mean over them.
    """

    config: RecursionConfig

    @nn.compact
    def __call__(
        self, x: jax.Array, rows: RowInfo, caches: dict[str, Cache] | None = None
    ) -> tuple[jax.Array, dict[str, Cache] | None, LayerAux]:
        longer, said = {}, []
        for name, numbers in self.numbers.items():
            cache = None if caches is None else caches[name]
            part = self._recur if name == "shared" else self._stack(name, name=name)
            x, longer[name], aux = part(x, rows, cache)
            said.append((aux, len(numbers)))
        return x, None if caches is None else longer, joined(said)

    def _recur(
        self, x: jax.Array, rows: RowInfo, caches: dict[str, Cache] | None
    ) -> tuple[jax.Array, dict[str, Cache] | None, LayerAux]:
        """All turns through the shared layers."""
        shared = self._stack("shared", name="shared")

        def layers(x: jax.Array, rows: RowInfo) -> tuple[jax.Array, LayerAux]:
            x, _, aux = shared(x, rows)
            return x, aux

        def cached(x: jax.Array, rows: RowInfo, cache: Cache) -> tuple[jax.Array, Cache]:
            params = {"params": self.variables["params"]["shared"]}
            x, cache, _ = self._stack("shared", parent=None).apply(params, x, rows, cache)
            return x, cache

        choose = self._tokens_choose(x, rows) if self._of_tokens else self._experts_choose
        real = rows.segment_ids != 0
        longer, said, learned, picked = {}, [], [], [real]
        for turn in range(self.config.turns):
            choice, lesson = choose(turn, x, picked[-1])
            picked.append(choice.picked)
            learned += [] if lesson is None else [lesson]
            if caches is None:
                x, aux = pass_through(layers, x, rows, choice)
                said.append(aux)
            else:
                name = f"turn_{turn}"
                x, longer[name] = continue_through(cached, x, rows, choice, caches[name])
        if caches is not None:
            return x, longer, LayerAux({})
        return x, None, self._aux(said, learned, picked)

    @property
    def _of_tokens(self) -> bool:
        return self.config.routing == "token_choice"

    def _experts_choose(
        self, turn: int, x: jax.Array, candidates: jax.Array
    ) -> tuple[Choice, Learned | None]:
        config = self.config
        share, weight = config.shares[turn], config.auxiliary_weight
        choice, learned = Router(self.dims, share, weight, name=f"routing_{turn}")(x, candidates)
        return choice, learned

    def _tokens_choose(self, x: jax.Array, rows: RowInfo) -> Chooser:
        turns, real = self.config.turns, rows.segment_ids != 0
        probabilities = jax.nn.softmax(Scores(self.dims, turns, name="router")(x))
        last = jnp.argmax(probabilities, axis=-1)  # [batch, length], from 0
        gate = jnp.max(probabilities, axis=-1)
        takes = jax.nn.one_hot(last, turns) * real[..., None]  # [batch, length, turns]
        counts = shards.total(jnp.sum(takes, axis=1, keepdims=True))
        shares = counts / jnp.maximum(jnp.sum(counts, axis=-1, keepdims=True), 1.0)
        balance = jnp.sum(turns * shares * probabilities * real[..., None])
        learned = Learned(self.config.auxiliary_weight * balance, None)

        def choose(turn: int, x: jax.Array, candidates: jax.Array) -> tuple[Choice, Learned | None]:
            weighs = jnp.where(last == turn, gate, 1.0)
            picked = candidates & (last >= turn)
            return Choice(weighs, picked, 1.0), learned if turn == 0 else None

        return choose

    def _aux(
        self, said: list[LayerAux], learned: list[Learned], picked: list[jax.Array]
    ) -> LayerAux:
        """What the shared layers `said` in all turns, and what was `learned`, as one aux; `picked`
        begins with the real tokens."""
        real, turns = picked[0], jnp.sum(jnp.stack(picked[1:]), dtype=jnp.float32)
        summed = jax.tree.map(lambda *each: jnp.sum(jnp.stack(each), axis=0), *said)
        stats = summed.stats
        if "activation" in stats:
            visits = jnp.maximum(shards.total(turns), 1.0)
            stats["activation"] *= shards.total(jnp.sum(real)) / visits
        losses = [] if summed.loss is None else [summed.loss]
        losses += [each.loss for each in learned]
        own = {"turns": turns}
        rights = [each.right for each in learned if each.right is not None]
        if rights:
            own["predicted"] = jnp.sum(jnp.all(jnp.stack(rights), axis=0) & real, dtype=jnp.float32)
        count = len(self.numbers["shared"])
        stats |= {name: jnp.full(count, value) for name, value in own.items()}
        return LayerAux(stats, sum(losses[1:], losses[0]) if losses else None)

    @nn.nowrap
    def init_cache(self, batch: int, max_length: int, dtype: DTypeLike) -> dict[str, Cache]:
        def empty(part: str) -> dict[str, Cache]:
            return self._stack(part, parent=None).init_cache(batch, max_length, dtype)

        turns = range(self.config.turns)
        return {
            part: {f"turn_{turn}": empty(part) for turn in turns}
            if part == "shared"
            else empty(part)
            for part in self.numbers
        }

    @nn.nowrap
    def visits(self) -> tuple[Visit, ...]:
        shares = dict.fromkeys(self.numbers, (1.0,)) | {"shared": self.config.shares}
        return tuple(
            Visit(self.layers[number], share)
            for part, numbers in self.numbers.items()
            for share in shares[part]
            for number in numbers
        )

    @nn.nowrap
    def own_flops(self) -> float:
        """Of routers and predictors, which see every token."""
        width = self.dims.d_model
        if self._of_tokens:
            return 2.0 * width * self.config.turns
        return sum(router_flops(width, share) for share in self.config.shares)
