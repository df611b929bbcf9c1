"""The contract of a depth: which layers a token passes, and how often."""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal, NamedTuple

import flax.linen as nn
import jax
from jax.typing import DTypeLike

from jaxformer.model.channel_mixers import build_channel_mixer
from jaxformer.model.dims import Dims
from jaxformer.model.layer import Layer
from jaxformer.model.mixers import Cache, Mixer, build_mixer
from jaxformer.model.residuals import Residual
from jaxformer.model.rows import LayerAux, RowInfo
from jaxformer.schema.kinds import Kind

DEPTHS: dict[type["DepthConfig"], type["Depth"]] = {}  # filled in depth/__init__.py


class DepthConfig(Kind):
    """The options of a depth; `kind` names it."""

    registry = DEPTHS
    # The random keys that it draws from in training, `depth` if any.
    keys: ClassVar[tuple[str, ...]] = ()
    # Whether layers may lie below those that repeat.
    has_first: ClassVar[bool] = False
    # Whether stages of a pipeline can share the layers.
    has_stages: ClassVar[bool] = False
    # Whether `rows.order` may be given, if the layers' mixers can take one.
    sees_any_order: ClassVar[bool] = False

    @property
    def weighs_losses(self) -> bool:
        """Whether training takes the losses of several exits, which `LanguageModel.loss` does and
        `read` does not."""
        return False

    # What `jaxformer list depths` says: how it is decoded, and options for its figures, where some
    # are required.
    decoder: ClassVar[str] = "one token after another, all layers"
    example: ClassVar[dict[str, Any]] = {}

    def check(self, num_layers: int, pattern: tuple[Layer, ...]) -> None:
        """Check that it can be built of these layers.

        Raises:
            ValueError: saying what does not fit, and what would.
        """

    def period(self, num_layers: int, pattern_length: int) -> int:
        """How many layers repeat over the depth, which stages of a pipeline share."""
        return pattern_length

    def layers_of_path(
        self, path: str, num_layers: int, pattern_length: int
    ) -> Sequence[int] | None:
        """The layers, from the bottom up, whose parameters the leaf at `path` stacks along its
        first axis; one layer if it is not stacked, None for a parameter outside the layers."""
        raise NotImplementedError


class Visit(NamedTuple):
    """A layer on a token's way, and the share of a row's tokens that pass it: on average in
    training, and of the tokens of the costliest row when it is decoded."""

    layer: Layer
    mean: float = 1.0
    most: float = 1.0


class Depth(nn.Module):
    """All layers between inputs and outputs; its parameters lie under `stack`.

    `layout`: `scanned` compiles one repetition of the pattern and loops over it; `unrolled` has the
    same parameters and compiles every layer; `separate` is unrolled with one tree of parameters
    and caches per repetition, see `separate_layers`, which decoding updates in place. `remat` names
    what a layer keeps for its gradient.
    """

    config: DepthConfig
    layers: tuple[Layer, ...]
    pattern_length: int
    residual: Residual
    dims: Dims
    remat: Literal["none", "dots", "full"] = "none"
    layout: Literal["scanned", "unrolled", "separate"] = "scanned"
    micro_batches: int | None = None
    first: int = 0  # so many of the layers lie below those that repeat
    below: int = 0  # so many layers of the model lie below all of these

    def __call__(
        self, x: jax.Array, rows: RowInfo, caches: dict[str, Cache] | None = None
    ) -> tuple[jax.Array, dict[str, Cache] | None, LayerAux]:
        """x [batch, length, d_model] → (x, caches, the layers' summed loss and statistics
        [layers])."""
        raise NotImplementedError

    def init_cache(self, batch: int, max_length: int, dtype: DTypeLike) -> dict[str, Cache]:
        """A cache for every layer, laid out as the parameters are."""
        raise NotImplementedError

    # Whether `take_back` is by layers. Speculative decoding reads token by token with any other
    # depth, and keeps whole caches.
    takes_back: ClassVar[bool] = False

    def take_back(self, kept: dict[str, Any], counts: jax.Array) -> dict[str, Cache]:
        """The caches before the last `counts` [batch] tokens of each row, at most all of them,
        given what a call with 2 to `dims.taken_back` tokens returned."""
        raise NotImplementedError

    def undo(
        self, longer: dict[str, Cache], before: dict[str, Cache], counts: jax.Array
    ) -> dict[str, Cache]:
        """The caches `before` calls with one token each, `counts` [batch] of them, that made them
        `longer`. A depth may take back those that can be, so that `before` is not copied."""
        return before

    def visits(self) -> tuple[Visit, ...]:
        """The layers on a token's way."""
        raise NotImplementedError

    def own_flops(self) -> float:
        """Forward FLOPs per token of what it has besides the layers."""
        return 0.0

    def mixers(self) -> list[Mixer]:
        """The mixer of every visit that has one; each has a cache of its own."""
        return [
            build_mixer(layer.mixer, self.dims, layer.positions, parent=None)
            for layer, *_ in self.visits()
            if layer.mixer is not None
        ]

    def flops(self, length: int) -> float:
        """Forward FLOPs per token in rows of `length` tokens, on average in training."""
        shares = ((layer, mean) for layer, mean, _ in self.visits())
        return self._own_flops() + sum(self._cost(*each, length) for each in shares)

    def most_flops(self, length: int) -> float:
        """Forward FLOPs per token in the costliest row of `length` tokens."""
        shares = ((layer, most) for layer, _, most in self.visits())
        return self._own_flops() + sum(self._cost(*each, length) for each in shares)

    def _own_flops(self) -> float:
        return self.own_flops() + self.residual.last_flops(self.dims.d_model)

    def _cost(self, layer: Layer, share: float, length: int) -> float:
        seen = max(1, round(share * length))
        flops = self.residual.flops(layer, self.dims.d_model)
        if layer.mixer is not None:
            mixer = build_mixer(layer.mixer, self.dims, layer.positions, parent=None)
            flops += mixer.flops(seen)
        if layer.ffn is not None:
            flops += build_channel_mixer(layer.ffn, self.dims, parent=None).flops(seen)
        return share * flops
