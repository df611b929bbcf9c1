"""Decoding of models that predict in any order, from left to right."""

from typing import Any, Self

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxformer.generate.decode import Decoder
from jaxformer.model.inputs import MASK
from jaxformer.model.language_model import LanguageModel
from jaxformer.model.mixers import Cache


class AskingModel(LanguageModel):
    """Predicts the next token by MASK in the place of the newest one, which the cache already has,
    as `AnyOrderConfig` trains it."""

    def step(  # type: ignore[override]  # it has no source
        self, tokens: jax.Array, positions: jax.Array, segment_ids: jax.Array, cache: Cache
    ) -> tuple[jax.Array, Cache]:
        _, cache = super().step(tokens, positions, segment_ids, cache)
        asking = jnp.full_like(tokens[:, -1:], MASK)
        logits, _ = super().step(asking, positions[:, -1:], segment_ids[:, -1:], cache)
        return logits, cache


class AnyOrderDecoder(Decoder):
    """A model that predicts in any order, ready to decode one token after another."""

    @classmethod
    def of(cls, model: LanguageModel, params: Any, eos_id: int, mesh: Mesh | None = None) -> Self:
        own = set(LanguageModel.__dataclass_fields__) - {"parent", "name"}
        asking = AskingModel(**{name: getattr(model, name) for name in own})
        return super().of(asking, params, eos_id, mesh)
