"""The sines and cosines of positions, which files hold as a tensor and models here compute."""

from collections.abc import Sequence
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np

from jaxformer.checkpoint.interop.rules import Rule, Shape
from jaxformer.errors import UserError
from jaxformer.model.positions import sinusoidal

CLOSE = 2**-8  # numbers below 1 are rounded by half of that in bfloat16


@dataclass(frozen=True)
class Sines(Rule):
    """The `halves` of `sinusoidal` for positions from 0 on: `theirs` is [length, d_model], and
    nothing of ours."""

    size: Shape = ()

    def to_ours(self, theirs: Sequence[np.ndarray], shapes: Sequence[Shape]) -> list[np.ndarray]:
        """Nothing.

        Raises:
            UserError: the numbers are others.
        """
        [table], [expected] = theirs, self.to_theirs([])
        worst = np.abs(table.astype(np.float32) - expected).max()
        if not worst <= CLOSE:
            raise UserError(
                f"{self.theirs} differs by {worst:.3g} from the sines and cosines of positions "
                f"that stand here for it; allowed: those, which are never trained"
            )
        return []

    def to_theirs(self, ours: Sequence[np.ndarray]) -> list[np.ndarray]:
        length, d_model = self.size
        return [np.asarray(sinusoidal(jnp.arange(length), d_model, "halves"))]

    def shapes(self, ours: Sequence[Shape]) -> list[Shape]:
        return [self.size]
