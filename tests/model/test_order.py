"""Models of order full: which mixers they take, and that their tokens see all of their document."""

from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pydantic import ValidationError

from jaxformer.errors import UserError
from jaxformer.model.accounting import cache_bytes
from jaxformer.model.config import ModelConfig
from jaxformer.model.dims import Grid
from jaxformer.model.inputs import INPUTS, Tokens, TokensConfig
from jaxformer.model.language_model import LanguageModel, build_model

MAMBA2 = {"kind": "mamba2", "head_dim": 4, "state_size": 4}
BOTH_WAYS = {"kind": "bidirectional", "mixer": MAMBA2}
ATTENTION = {"kind": "attention", "num_heads": 2}


class PictureConfig(TokensConfig):
    kind: Literal["picture"] = "picture"

    @property
    def grid(self) -> Grid:
        return Grid(2, 3, before=1)


def model_of(**options: Any) -> LanguageModel:
    config = {"d_model": 8, "num_layers": 2, "vocab_size": 5, "ffn": None, "order": "full"}
    return build_model(ModelConfig.model_validate(config | options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"mixer": MAMBA2},
            "order is full, but the mixer of layer 0, mamba2, goes from the first token to the "
            "last; give mixer={kind: bidirectional, mixer: {kind: mamba2, ...}}",
        ),
        (
            {"mixer": BOTH_WAYS, "order": "causal"},
            "order is causal, but the mixer of layer 0, bidirectional, lets tokens see those "
            "behind them; give order full, or a mixer that is causal",
        ),
        (
            {"mixer": {"kind": "parallel", "mixers": [ATTENTION, BOTH_WAYS]}, "order": "causal"},
            "order is causal, but the mixer of layer 0, parallel, lets tokens see those behind",
        ),
        (
            {"mixer": {"kind": "bidirectional", "mixer": ATTENTION}},
            "attention sees tokens on both sides by itself in a model of order full; give it "
            "without bidirectional",
        ),
        (
            {"mixer": {"kind": "scanned", "mixer": BOTH_WAYS}},
            "layer 0 has mixer scanned, which is for the tokens of pictures, but those of inputs "
            "tokens lie on no grid; give inputs of pictures, or leave it out",
        ),
        (
            {"mixer": ATTENTION, "positions": {"kind": "axial_rope"}},
            "layer 0 has positions axial_rope, which is for the tokens of pictures, but those of",
        ),
        (
            {"mixer": ATTENTION | {"head_dim": 6}, "positions": {"kind": "axial_rope"}},
            "but head_dim is 6; choose sizes that give a multiple of 4",
        ),
        (
            {"mixer": BOTH_WAYS, "positions": {"kind": "axial_rope"}},
            "positions are axial_rope, which no layer uses (mixers: bidirectional); give another",
        ),
        (
            {
                "mixer": {"kind": "scanned", "mixer": ATTENTION},
                "positions": {"kind": "axial_rope"},
            },
            "positions are axial_rope, but scanned gives its mixer attention the tokens in another "
            "order than the picture's; give positions rope or none",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_mixers_that_do_not_fit_the_order_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValidationError) as raised:
        model_of(**options)
    assert message in str(raised.value)


def test_the_first_token_of_an_encoder_sees_the_last_through_every_mixer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of a picture behind a class token, whose parameters are made on a row of two."""
    monkeypatch.setitem(INPUTS, PictureConfig, Tokens)
    scanned = {"kind": "scanned", "mixer": BOTH_WAYS | {"shared": True}}
    side_by_side = {"kind": "parallel", "mixers": [ATTENTION, BOTH_WAYS]}
    model = model_of(
        mixer=scanned,
        pattern=[{}, {"mixer": side_by_side, "positions": {"kind": "axial_rope"}}],
        inputs={"kind": "picture"},
    )
    params = model.init(jax.random.key(0), jnp.zeros((1, 2), jnp.int32))
    logits = jax.jit(lambda tokens: model.apply(params, tokens))
    tokens = jnp.zeros((1, 7), jnp.int32)
    difference = logits(tokens) - logits(tokens.at[0, 6].set(1))
    assert (np.abs(difference).max(-1) > 0).all()
    with pytest.raises(ValueError, match="8 tokens, but a picture of 2 × 3 behind 1 others has 7"):
        logits(jnp.zeros((1, 8), jnp.int32))


def test_an_encoder_has_no_decoding_state() -> None:
    model = model_of(mixer=ATTENTION, pattern=[{}, {"mixer": BOTH_WAYS}])
    assert cache_bytes(model, 64) == 0
    with pytest.raises(UserError, match="the mixer attention lets tokens see those behind them"):
        model.init_cache(1, 64)
