"""Masked diffusion: MDLM (Sahoo et al., 2024, arXiv:2406.07524), LLaDA (Nie et al., 2025,
arXiv:2502.09992)."""

from typing import Literal

import jax.numpy as jnp

from jaxformer.batch import Batch
from jaxformer.model.rows import LayerAux
from jaxformer.objectives.denoising import (
    LOWEST_RATE,
    DenoisingConfig,
    LossOfRows,
    Noise,
    goes_on,
    hide,
    of_all,
)
from jaxformer.ops.attention import Order
from jaxformer.ops.cross_entropy import LossSums


class MaskedDiffusionConfig(DenoisingConfig):
    """E_t [(1/t) Σ_{i hidden} −log p(target_i | the tokens of the document that are not hidden)],
    the linear schedule's bound on −log p(document | its first token).

    A row has one t, uniform in [0.001, 1], and every target is hidden with probability t. Position
    i predicts target i, as in Dream (Ye et al., 2025, arXiv:2508.15487), and tokens see both
    directions.
    """

    kind: Literal["masked_diffusion"] = "masked_diffusion"
    decoder = "some tokens of the whole text per pass, the likeliest first"
    sees_whole_rows = True

    def noised(self, loss_of: LossOfRows, batch: Batch, noise: Noise) -> tuple[LossSums, LayerAux]:
        rates = LOWEST_RATE + (1 - LOWEST_RATE) * noise.offsets
        inputs, weights = hide(batch, rates, noise.coins, goes_on(batch))
        order = Order(
            jnp.zeros(inputs.shape, jnp.int32), private=jnp.zeros(inputs.shape, jnp.bool_)
        )
        rows = (inputs, batch.targets, batch.positions, batch.segment_ids, weights)
        sums, layers = loss_of(*rows, order=order)
        return of_all(sums, batch), layers
