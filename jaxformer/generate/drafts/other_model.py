"""A smaller model as a draft (Leviathan et al., 2022, arXiv:2211.17192)."""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp

from jaxformer.generate.drafts.base import Draft, DraftState, Proposal, Turn, Verified, Weights
from jaxformer.generate.reading import draw, read_at_once, take_back
from jaxformer.generate.sampling import Sampling
from jaxformer.model.language_model import LanguageModel


@dataclass(frozen=True)
class OtherModel(Draft):
    """Has caches of its own. What it wrote while it drew tokens is forgotten; then it reads those
    that were proposed at once, as the target does, and takes back those that do not stay."""

    model: LanguageModel  # laid out for decoding
    vocab_size: int  # the target's

    def taking_back(self, count: int) -> Draft:
        return replace(self, model=self.model.clone(taken_back=count))

    def cost(self, weights: Weights) -> float:
        sizes = [sum(leaf.size for leaf in jax.tree.leaves(params)) for params in weights]
        return sizes[1] / sizes[0]

    def start(self, weights: Weights, batch: int, max_length: int) -> DraftState:
        return self.model.init_cache(batch, max_length)

    def read(
        self,
        weights: Weights,
        state: DraftState,
        tokens: jax.Array,
        offsets: jax.Array,
        hidden: jax.Array,
    ) -> DraftState:
        segment_ids = (offsets >= 0).astype(jnp.int32)
        positions = jnp.maximum(offsets, 0)
        rows = (tokens, positions, segment_ids)
        return self.model.apply({"params": weights.draft}, *rows, None, state, method="hidden")[1]

    def propose(
        self, weights: Weights, state: DraftState, turn: Turn, count: int, sampling: Sampling
    ) -> Proposal:
        tokens, probabilities, longer = draw(
            self.model,
            weights.draft,
            state,
            turn.token,
            turn.position,
            turn.key,
            count,
            sampling,
            self.vocab_size,
        )
        counts = jnp.full_like(turn.position, count)
        state = self.model.depth(parent=None).undo(longer, state, counts)
        return Proposal(tokens, probabilities, state, turn.cache)

    def settle(self, weights: Weights, state: DraftState, verified: Verified) -> DraftState:
        tokens = verified.tokens
        _, kept = read_at_once(self.model, weights.draft, state, tokens, verified.position)
        return take_back(self.model, weights.draft, kept, tokens.shape[1] - verified.counts)
