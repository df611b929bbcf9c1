"""Speculative decoding with a model's own further predictions."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta

from jaxformer.errors import UserError
from jaxformer.generate.decode import Decoder
from jaxformer.generate.drafts import FurtherPredictions
from jaxformer.generate.sampling import Sampling
from jaxformer.generate.speculative import SpeculationStats, SpeculativeDecoder
from jaxformer.model.config import ModelConfig
from jaxformer.model.language_model import LanguageModel, build_model

PROMPTS = [[3, 1, 4, 1, 5], [6]]
NO_EOS = -1


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def small_model(further: dict | None, **options: object) -> tuple[LanguageModel, dict]:
    config = {
        "d_model": 8,
        "num_layers": 1,
        "vocab_size": 7,
        "mixer": {"kind": "attention", "num_heads": 2},
        "ffn": None,
        "init": {"std": 0.5, "output": "plain"},
        "further": further,
    }
    model = build_model(ModelConfig.model_validate(config | options), dtype=jnp.float64)
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 2), jnp.int32))["params"]
    return model, jax.tree.map(lambda leaf: leaf.astype(jnp.float64), meta.unbox(params))


def continued(decoder: Decoder, **options: object) -> np.ndarray:
    options = {"max_new_tokens": 12, "sampling": Sampling(temperature=0)} | options
    return np.concatenate(list(decoder.decode(PROMPTS, **options)), axis=1)


def with_draft(plain: Decoder, draft_tokens: int | None) -> SpeculativeDecoder:
    draft = FurtherPredictions.of(plain.model)
    return SpeculativeDecoder.from_decoder(plain, draft, "further", draft_tokens=draft_tokens)


@pytest.mark.parametrize("kind", ["heads", "modules"])
def test_greedy_output_is_that_of_plain_decoding(kind: str) -> None:
    model, params = small_model({"kind": kind, "count": 3})
    plain = Decoder.of(model, params, NO_EOS)
    stats = SpeculationStats()
    np.testing.assert_array_equal(continued(with_draft(plain, 2), stats=stats), continued(plain))
    assert stats.proposed > 0


def test_predictions_that_are_right_are_all_accepted() -> None:
    """A model without layers whose embedding is the identity repeats its token for ever, and its
    heads, without layers as well, say the same."""
    layer = {"mixer": "none", "ffn": "none"}
    model, params = small_model({"kind": "heads", "count": 2}, pattern=[layer])
    decoder = with_draft(Decoder.of(model, params | {"embedding": jnp.eye(7, 8)}, NO_EOS), 2)
    stats = SpeculationStats()
    np.testing.assert_array_equal(continued(decoder, stats=stats), [[5] * 12, [6] * 12])
    assert stats.accepted == stats.proposed > 0


def test_sampling_has_the_laws_of_the_predictions() -> None:
    model, params = small_model({"kind": "modules", "count": 1})
    decoder = with_draft(Decoder.of(model, params, NO_EOS), 1)
    one, again, other = (
        continued(decoder, sampling=Sampling(temperature=1.0), seed=seed) for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(one, again)
    assert (one != other).any()


def test_a_model_without_further_predictions_is_refused() -> None:
    for further in (None, {"kind": "heads", "count": 0}):
        model, _ = small_model(further)
        with pytest.raises(UserError, match="but this model has none; train one with"):
            FurtherPredictions.of(model)


def test_more_tokens_than_are_predicted_are_refused() -> None:
    model, params = small_model({"kind": "heads", "count": 1})
    plain = Decoder.of(model, params, NO_EOS)
    assert with_draft(plain, None).draft_tokens == 1
    with pytest.raises(UserError, match="draft_tokens is 2; allowed: 1 to 1, as many as the"):
        with_draft(plain, 2)
