"""Which of the parameters are trained: all that the objective has a gradient for, those not frozen
by pattern, or adapters alone. Biases that balance experts are moved by `balance`."""

from typing import Any

from jaxformer.config import Config
from jaxformer.errors import UserError
from jaxformer.model.accounting import FURTHER_PATH
from jaxformer.model.lora import A, adapter_paths
from jaxformer.model.parameter_paths import by_path, matches, matching, unmatched
from jaxformer.train.balance import is_bias

PyTree = Any


def trained_paths(config: Config, params: PyTree) -> set[str]:
    """The paths that updates change; the others have neither gradient nor optimizer state.

    Raises:
        UserError: a pattern of train.freeze or lora.targets has no match, or nothing is left.
    """
    paths = set(by_path(params))
    if config.lora is not None:
        adapters = adapter_paths(params)
        _check_targets(config.lora.targets, paths)
        return adapters
    trained = paths - matching(config.train.freeze, paths, "train.freeze")
    trained = {path for path in trained if not is_bias(path)}
    if not config.train.objective.trains_further:  # weight decay would shrink what has no gradient
        trained = {path for path in trained if not path.startswith(FURTHER_PATH)}
    if not trained:
        raise UserError("train.freeze matches every parameter; leave some to be trained")
    return trained


def moved_biases(config: Config, params: PyTree) -> set[str]:
    """The paths of the biases that balance experts: those of layers, unless they are frozen by
    pattern, or the run has adapters."""
    paths = set(by_path(params))
    if config.lora is not None:
        return set()
    frozen = matching(config.train.freeze, paths, "train.freeze")
    return {
        path
        for path in paths - frozen
        if is_bias(path) and config.model.layers_of_path(path) is not None
    }


def _check_targets(targets: tuple[str, ...], paths: set[str]) -> None:
    adapted = {f"{path.removesuffix(A)}kernel" for path in paths if path.endswith(f"/{A}")}
    kernels = {path for path in paths if path.endswith("/kernel")}
    for target in targets:
        if matches(target, adapted):
            continue
        if found := matches(target, kernels):
            raise UserError(
                f"lora.targets: '{target}' matches only what cannot have adapters, such as "
                f"{min(found)}; allowed: the kernels of projections and of experts"
            )
        raise unmatched(target, kernels, "lora.targets")
