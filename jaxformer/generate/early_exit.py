"""Early exit by confidence (CALM: Schuster et al., 2022, arXiv:2207.07061): a token leaves the
layers as soon as the model is sure of the next one.

After every repetition of the pattern but the last, a row is confident if

    margin:  p₁ − p₂ > X, the two highest probabilities under the final norm and the head, or
    state:   cos(x before the repetition, x after it) > X.

Its state then stays as it is through all further layers. Their mixers still read it, so that their
caches hold what the copied state gives, as they must for later tokens; nothing else of them counts.
When all rows of a batch have left, everything but that is skipped: for attention the projections of
keys and values remain, for a recurrence its update. At X = 1 no row ever leaves, and decoding is
plain decoding.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxformer.errors import UserError
from jaxformer.generate.decode import TOKENS_AT_ONCE, Decoder, DecodingState, Stats
from jaxformer.generate.sampling import Sampling, sample
from jaxformer.model.block import Block
from jaxformer.model.depth import FixedConfig
from jaxformer.model.depth.exits import ExitsConfig
from jaxformer.model.depth.stack import Stack, choose_rows
from jaxformer.model.inputs import ChunksConfig
from jaxformer.model.language_model import LanguageModel
from jaxformer.model.rows import RowInfo
from jaxformer.parallel.rules import whole

MEASURES = ("margin", "state")


@dataclass(frozen=True)
class Exit:
    """When a row leaves.

    Raises:
        UserError: `confidence` is out of range, or there is no such measure.
    """

    confidence: float
    by: Literal["margin", "state"] = "margin"

    def __post_init__(self) -> None:
        if not 0 <= self.confidence <= 1:
            raise UserError(f"exit_confidence is {self.confidence}; allowed: 0 to 1 (never exit)")
        if self.by not in MEASURES:
            raise UserError(f"exit_by is '{self.by}'; allowed: {', '.join(MEASURES)}")


@dataclass
class ExitStats(Stats):
    """Counts of one call with early exits."""

    num_layers: int = 0
    exit_layers: int = 0  # summed over tokens
    tokens: int = 0

    def __str__(self) -> str:
        mean = self.exit_layers / max(self.tokens, 1)
        return f"{super().__str__()}\ntokens left after {mean:.2f} of {self.num_layers} layers"


@dataclass(frozen=True)
class ExitingDecoder(Decoder):
    """Decodes as `Decoder` does, with early exits after the prompt."""

    rule: Exit = Exit(1.0)

    @classmethod
    def from_decoder(cls, decoder: Decoder, rule: Exit) -> "ExitingDecoder":
        """With a decoder's parameters, which are not copied.

        Raises:
            UserError: tokens differ in the layers they pass, these see chunks of them, or the
                output can be read above the last layer alone.
        """
        model = decoder.model
        depth, inputs = model.config.depth, model.config.inputs
        if not isinstance(depth, FixedConfig | ExitsConfig) or isinstance(inputs, ChunksConfig):
            raise UserError(
                f"early exits need model.depth fixed or exits, and model.inputs tokens; here they "
                f"are {depth.kind} and {inputs.kind}; leave exit_confidence out"
            )
        residual = model.config.residual
        if not residual.has_exits:
            raise UserError(
                f"early exits read the model's output below the last layer, which residual "
                f"{residual.kind} has none for; leave exit_confidence out"
            )
        return cls(model, decoder.params, decoder.eos_id, decoder.mesh, {}, rule)

    def new_stats(self) -> Stats:
        return ExitStats(num_layers=self.model.config.num_layers)

    def _program(self, sampling: Sampling) -> Callable:
        return partial(_decode, self.model, self.rule, sampling, self.eos_id)

    def _tokens(self, made: Any, stats: Stats) -> np.ndarray:
        tokens, layers = made
        if isinstance(stats, ExitStats):
            counted = whole(layers)
            stats.exit_layers += int(counted.sum())
            stats.tokens += int(np.count_nonzero(counted))
        return whole(tokens)


def _decode(
    model: LanguageModel,
    rule: Exit,
    sampling: Sampling,
    eos_id: int,
    params: Any,
    state: DecodingState,
) -> tuple[DecodingState, tuple[jax.Array, jax.Array]]:
    """TOKENS_AT_ONCE more tokens of every row: (state, ([batch, tokens], the layers that each has
    passed, 0 in rows that had ended))."""

    def one(state: DecodingState, _: None) -> tuple[DecodingState, tuple[jax.Array, jax.Array]]:
        logits, cache, layers = step(
            model, params, rule, state.token[:, None], state.position[:, None], state.cache
        )
        key, now = jax.random.split(state.key)
        token = jnp.where(state.done, eos_id, sample(logits, now, sampling)).astype(jnp.int32)
        layers = jnp.where(state.done, 0, layers)
        done = state.done | (token == eos_id)
        return DecodingState(cache, token, state.position + 1, done, key), (token, layers)

    state, made = jax.lax.scan(one, state, length=TOKENS_AT_ONCE)
    return state, (made[0].T, made[1].T)


def step(
    model: LanguageModel,
    params: Any,
    rule: Exit,
    tokens: jax.Array,
    positions: jax.Array,
    cache: dict[str, Any],
) -> tuple[jax.Array, dict[str, Any], jax.Array]:
    """`LanguageModel.step` of one token [batch, 1] with early exits: (logits [batch, vocab], the
    cache, how many layers each row has passed [batch])."""
    read = partial(model.apply, {"params": params})
    x = read(tokens, positions, method="embed")
    rows = RowInfo(positions, jnp.ones_like(tokens), tokens=tokens)
    rows = read(rows, method="rows_of_layers")
    depth = model.depth(parent=None)
    assert isinstance(depth, Stack)  # as `from_decoder` has checked
    stream = depth.residual.start(x)
    batch = len(tokens)
    has_left, passed = jnp.zeros(batch, bool), jnp.zeros(batch, jnp.int32)
    longer, number = {}, 0
    parts = depth.parts()
    for place, (name, layers, _) in enumerate(parts):
        before, caches = stream, []
        for index, layer in enumerate(layers):
            own = (params["stack"][name][f"layer_{index}"], cache[name][index])
            block = Block(layer, depth.residual, depth.dims, parent=None)
            stream, kept = _block(block, *own, stream, rows, has_left, number)
            caches.append(kept)
            number += 1
        longer[name] = tuple(caches)
        passed = jnp.where(has_left, passed, passed + len(layers))
        if place < len(parts) - 1 and name != "first":
            ends = [depth.residual.finish(each)[:, 0] for each in (before, stream)]
            sure = _confidence(rule, read, *ends) > rule.confidence
            has_left |= sure
    logits = read(depth.residual.finish(stream)[:, 0], method="logits")
    return logits, longer, passed


def _block(
    block: Block,
    params: Any,
    cache: Any,
    stream: Any,
    rows: RowInfo,
    has_left: jax.Array,
    number: int,
) -> tuple[Any, Any]:
    """(the stream after the layer, unchanged in rows that have left; the longer cache)."""
    # XLA computes of this no more than the cache needs.
    reading = replace(block, layer=block.layer.model_copy(update={"ffn": None}))

    def skipped() -> tuple[Any, Any]:
        return stream, reading.apply({"params": params}, stream, rows, cache, number)[1]

    def passed() -> tuple[Any, Any]:
        return block.apply({"params": params}, stream, rows, cache, number)[:2]

    new, cache = jax.lax.cond(jnp.all(has_left), skipped, passed)
    return choose_rows(has_left, stream, new), cache


def _confidence(rule: Exit, read: Callable, before: jax.Array, after: jax.Array) -> jax.Array:
    """[batch], at most 1, of x [batch, d_model] before and after a repetition of the pattern."""
    if rule.by == "margin":
        likely = jax.nn.softmax(read(after, method="logits"), axis=-1)
        first, second = jnp.moveaxis(jax.lax.top_k(likely, 2)[0], -1, 0)
        return first - second
    wide = jnp.promote_types(before.dtype, jnp.float32)
    before, after = before.astype(wide), after.astype(wide)
    lengths = jnp.linalg.norm(before, axis=-1) * jnp.linalg.norm(after, axis=-1)
    return jnp.minimum(1.0, jnp.sum(before * after, axis=-1) / jnp.maximum(lengths, 1e-30))
