"""Pictures as patches, and classes of rows, against their definitions in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta
from pydantic import ValidationError

from jaxformer.model.accounting import count_parameters, flops_per_token
from jaxformer.model.config import ModelConfig
from jaxformer.model.language_model import LanguageModel, build_model

HEIGHT, WIDTH, PATCH, CLASSES = 6, 9, 3, 4
MODEL = {
    "d_model": 8,
    "num_layers": 1,
    "mixer": {"kind": "attention", "num_heads": 2},
    "ffn": {"kind": "gelu", "d_hidden": 12},
    "order": "full",
    "positions": {"kind": "none"},
    "norm": {"kind": "layer"},
    "outputs": {"kind": "classes"},
    "tie_embeddings": False,
}
PICTURES = {
    "kind": "patches",
    "size": [HEIGHT, WIDTH],
    "channels": 2,
    "patch": PATCH,
    "mean": [0.25, 0.5],
    "std": [0.5, 0.125],
}
PLACES = HEIGHT * WIDTH // PATCH**2


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def model_of(inputs: dict | None = None, **model: object) -> tuple[LanguageModel, dict]:
    config = ModelConfig.model_validate(MODEL | model | {"inputs": PICTURES | (inputs or {})})
    model = build_model(config, vocab_size=CLASSES, dtype=jnp.float64)
    example = config.inputs.example
    start = jax.jit(model.init)(jax.random.key(0), jnp.zeros(example.shape, example.dtype))
    params = meta.unbox(start["params"])
    leaves, tree = jax.tree.flatten(params)
    random = np.random.default_rng(1)
    moved = [leaf.astype(np.float64) + 0.3 * random.normal(size=leaf.shape) for leaf in leaves]
    return model, jax.tree.unflatten(tree, moved)


def pictures(rows: int) -> np.ndarray:
    random = np.random.default_rng(2)
    return random.integers(0, 256, (rows, HEIGHT, WIDTH, 2)).astype(np.uint8)


def embedded(model: LanguageModel, params: dict, images: np.ndarray) -> jax.Array:
    def embed(model: LanguageModel) -> jax.Array:
        return model.inputs.embed(images, model.inputs.rows_of(images))

    return model.apply({"params": params}, method=embed)


def convolved(params: dict, images: np.ndarray) -> jax.Array:
    """The embeddings as a convolution with a stride, [batch, patches, d_model]."""
    pixels = (images / 255.0 - np.array([0.25, 0.5])) / np.array([0.5, 0.125])
    kernel = params["patch_projection"]["kernel"].reshape(PATCH, PATCH, 2, -1)
    dims = ("NHWC", "HWIO", "NHWC")
    made = jax.lax.conv_general_dilated(
        jnp.asarray(pixels), kernel, (PATCH, PATCH), "VALID", dimension_numbers=dims
    )
    return made.reshape(len(images), PLACES, -1) + params["patch_projection"]["bias"]


def test_patches_are_a_convolution_of_normalised_pixels():
    model, params = model_of()
    images = pictures(2)
    np.testing.assert_allclose(
        embedded(model, params, images), convolved(params, images), rtol=0, atol=1e-12
    )


def test_tokens_before_the_patches_are_learned_and_only_the_class_token_has_a_position():
    inputs = {"class_token": True, "registers": 2}
    model, params = model_of(inputs, positions={"kind": "learned", "max_length": PLACES + 1})
    images, table = pictures(2), params["position_embedding"]
    x = embedded(model, params, images)
    assert x.shape == (2, 1 + 2 + PLACES, 8)
    np.testing.assert_array_equal(x[0, 0], params["class_token"] + table[0])
    np.testing.assert_array_equal(x[1, 1:3], params["registers"])
    np.testing.assert_allclose(x[:, 3:], convolved(params, images) + table[1:], rtol=0, atol=1e-12)


def test_a_stem_is_convolutions_with_zeros_around_the_picture():
    options = {"size": [8, 4], "patch": 4, "stem": [3, 5]}
    images = np.random.default_rng(4).integers(0, 256, (2, 8, 4, 2)).astype(np.uint8)
    model, params = model_of(options)
    x = (images / 255.0 - np.array([0.25, 0.5])) / np.array([0.5, 0.125])
    for number in range(2):
        layer = params[f"stem_{number}"]
        padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        height, width = x.shape[1] // 2, x.shape[2] // 2
        made = np.zeros((2, height, width, layer["kernel"].shape[-1]))
        for i, j in np.ndindex(height, width):
            window = padded[:, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3]
            made[:, i, j] = np.tensordot(window, layer["kernel"], 3)
        centred = made - made.mean(-1, keepdims=True)
        normed = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6)
        x = np.asarray(jax.nn.gelu(normed * layer["norm"]["scale"]))
    expected = x.reshape(2, 2, 5) @ params["patch_projection"]["kernel"]
    expected += params["patch_projection"]["bias"]
    np.testing.assert_allclose(embedded(model, params, images), expected, rtol=0, atol=1e-12)


def test_sinusoids_on_the_grid_tell_rows_from_columns():
    (plain, params), (model, _) = model_of(), model_of(positions={"kind": "sinusoidal_2d"})
    images = pictures(1)
    added = embedded(model, params, images) - embedded(plain, params, images)
    rows, columns = np.mgrid[: HEIGHT // PATCH, : WIDTH // PATCH].reshape(2, -1)
    waves = np.array([1.0, 1e-4])
    expected = [
        [*np.sin(x * waves), *np.cos(x * waves), *np.sin(y * waves), *np.cos(y * waves)]
        for y, x in zip(rows, columns, strict=True)
    ]
    np.testing.assert_allclose(added[0], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("pool", ["mean", "first"])
def test_logits_are_those_of_the_pooled_output(pool):
    model, params = model_of({"class_token": True}, outputs={"kind": "classes", "pool": pool})
    images = pictures(3)
    logits = model.apply({"params": params}, images)
    x, _, _ = model.apply({"params": params}, images, method="hidden")
    pooled = x.mean(axis=1) if pool == "mean" else x[:, 0]
    np.testing.assert_allclose(logits, pooled @ params["head"] + params["head_bias"], rtol=1e-12)
    # Rows that only fill up a batch have no tokens, and leave the others as they are.
    positions = np.broadcast_to(np.arange(PLACES), (3, PLACES))
    segment_ids = np.ones((3, PLACES), int) * np.array([[1], [0], [1]])
    filled, _ = model.apply({"params": params}, images, positions, segment_ids, method="classify")
    for row in (0, 2):
        np.testing.assert_array_equal(filled[row], logits[row])
    assert np.isfinite(filled).all()


def test_a_picture_costs_what_its_parts_cost():
    model, _ = model_of({"class_token": True}, ffn=None, mixer=MODEL["mixer"])
    attention = 2 * 4 * 8**2 + 4 * 8 * (PLACES + 1)  # per token: projections and pairs
    pixels = PATCH**2 * 2
    per_picture = (PLACES + 1) * attention + PLACES * 2 * pixels * 8 + 2 * 8 * CLASSES
    assert flops_per_token(model, PLACES) * PLACES == pytest.approx(per_picture, rel=1e-12)
    norms = 2 * 8
    attends = 4 * 8**2
    ends = (pixels + 1) * 8 + 8 + (8 + 1) * CLASSES
    assert count_parameters(model) == attends + norms + ends


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"inputs": PICTURES | {"patch": 4}},
            r"inputs.size \[6, 9\] is not divisible by inputs.patch 4; give a patch that divides",
        ),
        (
            {"inputs": PICTURES | {"stem": [4]}},
            "inputs.patch 3 cannot be halved by each of the 1 convolutions of inputs.stem; give a "
            "multiple of 2",
        ),
        (
            {"inputs": PICTURES | {"mean": [0.1, 0.2, 0.3]}},
            "inputs.mean has 3 numbers for 2 channels; give one, or one per channel",
        ),
        (
            {
                "inputs": PICTURES | {"class_token": True},
                "positions": {"kind": "learned", "max_length": 6},
            },
            "positions.max_length is 6, but a picture has 7 places with a position, its class "
            "token among them if it has one; give positions.max_length=7",
        ),
        (
            {"tie_embeddings": True},
            "tie_embeddings is true, but inputs patches have no table of embeddings to share; give "
            "tie_embeddings: false",
        ),
        (
            {"inputs": {"kind": "tokens"}, "positions": {"kind": "sinusoidal_2d"}},
            "positions are sinusoidal_2d, but inputs tokens are no pictures; allowed: sinusoidal",
        ),
        (
            {"mixer": {"kind": "retention", "num_heads": 2}},
            "order is full, but the mixer of layer 0, retention, goes from the first token to the "
            "last; give mixer={kind: bidirectional, mixer: {kind: retention, ...}}",
        ),
    ],
)
def test_what_does_not_fit_is_refused(changed, message):
    with pytest.raises(ValidationError, match=message):
        ModelConfig.model_validate(MODEL | {"inputs": PICTURES} | changed)
