"""A trained model, loaded from its run."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from flax.core import meta
from jax.sharding import Mesh

from jaxformer.batch import Source
from jaxformer.config import Config
from jaxformer.data.chat_template import load_chat_template
from jaxformer.data.tokenizers import Tokenizer, load_tokenizer
from jaxformer.errors import UserError, did_you_mean
from jaxformer.generate.beam_search import BeamSearch
from jaxformer.generate.decode import Decoder
from jaxformer.generate.decoders import check_left_to_right, check_takes_back, decoder_for
from jaxformer.generate.drafts import Draft, FirstLayers, FurtherPredictions, NGram, OtherModel
from jaxformer.generate.early_exit import Exit, ExitingDecoder
from jaxformer.generate.embedding import embed_texts
from jaxformer.generate.speculative import SpeculativeDecoder
from jaxformer.generate.targets import write_targets
from jaxformer.generate.text import generate_text
from jaxformer.generate.translation import sources_of
from jaxformer.model.accounting import abstract_parameters
from jaxformer.model.language_model import LanguageModel, build_model
from jaxformer.parallel.mesh import make_mesh
from jaxformer.parallel.rules import parameter_shardings
from jaxformer.paths import is_remote, locate_path

PyTree = Any
BEAM_SEARCH = BeamSearch()


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
        objective, eos_id = self.config.train.objective, self.tokenizer.eos_id
        return decoder_for(objective, self.model, self.params, eos_id, self.mesh)

    def decoder_with(self, draft: str | None, draft_tokens: int | None = None) -> Decoder:
        """The decoder that uses a draft: `self:LAYERS`, `mtp`, `ngram`, or the path of
        another run; the plain one for None. Every draft is loaded once.

        Args:
            draft_tokens: how many tokens are drafted at once; chosen by what is accepted if None.

        Raises:
            UserError: no such draft, or it does not fit this run.
        """
        if draft is None:
            if draft_tokens is not None:
                raise UserError(
                    f"draft_tokens is {draft_tokens}, but there is no draft; give one, or leave "
                    f"draft_tokens out"
                )
            return self.decoder
        self._check_draftable("this run")
        case = (draft, draft_tokens)
        if case not in self._drafted:
            kind, weights = self._draft(draft)
            self._drafted[case] = SpeculativeDecoder.from_decoder(
                self.decoder, kind, draft, weights, draft_tokens
            )
        return self._drafted[case]

    def _check_draftable(self, what: str) -> None:
        check_left_to_right(self.config.train.objective, what, "draft")
        check_takes_back(self.model, what)

    @cached_property
    def _drafted(self) -> dict[tuple[str, int | None], SpeculativeDecoder]:
        return {}

    def _draft(self, name: str) -> tuple[Draft, PyTree]:
        """The draft and its own parameters."""
        model = self.decoder.model
        if name == "ngram":
            return NGram(), None
        if name == "mtp":
            return FurtherPredictions.of(model), None
        if name.startswith("self:"):
            layers = name.removeprefix("self:")
            if not layers.isdecimal():
                raise UserError(
                    f"draft '{name}' does not say how many layers; give self:LAYERS, a number"
                )
            return FirstLayers.of(model, int(layers)), None
        place = locate_path(name)
        if not place.exists() and not is_remote(place):
            raise UserError(
                f"draft '{name}' is not there; allowed: self:LAYERS, mtp, ngram, or a run."
                f"{did_you_mean(name, ('self:LAYERS', 'mtp', 'ngram'))}"
            )
        other = load(place)
        if other.tokenizer.fingerprint != self.tokenizer.fingerprint:
            raise UserError(
                f"draft {name} has the tokenizer {other.tokenizer.name} of fingerprint "
                f"{other.tokenizer.fingerprint[:12]}, but this run has {self.tokenizer.name} of "
                f"fingerprint {self.tokenizer.fingerprint[:12]}; a draft must have the same one"
            )
        other._check_draftable(f"draft {name}")
        return OtherModel(other.decoder.model, model.vocab_size), other.decoder.params

    def generate(
        self,
        prompt: str | Sequence[str],
        *,
        draft: str | None = None,
        draft_tokens: int | None = None,
        exit_confidence: float | None = None,
        exit_by: Literal["margin", "state"] | None = None,
        **options: Any,
    ) -> str | list[str]:
        """Continue a prompt, or several in one batch; options as in `generate_text`, the draft of
        `decoder_with`, or early exits, see `Exit`.

        Raises:
            UserError: see `decoder_with`, `Exit` and `generate_text`; or both are given.
        """
        if exit_confidence is None and exit_by is not None:
            raise UserError(f"exit_by is '{exit_by}' without exit_confidence; give one, 0 to 1")
        if exit_confidence is None:
            decoder = self.decoder_with(draft, draft_tokens)
        elif draft is not None:
            raise UserError(
                f"draft is '{draft}' and exit_confidence {exit_confidence}; give one of them: a "
                f"draft is verified by all layers"
            )
        else:
            check_left_to_right(self.config.train.objective, "this run", "exit_confidence")
            rule = Exit(exit_confidence, exit_by or "margin")
            decoder = ExitingDecoder.from_decoder(self.decoder, rule)
        return generate_text(decoder, self.tokenizer, prompt, **options)

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """A vector of length 1 for each text, [texts, d_model]; see `embed_texts`."""
        return embed_texts(self.model, self.params, self.tokenizer, texts, self.mesh)

    def translate(self, texts: Sequence[str], search: BeamSearch = BEAM_SEARCH) -> list[str]:
        """What the decoder writes of each text that its encoder reads; see `sources_of`."""
        sources = sources_of(self.config, self.tokenizer, texts)
        return self.write(sources, len(texts), search)

    def write(
        self, sources: Iterable[Source], count: int, search: BeamSearch = BEAM_SEARCH
    ) -> list[str]:
        """What the decoder writes of each row of the sources; see `write_targets`."""
        given = (self.model, self.params, self.config, self.tokenizer, self.mesh)
        return write_targets(*given, search, sources, count)

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
