"""The other model that an objective compares with, such as a teacher's."""

from typing import Any

import jax.numpy as jnp
from flax.core import meta
from jax.sharding import Mesh

from jaxformer.checkpoint.lora import fingerprint
from jaxformer.checkpoint.manager import Json, placed
from jaxformer.checkpoint.run_directory import locate
from jaxformer.checkpoint.weights import Weights, find_weights
from jaxformer.config import Config
from jaxformer.data.tokenizers import Tokenizer
from jaxformer.loading import load_config
from jaxformer.model.accounting import abstract_parameters
from jaxformer.model.language_model import LanguageModel, build_model
from jaxformer.parallel.rules import parameter_shardings
from jaxformer.schema import UserError

PyTree = Any


def reference_model(config: Config, vocab_size: int) -> LanguageModel | None:
    """The model of the run that the objective names, to be computed as the trained one is.

    Raises:
        UserError: it names no run.
    """
    source = config.train.objective.reference
    if source is None:
        return None
    directory, _ = locate(source)
    return build_model(
        load_config(directory.config).model,
        vocab_size=vocab_size,
        dtype=jnp.dtype(config.train.precision),
        kernels=config.train.kernels,
    )


def abstract_reference(model: LanguageModel | None, config: Config, mesh: Mesh) -> PyTree:
    """Its weights as ShapeDtypeStructs that say where each lies; none without a model."""
    if model is None:
        return {}
    boxed = abstract_parameters(model)
    return placed(meta.unbox(boxed), parameter_shardings(mesh, boxed, config.mesh.table))


def load_reference(
    config: Config, abstract: PyTree, tokenizer: Tokenizer, saved: Json | None
) -> tuple[PyTree, Json | None, Weights | None]:
    """The weights, placed as `abstract` says, what the manifest says of where they come from, and
    where they lie.

    Args:
        saved: what the manifest said when the run began; None for a new run.

    Raises:
        UserError: there are none; they have another tokenizer; they have changed since the run
            began.
    """
    source = config.train.objective.reference
    if source is None:
        return {}, None, None
    weights = find_weights(source)
    theirs = weights.manifest["tokenizer"]
    if theirs["fingerprint"] != tokenizer.fingerprint:
        raise UserError(
            f"train.objective.teacher {source} has the tokenizer {theirs['name']}, and "
            f"data.tokenizer is {tokenizer.name}; teacher and student need the same one"
        )
    params, stored = weights.restore(abstract)
    now = {"from": source, "step": weights.step, "fingerprint": fingerprint(stored)}
    if saved is not None and saved["fingerprint"] != now["fingerprint"]:
        raise UserError(
            f"train.objective.teacher {source} has changed since this run began: step "
            f"{saved['step']} then, {now['step']} now; name that step, as in "
            f"{saved['from']}/checkpoints/{saved['step']}"
        )
    return params, now, weights
