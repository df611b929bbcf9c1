"""The other model that an objective compares with, such as a teacher."""

from typing import Any

import jax.numpy as jnp
from flax.core import meta
from jax.sharding import Mesh

from jaxformer.checkpoint.lora import fingerprint
from jaxformer.checkpoint.manager import Json, placed
from jaxformer.checkpoint.run_directory import locate
from jaxformer.checkpoint.weights import Weights, find_weights
from jaxformer.config import Config
from jaxformer.config.loading import load_config
from jaxformer.data.tokenizers import Tokenizer
from jaxformer.errors import DoesNotFit, UserError
from jaxformer.model.accounting import abstract_parameters
from jaxformer.model.language_model import LanguageModel, build_model
from jaxformer.parallel.rules import parameter_shardings

PyTree = Any


def reference_model(config: Config, vocab_size: int) -> LanguageModel | None:
    """The model of the run that the objective names, computed as the trained model is.

    Raises:
        UserError: it does not name a run, or rows are longer than its model takes.
    """
    source = config.train.objective.reference
    if source is None:
        return None
    directory, _ = locate(source)
    model = load_config(directory.config).model
    if config.data.sequence_length > model.longest_row:
        raise UserError(
            f"train.objective.teacher {source} takes rows of up to {model.longest_row:,} tokens, "
            f"and data.sequence_length is {config.data.sequence_length:,}; shorten the rows, or "
            f"give another teacher"
        )
    return build_model(
        model,
        vocab_size=vocab_size,
        dtype=jnp.dtype(config.train.precision),
        kernels=config.train.kernels,
    )


def abstract_reference(model: LanguageModel | None, config: Config, mesh: Mesh) -> PyTree:
    """The reference's weights as ShapeDtypeStructs with shardings; none without a model."""
    if model is None:
        return {}
    boxed = abstract_parameters(model)
    # It is not pipelined: all its layers lie on every stage, whatever their number.
    table = tuple((name, None if axes == "stage" else axes) for name, axes in config.mesh.table)
    try:
        return placed(meta.unbox(boxed), parameter_shardings(mesh, boxed, table))
    except DoesNotFit as error:
        raise DoesNotFit(f"the teacher {config.train.objective.reference}: {error}") from None


def find_reference(config: Config, tokenizer: Tokenizer) -> Weights | None:
    """Where the reference's weights lie.

    Raises:
        UserError: there are none, or they have another tokenizer.
    """
    source = config.train.objective.reference
    if source is None:
        return None
    weights = find_weights(source)
    theirs = weights.manifest["tokenizer"]
    if theirs["fingerprint"] != tokenizer.fingerprint:
        raise UserError(
            f"train.objective.teacher {source} has the tokenizer {theirs['name']}, and "
            f"data.tokenizer is {tokenizer.name}; teacher and student need the same one"
        )
    return weights


def load_reference(
    weights: Weights | None, abstract: PyTree, saved: Json | None
) -> tuple[PyTree, Json | None]:
    """The weights, placed as `abstract` says, and the manifest's entry on where they come from.

    Args:
        saved: what the manifest said when the run began; None for a new run.

    Raises:
        UserError: they have changed since the run began.
    """
    if weights is None:
        return {}, None
    source = weights.directory.path
    params, stored = weights.restore(abstract)
    now = {"from": str(source), "step": weights.step, "fingerprint": fingerprint(stored)}
    if saved is None:
        return params, now
    if saved["fingerprint"] != now["fingerprint"]:
        raise UserError(
            f"train.objective.teacher {source} has changed since this run began: step "
            f"{saved['step']} then, {now['step']} now; name that step, as in "
            f"{saved['from']}/checkpoints/{saved['step']}"
        )
    return params, saved
