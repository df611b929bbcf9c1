"""A trained model, loaded from its run."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from flax.core import meta
from jax.sharding import Mesh

from jaxformer.config import Config
from jaxformer.data.chat_template import load_chat_template
from jaxformer.data.tokenizers import Tokenizer, load_tokenizer
from jaxformer.errors import UserError
from jaxformer.generate.decode import Decoder
from jaxformer.generate.text import generate_text
from jaxformer.model.accounting import abstract_parameters
from jaxformer.model.language_model import LanguageModel, build_model
from jaxformer.parallel.mesh import make_mesh
from jaxformer.parallel.rules import parameter_shardings

PyTree = Any


@dataclass(frozen=True)
class Run:
    """A configuration, its model, and parameters after `step` updates (their moving average, if the
    run keeps one), adapters merged, placed on `mesh`."""

    config: Config
    model: LanguageModel
    params: PyTree = field(repr=False)
    tokenizer: Tokenizer
    step: int
    mesh: Mesh

    @cached_property
    def decoder(self) -> Decoder:
        """The model laid out for decoding; compiled programs stay with it."""
        return Decoder.of(self.model, self.params, self.tokenizer.eos_id, self.mesh)

    def generate(self, prompt: str | Sequence[str], **options: Any) -> str | list[str]:
        """Continue a prompt, or several in one batch; options as in `generate_text`."""
        return generate_text(self.decoder, self.tokenizer, prompt, **options)

    def chat(self, prompt: str | Sequence[str], **options: Any) -> str | list[str]:
        """Answer a user's message, or several in one batch, with the tokenizer's chat template.

        Raises:
            UserError: the tokenizer has no chat template.
        """
        template = load_chat_template(self.tokenizer)
        return self.generate(prompt, template=template, **options)


def load(path: str | Path, overrides: Sequence[str] = ()) -> Run:
    """Load a run directory's newest good checkpoint, or the one that `path` names.

    Args:
        path: a run directory, or one of its `checkpoints/STEP`.
        overrides: `key.path=value` each, on top of the run's configuration.

    Raises:
        UserError: no such run or checkpoint, or a damaged one (unless `path` names none and there
            is a good one before it); the configuration or tokenizer does not fit it; it holds
            adapters, and what they adapt is gone or has changed.
    """
    from jaxformer.checkpoint.manager import placed
    from jaxformer.checkpoint.weights import find_weights

    weights = find_weights(path, overrides)
    config = weights.config
    tokenizer = load_tokenizer(config.data.tokenizer, config.data.add_bos)
    model = build_model(
        config.model, vocab_size=tokenizer.vocab_size, dtype=jnp.dtype(config.train.precision)
    )
    _check_tokenizer(weights.where, config, tokenizer, weights.manifest["tokenizer"])
    mesh = make_mesh(config.mesh.sizes, config.mesh.preset)
    boxed = abstract_parameters(model)
    abstract = placed(meta.unbox(boxed), parameter_shardings(mesh, boxed, config.mesh.table))
    params = weights.restore(abstract).params
    return Run(config, model, params, tokenizer, weights.step, mesh)


def _check_tokenizer(
    where: Path, config: Config, tokenizer: Tokenizer, saved: dict[str, str]
) -> None:
    if tokenizer.fingerprint != saved["fingerprint"]:
        for add_bos in (True, False):
            other = load_tokenizer(config.data.tokenizer, add_bos)
            if other.fingerprint == saved["fingerprint"]:
                raise UserError(
                    f"{where} was trained {'with' if add_bos else 'without'} a beginning of text "
                    f"before every text, but data.add_bos is {config.data.add_bos}; give "
                    f"data.add_bos={str(add_bos).lower()}, or write it into the run's config.yaml"
                )
        raise UserError(
            f"{where} was trained with the tokenizer {saved['name']} of fingerprint "
            f"{saved['fingerprint'][:12]}; data.tokenizer now has {tokenizer.fingerprint[:12]}: "
            f"the file has changed since, or another one is configured"
        )
