"""Measurements that read a model from left to right."""

from jaxformer.config import Config
from jaxformer.errors import UserError


def check_causal(config: Config, what: str) -> None:
    """Check that one causal pass gives the probability of each token after those before it.

    Raises:
        UserError: the model was not trained for that.
    """
    objective = config.train.objective
    if not objective.is_causal:
        raise UserError(
            f"{what} needs the probability of each token after all before it, which a model "
            f"trained with train.objective {objective.kind} does not give; jaxformer eval without "
            f"a suite reports its own loss"
        )
