"""A model's own further predictions as its draft (Gloeckle et al., 2024, arXiv:2404.19737;
DeepSeek-V3, 2024, arXiv:2412.19437, section 2.2)."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from jaxformer.errors import UserError
from jaxformer.generate.acceptance import law
from jaxformer.generate.drafts.base import Draft, DraftState, Proposal, Turn, Verified, Weights
from jaxformer.generate.sampling import Sampling, sample
from jaxformer.model.language_model import LanguageModel
from jaxformer.model.several_ahead import (
    Read,
    advance_further,
    draft_further,
    init_further_cache,
)


@dataclass(frozen=True)
class FurtherPredictions(Draft):
    """Proposes up to `model.further.count` tokens, from what the target's last layer made of the
    tokens before the newest one. Its state is a `FurtherCache`."""

    model: LanguageModel  # the target, laid out for decoding, with what it takes back

    @classmethod
    def of(cls, target: LanguageModel) -> "FurtherPredictions":
        """The predictions of a target that is laid out for decoding.

        Raises:
            UserError: it has none.
        """
        further = target.config.further
        if further is None or further.count == 0:
            raise UserError(
                "draft 'mtp' takes a model's own predictions of the tokens after the next one, "
                "but this model has none; train one with model.further and train.objective "
                "multi_token, or choose another draft"
            )
        return cls(target)

    @property
    def most(self) -> int:
        assert self.model.config.further is not None
        return self.model.config.further.count

    def taking_back(self, count: int) -> "FurtherPredictions":
        return FurtherPredictions(self.model.clone(taken_back=count))

    def cost(self, weights: Weights) -> float:
        every, further = (
            sum(leaf.size for leaf in jax.tree.leaves(params))
            for params in (weights.target, weights.target.get("further"))
        )
        return further / self.most / every

    def start(self, weights: Weights, batch: int, max_length: int) -> DraftState:
        return init_further_cache(self.model, batch, max_length)

    def read(
        self,
        weights: Weights,
        state: DraftState,
        tokens: jax.Array,
        offsets: jax.Array,
        hidden: jax.Array,
    ) -> DraftState:
        segment_ids = (offsets >= 0).astype(jnp.int32)
        new = Read(hidden, tokens, jnp.maximum(offsets, 0), segment_ids)
        return self._advance(weights, state, new, None)

    def propose(
        self, weights: Weights, state: DraftState, turn: Turn, count: int, sampling: Sampling
    ) -> Proposal:
        keys = jax.random.split(turn.key, self.most)

        def choose(k: int, logits: jax.Array) -> jax.Array:
            return sample(logits, keys[k - 1], sampling)

        params = {"params": weights.target}
        drafts, state = self.model.apply(params, state, turn.token, choose, method=draft_further)
        laws = None if sampling.temperature == 0 else law(drafts.logits[:, :count], sampling)
        return Proposal(drafts.tokens[:, :count].astype(jnp.int32), laws, state, turn.cache)

    def settle(self, weights: Weights, state: DraftState, verified: Verified) -> DraftState:
        tokens, place = verified.tokens, jnp.arange(verified.tokens.shape[1], dtype=jnp.int32)
        positions = verified.position[:, None] + place
        new = Read(verified.hidden, tokens, positions, jnp.ones_like(tokens))
        return self._advance(weights, state, new, verified.counts)

    def _advance(
        self, weights: Weights, state: DraftState, new: Read, counts: jax.Array | None
    ) -> DraftState:
        params = {"params": weights.target}
        return self.model.apply(params, state, new, counts, method=advance_further)
