"""What BERT has below and above its layers, against its equations."""

import numpy as np
from scipy.special import erf

from jaxformer.model.config import ModelConfig
from jaxformer.model.language_model import build_model
from tests.weights import drawn

VOCAB = 11
CONFIG = ModelConfig.model_validate(
    {
        "d_model": 8,
        "num_layers": 1,
        "vocab_size": VOCAB,
        "mixer": {"kind": "attention", "num_heads": 2},
        "ffn": {"kind": "exact_gelu", "d_hidden": 12},
        "order": "full",
        "norm": {"kind": "layer", "placement": "post", "bias": True},
        "positions": {"kind": "learned", "max_length": 16},
        "inputs": {"kind": "typed_tokens", "types": 3},
        "outputs": {"kind": "transformed"},
    }
)
TOKENS = np.array([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])


def normed(x: np.ndarray, norm: dict) -> np.ndarray:
    centred = x - x.mean(-1, keepdims=True)
    deviation = np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6)
    return centred / deviation * norm["scale"] + norm["bias"]


def made() -> tuple:
    """The model, and weights none of which is as trivial as it starts."""
    model = build_model(CONFIG)
    return model, drawn(model, TOKENS)


def test_the_layers_read_a_norm_of_token_position_and_type() -> None:
    model, params = made()
    found = model.apply({"params": params}, TOKENS, np.arange(5)[None], method="embed")
    table, places, types = (
        np.asarray(params[name]) for name in ("embedding", "position_embedding", "type_embedding")
    )
    expected = normed(table[TOKENS] + places[:5] + types[0], params["embedding_norm"])
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_logits_are_of_a_layer_more_and_have_a_bias() -> None:
    model, params = made()
    states, _, _ = model.apply({"params": params}, TOKENS, method="trunk")
    x = np.asarray(states) @ params["transform"]["kernel"] + params["transform"]["bias"]
    y = normed(x * (1 + erf(x / 2**0.5)) / 2, params["transform_norm"])
    expected = y @ np.asarray(params["embedding"]).T + params["head_bias"]
    found = model.apply({"params": params}, TOKENS)
    np.testing.assert_allclose(found, expected, atol=1e-4)
