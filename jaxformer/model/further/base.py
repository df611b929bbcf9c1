"""The contract of further predictions: of the tokens after the next one."""

from collections.abc import Callable, Sequence
from typing import ClassVar, Literal

import flax.linen as nn
import jax
from jax.typing import DTypeLike
from pydantic import Field, NonNegativeInt, model_validator

from jaxformer.model.block import Block
from jaxformer.model.channel_mixers import build_channel_mixer
from jaxformer.model.depth.stack import REMAT_POLICIES
from jaxformer.model.dims import Dims
from jaxformer.model.layer import Layer, LayerConfig
from jaxformer.model.mixers import Cache, Mixer, build_mixer
from jaxformer.model.norms import NormConfig
from jaxformer.model.positions import OF_THE_MODEL
from jaxformer.model.residuals import Residual
from jaxformer.model.rows import LayerAux, RowInfo
from jaxformer.schema.kinds import Kind

Embed = Callable[[jax.Array, jax.Array], jax.Array]  # tokens, positions → [batch, length, d_model]

FURTHER: dict[type["FurtherConfig"], type["Further"]] = {}  # filled in further/__init__.py


class FurtherConfig(Kind):
    """The options of further predictions; `kind` names them."""

    registry = FURTHER
    # Whether a prediction reads what the one before it made, and the token that that one predicts.
    chained: ClassVar[bool]

    count: NonNegativeInt = Field(
        1, description="how many tokens after the next one are predicted; 0 adds nothing"
    )
    layer: LayerConfig | None = Field(
        None,
        description="the layer of each prediction, as an entry of `model.pattern`; the model's "
        "last layer if null",
    )

    @property
    def lag(self) -> int:
        """How many of the newest positions drafts read again, see `FurtherCache`."""
        return self.count if self.chained else 1

    @model_validator(mode="after")
    def _positions_are_of_a_layer(self) -> "FurtherConfig":
        positions = None if self.layer is None else self.layer.positions
        if positions is not None and (what := OF_THE_MODEL.get(positions.kind)):
            raise ValueError(
                f"layer.positions is {positions.kind}, which is {what}; allowed: rope, alibi, none"
            )
        return self


class Further(nn.Module):
    """Predicts the `count` tokens after the next one, each with a layer of its own, above the
    model's layers; its parameters lie under `further`.

    Prediction k = 1, …, count of position t is of token t + 1 + k. The model's output turns each
    into logits, after the final norm unless predictions have norms of their own.
    """

    config: FurtherConfig
    layer: Layer
    residual: Residual
    norm: NormConfig
    dims: Dims
    remat: Literal["none", "dots", "full"] = "none"

    @property
    def own_norms(self) -> bool:
        """Whether predictions end with norms of their own, and read what a norm has given: the
        model's final norm, and that of prediction k − 1 where they are `chained`."""
        return False

    def __call__(
        self, k: int, x: jax.Array, embeddings: jax.Array | None, rows: RowInfo, cache: Cache | None
    ) -> tuple[jax.Array, Cache | None, LayerAux]:
        """Prediction k.

        Args:
            x: [batch, length, d_model], the output of the model's last layer, without the final
                norm unless predictions have `own_norms`; or of prediction k − 1 where they are
                `chained`.
            embeddings: of the token k places ahead of each, shaped like x; None unless `chained`.
            cache: as a `Mixer` has it.

        Returns:
            (x shaped like the input, the cache, the layer's loss and statistics).
        """
        raise NotImplementedError

    @nn.nowrap
    def every(
        self, x: jax.Array, ahead: Sequence[tuple[jax.Array, RowInfo]], embed: Embed
    ) -> tuple[list[jax.Array], jax.Array | None]:
        """All predictions of whole rows, each shaped like x, and the sum of their layers' losses.

        Args:
            x: [batch, length, d_model], the output of the model's last layer.
            ahead: for k = 1, 2, …, the tokens k places ahead [batch, length], and the rows, in
                which a token is padding if that place is not of its document.
        """
        made, losses = [], []
        for k, (tokens, rows) in enumerate(ahead, start=1):
            chained = self.config.chained
            embeddings = embed(tokens, rows.positions + k) if chained else None
            y, _, aux = self(k, x, embeddings, rows, None)
            losses += [] if aux.loss is None else [aux.loss]
            made.append(y)
            x = y if chained else x
        return made, sum(losses[1:], losses[0]) if losses else None

    def own_flops(self) -> float:
        """Forward FLOPs per token of one prediction, besides its layer and the output."""
        return 0.0

    def _block(self, name: str) -> nn.Module:
        block = Block
        if self.remat != "none":
            block = nn.remat(Block, policy=REMAT_POLICIES[self.remat])
        return block(self.layer, self.residual, self.dims, name=name)

    def _run(
        self, block: nn.Module, x: jax.Array, rows: RowInfo, cache: Cache | None
    ) -> tuple[jax.Array, Cache | None, LayerAux]:
        stream, cache, aux = block(self.residual.start(x), rows, cache)
        return self.residual.finish(stream), cache, aux

    @nn.nowrap
    def mixer(self) -> Mixer | None:
        """The mixer of every prediction's layer."""
        layer = self.layer
        if layer.mixer is None:
            return None
        return build_mixer(layer.mixer, self.dims, layer.positions, parent=None)

    @nn.nowrap
    def init_cache(self, batch: int, max_length: int, dtype: DTypeLike) -> tuple[Cache, ...]:
        """A cache for every prediction."""
        mixer = self.mixer()
        if mixer is None:
            return (None,) * self.config.count
        return tuple(mixer.init_cache(batch, max_length, dtype) for _ in range(self.config.count))

    @nn.nowrap
    def flops(self, length: int) -> float:
        """Forward FLOPs per token of all predictions, without the output."""
        mixer, ffn = self.mixer(), self.layer.ffn
        one = self.own_flops() + self.residual.flops(self.layer, self.dims.d_model)
        one += 0.0 if mixer is None else mixer.flops(length)
        if ffn is not None:
            one += build_channel_mixer(ffn, self.dims, parent=None).flops(length)
        return self.config.count * one
