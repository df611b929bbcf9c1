"""What attention keeps of the tokens so far, where a token sees all of its document before it."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import struct

from jaxformer.model.rows import RowInfo
from jaxformer.ops.attention import Tokens, appended


@struct.dataclass
class TokenCache:
    """Arrays of all tokens so far; slot i holds token i."""

    kept: dict[str, jax.Array]  # each [batch, slots, ...]
    tokens: Tokens  # each [batch, slots]
    length: jax.Array  # [batch]: tokens so far

    @classmethod
    def of(cls, kept: dict[str, jax.Array]) -> "TokenCache":
        """Before the first token; `kept` are the arrays with nothing written."""
        batch, slots = next(iter(kept.values())).shape[:2]
        places = jnp.zeros((batch, slots), jnp.int32)
        return cls(kept, Tokens(places, places, places - 1), jnp.zeros(batch, jnp.int32))

    def appended(self, new: dict[str, jax.Array], rows: RowInfo) -> tuple["TokenCache", Tokens]:
        """The cache with the arrays of new tokens [batch, length, ...], and those tokens."""
        length = rows.positions.shape[1]
        order = self.length[:, None] + jnp.arange(length, dtype=jnp.int32)
        tokens = Tokens(order, rows.positions, rows.segment_ids)
        kept, places = jax.tree.map(
            lambda old, x: appended(old, x, self.length), (self.kept, self.tokens), (new, tokens)
        )
        return TokenCache(kept, places, self.length + length), tokens

    def without(self, counts: jax.Array) -> "TokenCache":
        """The cache before the last `counts` [batch] tokens."""
        return dataclasses.replace(self, length=self.length - counts)


def token_cache_bytes(length: int, per_token: int) -> int:
    """Bytes of the cache of a sequence of `length` tokens, whose arrays take `per_token` each."""
    places = 3 * 4  # order, position and document
    return length * (per_token + places) + 4
