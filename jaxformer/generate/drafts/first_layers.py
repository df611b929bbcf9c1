"""A model's own first layers as its draft, under its final norm and head (LayerSkip: Elhoushi et
al., 2024, arXiv:2404.16710)."""

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp

from jaxformer.errors import UserError
from jaxformer.generate.drafts.base import Draft, DraftState, Proposal, Turn, Weights
from jaxformer.generate.reading import draw
from jaxformer.generate.sampling import Sampling
from jaxformer.model.depth import FixedConfig
from jaxformer.model.depth.exits import ExitsConfig
from jaxformer.model.language_model import LanguageModel


@dataclass(frozen=True)
class FirstLayers(Draft):
    """Reads and extends the target's own caches of these layers, so that it needs no prefill, and
    what it wrote is taken back before the target verifies."""

    model: LanguageModel  # the first layers, laid out for decoding

    @classmethod
    def of(cls, target: LanguageModel, num_layers: int) -> "FirstLayers":
        """The first layers of a target that is laid out for decoding.

        Raises:
            UserError: there are not so many, or not whole repetitions of the pattern, or the depth
                is neither fixed nor exits.
        """
        config = target.config
        if not isinstance(config.depth, FixedConfig | ExitsConfig):
            raise UserError(
                f"draft 'self:{num_layers}' takes a model's first layers, but the depth of this "
                f"one is {config.depth.kind}; allowed: model.depth fixed or exits, or another draft"
            )
        first, length, last = len(config.first), len(config.pattern), config.num_layers
        if isinstance(config.depth, ExitsConfig) and config.depth.exit is not None:
            last = min(last, config.depth.exit * length)
        allowed = range(first + length, last, length)
        if num_layers not in allowed:
            several = f", in whole repetitions of the pattern of {length}" if length > 1 else ""
            raise UserError(
                f"draft 'self:{num_layers}' is out of range; allowed: "
                f"{', '.join(map(str, allowed)) or 'none'} of the {last} layers"
                f"{several}"
            )
        fewer = {"num_layers": num_layers, "depth": FixedConfig()}
        return cls(target.clone(config=config.model_copy(update=fewer)))

    def taking_back(self, count: int) -> Draft:
        return replace(self, model=self.model.clone(taken_back=count))

    def cost(self, weights: Weights) -> float:
        sizes = [_size(self._params(weights)), _size(weights.target)]
        return sizes[0] / sizes[1]

    def propose(
        self, weights: Weights, state: DraftState, turn: Turn, count: int, sampling: Sampling
    ) -> Proposal:
        before = {name: turn.cache[name] for name in self._parts}
        tokens, probabilities, longer = draw(
            self.model,
            self._params(weights),
            before,
            turn.token,
            turn.position,
            turn.key,
            count,
            sampling,
            self.model.vocab_size,
        )
        counts = jnp.full_like(turn.position, count)
        undone = self.model.depth(parent=None).undo(longer, before, counts)
        return Proposal(tokens, probabilities, state, turn.cache | undone)

    @property
    def _parts(self) -> list[str]:
        config = self.model.config
        first, repeated = config.first, config.num_layers - len(config.first)
        groups = [f"group_{index}" for index in range(repeated // len(config.pattern))]
        return (["first"] if first else []) + groups

    def _params(self, weights: Weights) -> Any:
        stack = weights.target["stack"]
        return weights.target | {"stack": {name: stack[name] for name in self._parts}}


def _size(params: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(params))
