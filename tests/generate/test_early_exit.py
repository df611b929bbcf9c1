"""Early exits against plain decoding, and against layers run one by one in the test."""

from collections.abc import Iterator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta

from jaxformer.errors import UserError
from jaxformer.generate.decode import Decoder
from jaxformer.generate.early_exit import Exit, ExitingDecoder, ExitStats
from jaxformer.generate.sampling import Sampling
from jaxformer.model.block import Block
from jaxformer.model.config import ModelConfig
from jaxformer.model.language_model import LanguageModel, build_model
from jaxformer.model.rows import RowInfo

PROMPTS = [[3, 1, 4, 1, 5], [6], [2, 6, 5]]
NO_EOS = -1
LENGTH = 24
GREEDY = Sampling(temperature=0)


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module")
def plain() -> Decoder:
    """Two repetitions of attention and a recurrence, and a tail of one layer."""
    config = {
        "d_model": 8,
        "num_layers": 5,
        "vocab_size": 7,
        "mixer": {"kind": "attention", "num_heads": 2},
        "pattern": [{}, {"mixer": {"kind": "min_gru"}}],
        "ffn": {"kind": "swiglu", "d_hidden": 8},
        "init": {"std": 0.5, "output": "plain"},
    }
    with jax.enable_x64(True):
        model = build_model(ModelConfig.model_validate(config), dtype=jnp.float64)
        params = jax.jit(model.init)(jax.random.key(1), jnp.zeros((1, 2), jnp.int32))["params"]
        return Decoder.of(model, meta.unbox(params), NO_EOS)


def continuation(decoder: Decoder, prompts: list, **options: object) -> np.ndarray:
    options = {"max_new_tokens": 17, "sampling": GREEDY} | options
    return np.concatenate(list(decoder.decode(prompts, **options)), axis=1)


@pytest.mark.parametrize("by", ["margin", "state"])
def test_no_row_leaves_at_a_confidence_of_one(plain: Decoder, by: str) -> None:
    decoder = ExitingDecoder.from_decoder(plain, Exit(1.0, by))
    stats = decoder.new_stats()
    rows = continuation(decoder, PROMPTS, stats=stats)
    np.testing.assert_array_equal(rows, continuation(plain, PROMPTS))
    assert str(stats).splitlines()[1] == "tokens left after 5.00 of 5 layers"


def test_rows_that_leave_early_are_those_of_the_definition(plain: Decoder) -> None:
    """Without a cache, every place anew: what a layer reads of an earlier token is the state with
    which it left, or that of the layer below."""
    expected_layers = []
    confidence = 0.4
    decoder = ExitingDecoder.from_decoder(plain, Exit(confidence))
    stats = ExitStats(num_layers=5)
    found = continuation(decoder, PROMPTS, stats=stats)
    for prompt, row in zip(PROMPTS, found, strict=True):
        alone = continuation(decoder, [prompt])[0]  # whatever leaves beside it
        np.testing.assert_array_equal(alone, row)
        tokens, layers = defined(plain, prompt, 17, confidence)
        assert tokens == row.tolist()
        expected_layers += layers
    assert stats.exit_layers == sum(expected_layers)
    assert stats.tokens == len(expected_layers) == 3 * 16
    assert len(set(expected_layers)) == 3  # after 2 layers, 4 and all 5


def defined(
    plain: Decoder, prompt: list[int], count: int, confidence: float
) -> tuple[list[int], list[int]]:
    """The tokens, and the layers that each after the first has passed: layer by layer over the
    whole row, in which a token that has left keeps its state."""
    model, params = plain.model, plain.params
    states_of = jax.jit(partial(states_of_row, model, params))
    logits_of = jax.jit(lambda x: model.apply({"params": params}, x, method="logits"))
    tokens = np.zeros((1, LENGTH), np.int32)
    tokens[0, : len(prompt)] = prompt
    left = np.full(LENGTH, 5)
    made, passed = [], []
    for last in range(len(prompt) - 1, len(prompt) - 1 + count):
        states = states_of(tokens, left)[:, last]
        if made:  # the newest token may leave as soon as it is sure
            for layers in (2, 4):
                first, second = jax.lax.top_k(jax.nn.softmax(logits_of(states[layers])), 2)[0]
                if first - second > confidence:
                    left[last] = layers
                    break
            passed.append(int(left[last]))
        made.append(int(jnp.argmax(logits_of(states[left[last]]))))
        tokens[0, last + 1] = made[-1]
    return made, passed


def states_of_row(
    model: LanguageModel, params: dict, tokens: jax.Array, left: jax.Array
) -> jax.Array:
    """The state of each token before the first layer and after each, [layers + 1, length, d]."""
    depth, bind = model.depth(parent=None), {"params": params}
    positions = jnp.arange(LENGTH)[None]
    x = model.apply(bind, tokens, positions, method="embed")
    rows = RowInfo(positions, jnp.ones_like(tokens))
    states = [x]
    for name, layers, _ in depth.parts():
        for index, layer in enumerate(layers):
            block = Block(layer, depth.residual, depth.dims, parent=None)
            own = {"params": params["stack"][name][f"layer_{index}"]}
            goes_on = left[None, :, None] >= len(states)
            x = jnp.where(goes_on, block.apply(own, x, rows)[0], x)
            states.append(x)
    return jnp.concatenate(states)


def test_a_rule_out_of_range_is_refused() -> None:
    with pytest.raises(UserError, match=r"exit_confidence is 1.5; allowed: 0 to 1 \(never exit\)"):
        Exit(1.5)
    with pytest.raises(UserError, match="exit_by is 'mean'; allowed: margin, state"):
        Exit(0.5, "mean")
