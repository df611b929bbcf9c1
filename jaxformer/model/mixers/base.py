"""The contract of a token mixer."""

from typing import Any, ClassVar, Literal, NamedTuple, NoReturn

import flax.linen as nn
import jax
from jax.typing import DTypeLike

from jaxformer.errors import UserError
from jaxformer.model.dims import Dims
from jaxformer.model.placements import Number
from jaxformer.model.positions import PositionsUnion
from jaxformer.model.rows import RowInfo
from jaxformer.schema.kinds import Kind

Cache = Any  # a pytree of arrays, each mixer's own

MIXERS: dict[type["MixerConfig"], type["Mixer"]] = {}  # filled in mixers/__init__.py


class FirstValues(NamedTuple):
    """The values of a model's first layer, which those above it mix with their own."""

    values: jax.Array  # [batch, length, kv_heads, head_dim]
    is_first: bool | jax.Array  # []; in the first layer, `values` has none yet


class MixerConfig(Kind):
    """The options of a mixer; `kind` names it."""

    registry = MIXERS

    def check(self, d_model: int, positions: PositionsUnion) -> None:
        """Check that the mixer can be built at this width.

        Raises:
            ValueError: saying which sizes do not fit, and what would.
        """

    @property
    def sees_any_order(self) -> bool:
        """Whether `rows.order` may be given; a causal mixer sees what is before a token alone."""
        return False

    @property
    def is_causal(self) -> bool:
        """Whether, in a causal model, tokens see none behind them; others are for encoders."""
        return True

    @property
    def sees_both_ways(self) -> bool:
        """Whether, in a model that is not causal, tokens see those behind them too."""
        return False

    def value_shape(self, d_model: int) -> tuple[int, int] | None:
        """(kv_heads, head_dim) of its values, if it can mix those of the first layer with them, see
        `Mixer.with_values`."""
        return None

    @property
    def has_sub_norm(self) -> bool:
        """Whether it can have a norm before its output matrix, see `Dims.sub_norm`."""
        return False

    @property
    def reads_source(self) -> bool:
        """Whether it is for decoders, whose encoder reads a source."""
        return False

    @property
    def needs_grid(self) -> bool:
        """Whether it takes the tokens of pictures alone, see `Dims.grid`."""
        return False

    @property
    def bias_heads(self) -> frozenset[int]:
        """The numbers of heads to whose logits relative positions add a bias."""
        return frozenset()

    def uses(self, positions: PositionsUnion) -> bool:
        """Whether the mixer itself uses these positions, apart from what embeddings hold."""
        return False


class Mixer(nn.Module):
    """Mixes information along the sequence.

    The tests in tests/contracts check that every registered mixer is causal, gives the same result
    whole, split or token by token, treats packed documents as if alone, and counts its costs right;
    or, in an encoder, that tokens see their whole document.
    """

    # How it trains: `chunks` of matrix products, an associative `scan`, all `pairs` of tokens, one
    # `step` after another, or a `filter` of a few tokens.
    form: ClassVar[Literal["chunks", "scan", "pairs", "step", "filter", "of its parts"]] = "chunks"
    # Its own kernels, if any; everywhere else XLA compiles the form above.
    kernel: ClassVar[str] = "none"
    # Whether the newest tokens of a cache can be taken back, see `rewind`.
    rewinds: ClassVar[bool] = False

    config: MixerConfig
    dims: Dims
    scheme: PositionsUnion  # how positions enter
    # The number of its layer among those that the stream passes, counted from 0; it is an array
    # where layers are scanned.
    number: Number = 0

    def __call__(
        self, x: jax.Array, rows: RowInfo, cache: Cache | None = None
    ) -> tuple[jax.Array, Cache | None]:
        """x [batch, length, d_model] → (y of the same shape, cache).

        Args:
            x: the normalised input.
            rows: positions and documents of the tokens.
            cache: None to start from an empty state, as in training; else what `init_cache` or an
                earlier call returned, to continue from by any length ≥ 1.
        """
        raise NotImplementedError

    def with_values(
        self, x: jax.Array, rows: RowInfo, cache: Cache | None, first: FirstValues | None
    ) -> tuple[jax.Array, Cache | None, jax.Array]:
        """`__call__`, with values λ₁ v + λ₂ v₁ for its own v and v₁ of the first layer; and v."""
        raise NotImplementedError

    def init_cache(self, batch: int, max_length: int, dtype: DTypeLike) -> Cache:
        """The cache before the first token of sequences of up to `max_length` tokens; the first
        axis of every array is the batch.

        Raises:
            UserError: tokens see those behind them, see `refuse_cache`.
        """
        raise NotImplementedError

    def refuse_cache(self) -> NoReturn:
        """Refuse to continue a sequence where its tokens would have seen those that follow."""
        raise UserError(
            f"the mixer {self.config.kind} lets tokens see those behind them, so a sequence cannot "
            f"be continued token by token: a model of order full is an encoder and does not "
            f"generate; give model.order=causal and mixers that are causal"
        )

    def rewind(self, cache: Cache, counts: jax.Array) -> Cache:
        """The cache as it was `counts` [batch] tokens ago, at most `dims.taken_back`."""
        raise NotImplementedError

    @property
    def takes_back_itself(self) -> bool:
        """Whether `take_back` needs no states kept by `kept.mix`."""
        return self.rewinds

    def take_back(self, kept: Any, counts: jax.Array) -> Cache:
        """The cache before the last `counts` [batch] tokens of each row, given what a call of 2 to
        `dims.taken_back` tokens returned: for a recurrence, see `kept.mix`."""
        return self.rewind(kept, counts) if self.rewinds else kept.taken_back(counts)

    def kept_flops(self) -> float:
        """Forward FLOPs per token of what reads token by token to keep states, see `kept.mix`."""
        return 0.0 if self.rewinds else self.flops(1)

    def kernels(self, length: int) -> tuple[str, ...]:
        """Which kernel serves rows of `length` tokens in training on the current mesh, and why, for
        every part that has kernels of its own.

        Raises:
            ValueError: a kernel asked for by name cannot serve.
        """
        return ()

    def flops(self, length: int) -> float:
        """Forward FLOPs per token, on average over a sequence of `length` tokens."""
        raise NotImplementedError

    def cache_bytes(self, length: int) -> int:
        """Bytes of the cache of one sequence of `length` tokens, with activations of dims.dtype;
        0 where there is none."""
        raise NotImplementedError


def build_mixer(config: MixerConfig, dims: Dims, scheme: PositionsUnion, **place: Any) -> Mixer:
    """The module that `config.kind` names; `place` is name=… in a module, parent=None outside."""
    return MIXERS[type(config)](config, dims, scheme, **place)
