"""Block diffusion: autoregression over blocks, diffusion within them (BD3-LM, Arriola et al., 2025,
arXiv:2503.09573)."""

from typing import Annotated, ClassVar, Literal

import jax.numpy as jnp
from pydantic import Field, PositiveInt, model_validator

from jaxformer.batch import Batch
from jaxformer.model.language_model import LanguageModel
from jaxformer.model.rows import LayerAux
from jaxformer.objectives.base import Evaluated, PyTree
from jaxformer.objectives.denoising import (
    LOWEST_RATE,
    DenoisingConfig,
    LossOfRows,
    Noise,
    goes_on,
    hide,
    of_all,
)
from jaxformer.objectives.two_streams import loss_of_streams
from jaxformer.ops.cross_entropy import LossSums

Rate = Annotated[float, Field(ge=LOWEST_RATE, le=1.0)]


class BlockDiffusionConfig(DenoisingConfig):
    """Σ_blocks E_t [(1/t) Σ_{i hidden} −log p(target_i | earlier blocks, the block's tokens that
    are not hidden)], a bound; with blocks of one token it is the next token's cross-entropy.

    Positions b · block … (b + 1) · block − 1 of a document are its block b, and predict the targets
    one position further; the first input of a block is always known. Rows [noisy; clean] of twice
    the length pass the layers once: noisy tokens see their own noisy block and earlier clean ones,
    clean tokens see clean blocks up to their own.
    """

    kind: Literal["block_diffusion"] = "block_diffusion"
    decoder = "block by block with a cache, some tokens of a block per pass"
    tokens_read: ClassVar[float] = 2.0

    block: PositiveInt = Field(4, description="tokens per block, L′")
    rates: tuple[Rate, Rate] = Field(
        (LOWEST_RATE, 1.0),
        strict=False,
        description="the lowest and the highest share of a block that training hides; evaluation "
        "draws from all",
    )

    @model_validator(mode="after")
    def _rates_rise(self) -> "BlockDiffusionConfig":
        if self.rates[0] > self.rates[1]:
            raise ValueError(f"rates are {list(self.rates)}; the lowest comes first")
        return self

    @property
    def is_bound(self) -> bool:
        return self.block > 1

    @property
    def shortest_row(self) -> int:
        return self.block

    def noised(self, loss_of: LossOfRows, batch: Batch, noise: Noise) -> tuple[LossSums, LayerAux]:
        positions = jnp.asarray(batch.positions)
        block, in_block = positions // self.block, positions % self.block
        starts = jnp.arange(batch.inputs.shape[1], dtype=jnp.int32) - in_block
        lowest, highest = self.rates
        # Every block has a rate, uniform in their range, and those of a row are spread evenly.
        shares = jnp.mod(noise.offsets + starts / batch.inputs.shape[1], 1.0)
        rates = (lowest + (highest - lowest) * shares).astype(jnp.float32)
        is_seen = goes_on(batch) & (in_block < self.block - 1)
        noisy, weights = hide(batch, rates, noise.coins, is_seen)
        sums, layers = loss_of_streams(loss_of, batch, noisy, weights, step=block, known=block)
        return of_all(sums, batch), layers

    def evaluate(self, model: LanguageModel, params: PyTree, batch: Batch) -> Evaluated:
        of_all_rates = self.model_copy(update={"rates": (LOWEST_RATE, 1.0)})
        return DenoisingConfig.evaluate(of_all_rates, model, params, batch)
