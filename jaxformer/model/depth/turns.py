"""The layers of a loop, turn after turn."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxformer.model.depth.base import Visit
from jaxformer.model.depth.halting import ACTConfig, WeighedHaltingConfig, log_distribution
from jaxformer.model.depth.held import Held, HeldResidual
from jaxformer.model.depth.loop import RandomTurns
from jaxformer.model.depth.loop_caches import LoopCaches
from jaxformer.model.depth.stack import KEYS, Stack, joined, mean_of_turns
from jaxformer.model.mixers import Cache
from jaxformer.model.rows import Exits, LayerAux, RowInfo
from jaxformer.ops import shards


class Leaving(NamedTuple):
    """Where tokens stand between two turns of a loop that they leave one by one."""

    state: jax.Array  # [batch, length, d_model]
    output: jax.Array  # [batch, length, d_model]: Σ weight · state over the turns so far
    moves: jax.Array  # [batch, length], bool: still in the loop
    gone: jax.Array  # [batch, length]: the probability of having left
    turns: jax.Array  # [batch, length], float32
    last_weight: jax.Array  # [batch, length]: the weight at the turn where it left


Gate = Callable[[jax.Array], jax.Array]
# (number of the turn, state, its cache, tokens that move or None for all) → the same after it
Turn = Callable[
    [Any, jax.Array, Cache | None, jax.Array | None], tuple[jax.Array, Cache | None, LayerAux]
]


class Loop(LoopCaches):
    """x → before → turns × shared → after, each part a `Stack` (arXiv:2502.05171).

    A turn is s ← shared(s), shared(s + e) or shared(W [s; e]), where e is the loop's input.

    A token that has left keeps its state, see `HeldResidual`; the layers' mixers go on to read it,
    so that later tokens find it at every turn. In decoding, a turn that no token makes computes
    what the caches need and nothing else.
    """

    @nn.compact
    def __call__(
        self, x: jax.Array, rows: RowInfo, caches: dict[str, Cache] | None = None
    ) -> tuple[jax.Array, dict[str, Cache] | None, LayerAux]:
        longer: dict[str, Cache] = {}
        said: dict[str, LayerAux] = {}
        parts = self.numbers
        for name in parts:
            if name == "shared":
                x, made, said[name] = self._loop(x, rows, caches)
                longer |= made
            else:
                cache = None if caches is None else caches[name]
                x, longer[name], said[name] = self._stack(name, name=name)(x, rows, cache)
        return (
            x,
            None if caches is None else longer,
            joined([(said[name], len(numbers)) for name, numbers in parts.items()]),
        )

    def _loop(
        self, e: jax.Array, rows: RowInfo, caches: dict[str, Cache] | None
    ) -> tuple[jax.Array, dict[str, Cache], LayerAux]:
        weights, gate = {"inject": self._injection_matrix()}, self._gate()
        if self.is_initializing():
            x, _, aux = self._stack("shared", name="shared")(e, rows)
            return x, {}, aux
        weights["shared"] = self.get_variable("params", "shared", {})
        halting, training = self.config.halting, self.has_rng("depth")
        keys = {name: self.make_rng(name) for name in KEYS if self.has_rng(name)}
        start, shared = self._start(e), self._stack("shared", parent=None)
        if not self.config.halts and caches is None:
            return self._without_caches(weights, e, start, rows, keys)
        turn = self._turn(shared, weights, e, rows, keys)
        if not self.config.halts:
            return self._with_caches(turn, start, caches)
        if isinstance(halting, WeighedHaltingConfig) and training:
            return self._weighed(turn, start, rows, gate, halting)
        mixers = shared.clone(
            layers=tuple(each.model_copy(update={"ffn": None}) for each in shared.layers)
        )
        standing = self._turn(mixers, weights, e, rows, keys)
        return self._leaving(turn, standing, start, rows, gate, caches)

    def _injection_matrix(self) -> jax.Array | None:
        if self.config.inject != "concat":
            return None
        width, names = self.dims.d_model, ("branch", "d_model", "vector")
        matrix = nn.with_logical_partitioning(self.dims.init.matrix(2 * width), names)
        return self.param("inject", matrix, (2, width, width), jnp.float32)

    def _gate(self) -> Gate:
        """State [..., d_model] → logits [...], float32 at least."""
        if not self.config.halts:
            return lambda state: jnp.zeros(state.shape[:-1])
        width, named = self.dims.d_model, nn.with_logical_partitioning
        weight = named(self.dims.init.matrix(width), ("vector",))
        w = self.param("halt", weight, (width,), jnp.float32)
        b = self.param("halt_bias", named(nn.initializers.zeros, ("vector",)), (1,), jnp.float32)

        def logits(state: jax.Array) -> jax.Array:
            wide = jnp.promote_types(state.dtype, jnp.float32)
            return state.astype(wide) @ w.astype(wide) + b[0].astype(wide)

        return logits

    def _start(self, e: jax.Array) -> jax.Array:
        if not self.config.noise:
            return e
        if not self.has_rng("depth"):
            return jnp.zeros_like(e)
        key = self.make_rng("depth")
        if shards.count() > 1:
            key = jax.random.fold_in(key, jax.lax.axis_index(shards.AXIS))
        return self.config.noise * jax.random.normal(key, e.shape, e.dtype)

    @nn.nowrap
    def _turn(
        self,
        shared: Stack,
        weights: dict[str, Any],
        e: jax.Array,
        rows: RowInfo,
        keys: dict[str, jax.Array],
    ) -> Turn:
        params = {"params": weights["shared"]}
        residual = HeldResidual(self.residual.config, self.residual.norm, self.residual)

        def turn(
            number: Any, state: jax.Array, cache: Cache | None, moves: jax.Array | None = None
        ) -> tuple[jax.Array, Cache | None, LayerAux]:
            rngs = {name: jax.random.fold_in(key, number) for name, key in keys.items()}
            x = self._injected(state, e, weights["inject"])
            with jax.named_scope("shared"):
                if moves is None:
                    return shared.apply(params, x, rows, cache, rngs=rngs)
                held = shared.clone(residual=residual)
                x, cache, aux = held.apply(params, Held(x, moves), rows, cache, rngs=rngs)
            return jnp.where(moves[..., None], x, state), cache, aux

        return turn

    @nn.nowrap
    def _injected(self, state: jax.Array, e: jax.Array, kernel: jax.Array | None) -> jax.Array:
        """What a turn reads."""
        match self.config.inject:
            case "none":
                return state
            case "add":
                return state + e
        assert kernel is not None
        of_state, of_input = kernel.astype(e.dtype)
        return state @ of_state + e @ of_input

    def _without_caches(
        self,
        weights: dict[str, Any],
        e: jax.Array,
        state: jax.Array,
        rows: RowInfo,
        keys: dict[str, jax.Array],
    ) -> tuple[jax.Array, dict[str, Cache], LayerAux]:
        """Turns that all tokens make: first those without a gradient, as many as there are, then
        those with one, up to `backward`."""
        config, turns = self.config, self._turns()
        kept = min(config.backward or config.most_turns, config.most_turns)
        if isinstance(turns, int):
            kept = min(kept, turns)
        early = turns - kept if isinstance(turns, int) else jnp.maximum(turns - kept, 0)
        shared = self._stack("shared", parent=None)
        turn = self._turn(shared, weights, e, rows, keys)
        shapes = jax.eval_shape(lambda x: turn(0, x, None, None)[2], state)
        nothing = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        sums = nothing
        if kept < config.most_turns:
            still = jax.lax.stop_gradient
            first = self._turn(shared, still(weights), still(e), still(rows), keys)

            def pass_on(number: Any, carry: tuple) -> tuple:
                state, sums = carry
                state, _, aux = first(number, state, None, None)
                return state, jax.tree.map(jnp.add, sums, aux)

            cut, sums = jax.lax.fori_loop(0, early, pass_on, (still(state), sums))
            # With no turn before the last ones, they start from the loop's input and its gradient.
            state, sums = jnp.where(early > 0, still(cut), state), still(sums)

        def make(state: jax.Array, number: jax.Array) -> tuple[jax.Array, LayerAux]:
            def make_turn(state: jax.Array) -> tuple[jax.Array, LayerAux]:
                state, _, aux = turn(number, state, None, None)
                return state, aux

            if isinstance(turns, int):
                return make_turn(state)
            return jax.lax.cond(number < turns, make_turn, lambda x: (x, nothing), state)

        numbers = early + jnp.arange(kept, dtype=jnp.int32)
        state, aux = jax.lax.scan(make, state, numbers, unroll=self._unroll(kept))
        sums = jax.tree.map(lambda early, late: early + jnp.sum(late, axis=0), sums, aux)
        stats = {name: value / turns for name, value in sums.stats.items()}
        if not isinstance(turns, int):
            stats["turns"] = self._of_layers(turns * jnp.sum(rows.segment_ids != 0))
        return state, {}, sums._replace(stats=stats)

    def _turns(self) -> int | jax.Array:
        turns = self.config.turns
        if isinstance(turns, RandomTurns) and self.has_rng("depth"):
            return turns.draw(self.make_rng("depth"))
        return self.config.usual_turns

    def _with_caches(
        self, turn: Turn, state: jax.Array, caches: dict[str, Cache] | None
    ) -> tuple[jax.Array, dict[str, Cache], LayerAux]:
        def make(state: jax.Array, number: Any, cache: Cache | None) -> tuple:
            state, cache, aux = turn(number, state, cache, None)
            return state, (cache, aux)

        state, longer, aux = self._over_turns(make, state, caches)
        return state, longer, mean_of_turns(aux)

    def _weighed(
        self,
        turn: Turn,
        state: jax.Array,
        rows: RowInfo,
        gate: Gate,
        halting: WeighedHaltingConfig,
    ) -> tuple[jax.Array, dict[str, Cache], LayerAux]:
        """All turns, with the loss after each weighed by the probability of leaving there."""

        def make(state: jax.Array, number: Any, cache: Cache | None) -> tuple:
            state, _, aux = turn(number, state, None, None)
            return state, (None, (aux, state, gate(state)))

        last, _, (aux, states, logits) = self._over_turns(make, state, None)
        log_p = log_distribution(logits)  # [turns, batch, length]
        p, aux = jnp.exp(log_p), mean_of_turns(aux)
        is_real = rows.segment_ids != 0
        numbers = jnp.arange(1, len(p) + 1, dtype=p.dtype)
        expected = jnp.sum(jnp.where(is_real, jnp.tensordot(numbers, p, 1), 0.0))
        added = jnp.sum(jnp.where(is_real, halting.regulariser(log_p), 0.0))
        aux = self._with_loss(aux, added)
        aux = aux._replace(stats=aux.stats | {"turns": self._of_layers(expected)})
        exits = Exits(states, p, jnp.ones(len(p), bool))
        return last, {}, aux._replace(exits=exits)

    def _leaving(
        self,
        turn: Turn,
        standing: Turn,
        start: jax.Array,
        rows: RowInfo,
        gate: Gate,
        caches: dict[str, Cache] | None,
    ) -> tuple[jax.Array, dict[str, Cache], LayerAux]:
        """Turns that tokens leave one by one; `standing` is a turn without channel mixers, for the
        caches of one that no token makes."""
        halting, turns = self.config.halting, self.config.most_turns
        is_real = rows.segment_ids != 0
        nobody = jnp.zeros_like(is_real)

        def make(before: Leaving, number: Any, cache: Cache | None) -> tuple:
            def move() -> tuple[Leaving, tuple]:
                state, longer, aux = turn(number, before.state, cache, before.moves)
                left = halting.leave(gate(state), before.gone, jnp.asarray(number == turns - 1))
                weight = jnp.where(before.moves, left.weight, 0.0)
                after = Leaving(
                    state,
                    before.output + weight[..., None] * state,
                    before.moves & ~left.leaves,
                    jnp.where(before.moves, left.gone, before.gone),
                    before.turns + before.moves,
                    jnp.where(before.moves, left.weight, before.last_weight),
                )
                return after, (longer, None if caches is not None else aux)

            def stand() -> tuple[Leaving, tuple]:
                _, longer, _ = standing(number, before.state, cache, nobody)
                return before, (longer, None)

            return move() if caches is None else jax.lax.cond(jnp.any(before.moves), move, stand)

        wide = jnp.promote_types(start.dtype, jnp.float32)
        zeros = jnp.zeros(is_real.shape, wide)
        first = Leaving(start, jnp.zeros(start.shape, wide), is_real, zeros, zeros, zeros)
        last, longer, aux = self._over_turns(make, first, caches)
        aux = LayerAux({}) if caches is not None else mean_of_turns(aux)
        aux = aux._replace(stats=aux.stats | {"turns": self._of_layers(jnp.sum(last.turns))})
        if isinstance(halting, ACTConfig):
            cost = halting.cost * jnp.sum(last.turns + last.last_weight)
            aux = self._with_loss(aux, cost)
        return last.output.astype(start.dtype), longer, aux

    @nn.nowrap
    def _over_turns(
        self, make: Callable[..., tuple], carry: Any, caches: dict[str, Cache] | None
    ) -> tuple[Any, dict[str, Cache], Any]:
        """make(carry, number, cache) → (carry, (cache, said)) for every turn: the last carry, the
        caches, and what was said [turns, ...]."""
        turns = self.config.usual_turns
        if caches is None or self.layout != "separate":
            of_turns = None if caches is None else caches["turns"]
            found: tuple[Any, tuple[Cache, Any]] = jax.lax.scan(
                lambda carry, each: make(carry, *each),
                carry,
                (jnp.arange(turns, dtype=jnp.int32), of_turns),
                unroll=self._unroll(turns),
            )
            carry, (longer, said) = found
            return carry, {"turns": longer}, said
        every: dict[str, Cache] = {}
        sayings = []
        for number in range(turns):
            name = f"turn_{number}"
            carry, (every[name], said) = make(carry, number, caches[name])
            sayings.append(said)
        return carry, every, jax.tree.map(lambda *each: jnp.stack(each), *sayings)

    @nn.nowrap
    def _unroll(self, turns: int) -> int:
        return 1 if self.layout == "scanned" else max(turns, 1)

    @nn.nowrap
    def _of_layers(self, value: jax.Array) -> jax.Array:
        """A statistic of the loop, as that of each of its layers."""
        return jnp.full(len(self.numbers["shared"]), value)

    @nn.nowrap
    def _with_loss(self, aux: LayerAux, added: jax.Array) -> LayerAux:
        stats = aux.stats | {"halting_loss": self._of_layers(added)}
        return LayerAux(stats, added if aux.loss is None else aux.loss + added)

    @nn.nowrap
    def visits(self) -> tuple[Visit, ...]:
        """Of random turns, the number outside of training, which is near their mean."""
        repeated = {"shared": self.config.usual_turns}
        return tuple(
            Visit(self.layers[number])
            for name, numbers in self.numbers.items()
            for _ in range(repeated.get(name, 1))
            for number in numbers
        )

    @nn.nowrap
    def own_flops(self) -> float:
        """The injection's matrix and the gate, once per turn."""
        width = self.dims.d_model
        matrix = 4.0 * width * width if self.config.inject == "concat" else 0.0
        gate = 2.0 * width if self.config.halts else 0.0
        return self.config.usual_turns * (matrix + gate)
