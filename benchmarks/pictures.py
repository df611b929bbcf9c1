"""The project's train step of a Vision Transformer against a bare one.

    python benchmarks/pictures.py [--turns 3] [--steps 20]

Both train the model of `Sizes` in float32 with AdamW and clipping on the same batch. They take
turns in one process, `--steps` at a time, so that a noisy machine disturbs both alike.
"""

import argparse
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from bare import adamw
from step import seconds

from jaxformer.batch import Batch
from jaxformer.config import Config
from jaxformer.parallel.mesh import make_mesh
from jaxformer.parallel.rules import batch_sharding, put_batch
from jaxformer.train.program import make_program


class Sizes(NamedTuple):
    """The model of the benchmark: a ViT for pictures of 32 × 32."""

    layers: int = 6
    d_model: int = 192
    heads: int = 3
    d_hidden: int = 768
    side: int = 32
    patch: int = 4
    classes: int = 10
    batch: int = 64

    @property
    def places(self) -> int:
        return (self.side // self.patch) ** 2


SIZES = Sizes()


def pictures() -> tuple[np.ndarray, np.ndarray]:
    """uint8 [batch, side, side, 3], int32 [batch, 1]"""
    random = np.random.default_rng(0)
    shape = (SIZES.batch, SIZES.side, SIZES.side, 3)
    images = random.integers(0, 256, shape, dtype=np.uint8)
    return images, random.integers(0, SIZES.classes, (SIZES.batch, 1), dtype=np.int32)


def project_step() -> Callable[[], jax.Array]:
    """A function that takes one step of the project and returns its loss."""
    config = Config.model_validate(
        {
            "model": {
                "d_model": SIZES.d_model,
                "num_layers": SIZES.layers,
                "mixer": {"kind": "attention", "num_heads": SIZES.heads},
                "ffn": {"kind": "gelu", "d_hidden": SIZES.d_hidden},
                "norm": {"kind": "layer"},
                "order": "full",
                "positions": {"kind": "learned", "max_length": SIZES.places},
                "inputs": {"kind": "patches", "size": [SIZES.side] * 2, "patch": SIZES.patch},
                "outputs": {"kind": "classes"},
                "tie_embeddings": False,
            },
            "data": {
                "kind": "images",
                "source": "imagefolder:unused",
                "images": {"size": [SIZES.side] * 2},
                "sequence_length": SIZES.places,
            },
            "train": {"batch_size": SIZES.batch, "objective": {"kind": "classes"}},
        }
    )
    program = make_program(config, make_mesh(config.mesh.sizes), SIZES.classes)
    state = program.initial_state()
    compiled = program.compile(None)
    images, targets = pictures()
    shape = (SIZES.batch, SIZES.places)
    positions = np.broadcast_to(np.arange(SIZES.places, dtype=np.int32), shape)
    ones = np.ones(shape, np.int32)
    rows = Batch(images, targets, positions, ones, np.ones((SIZES.batch, 1), bool))
    batch = put_batch(rows, batch_sharding(program.mesh))

    def step() -> jax.Array:
        nonlocal state
        state, metrics = compiled.train_step(state, batch)
        return metrics["loss"]

    step().block_until_ready()
    return step


def init(key: jax.Array) -> dict:
    """Parameters of the bare model, with one dictionary per layer."""
    d, f = SIZES.d_model, SIZES.d_hidden
    keys = iter(jax.random.split(key, 6 * SIZES.layers + 2))

    def matrix(rows: int, columns: int) -> jax.Array:
        return 0.02 * jax.random.normal(next(keys), (rows, columns))

    layers = [
        {
            "mixer_norm": jnp.ones(d),
            **{name: matrix(d, d) for name in "qkvo"},
            "ffn_norm": jnp.ones(d),
            "in": matrix(d, f),
            "out": matrix(f, d),
        }
        for _ in range(SIZES.layers)
    ]
    return {
        "patch": matrix(3 * SIZES.patch**2, d),
        "patch_bias": jnp.zeros(d),
        "positions": matrix(SIZES.places, d),
        "layers": layers,
        "norm": jnp.ones(d),
        "head": jnp.zeros((d, SIZES.classes)),
        "head_bias": jnp.zeros(SIZES.classes),
    }


def _norm(x: jax.Array, scale: jax.Array) -> jax.Array:
    x = x - jnp.mean(x, -1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6) * scale


def loss(params: dict, images: jax.Array, targets: jax.Array) -> jax.Array:
    """Mean cross-entropy of [batch, side, side, 3] pictures."""
    batch, cells = len(images), SIZES.side // SIZES.patch
    d, head_dim = SIZES.d_model, SIZES.d_model // SIZES.heads
    pixels = (images.astype(jnp.float32) / 255 - 0.5) / 0.5
    patches = pixels.reshape(batch, cells, SIZES.patch, cells, SIZES.patch, 3).swapaxes(2, 3)
    x = patches.reshape(batch * SIZES.places, -1) @ params["patch"] + params["patch_bias"]
    x = (x.reshape(batch, SIZES.places, d) + params["positions"]).reshape(-1, d)
    for layer in params["layers"]:
        y = _norm(x, layer["mixer_norm"])
        q, k, v = (
            (y @ layer[name]).reshape(batch, SIZES.places, SIZES.heads, head_dim) for name in "qkv"
        )
        weights = jax.nn.softmax(jnp.einsum("bqhd,bshd->bhqs", q * head_dim**-0.5, k), axis=-1)
        x = x + jnp.einsum("bhqs,bshd->bqhd", weights, v).reshape(-1, d) @ layer["o"]
        y = _norm(x, layer["ffn_norm"])
        x = x + jax.nn.gelu(y @ layer["in"]) @ layer["out"]
    pooled = jnp.mean(_norm(x, params["norm"]).reshape(batch, SIZES.places, d), axis=1)
    log_probs = jax.nn.log_softmax(pooled @ params["head"] + params["head_bias"])
    return -jnp.mean(jnp.take_along_axis(log_probs, targets, axis=1))


def bare_step() -> Callable[[], jax.Array]:
    """The same for the bare step."""
    params = init(jax.random.key(0))
    moments = (jax.tree.map(jnp.zeros_like, params), jax.tree.map(jnp.zeros_like, params))
    images, targets = map(jnp.asarray, pictures())
    count = 0

    def whole_step(params: dict, moments: tuple, count: jax.Array) -> tuple:
        value, gradients = jax.value_and_grad(loss)(params, images, targets)
        return (*adamw(params, moments, count, gradients), value)

    jitted = jax.jit(whole_step, donate_argnums=(0, 1))

    def step() -> jax.Array:
        nonlocal params, moments, count
        params, moments, value = jitted(params, moments, jnp.int32(count))
        count += 1
        return value

    step().block_until_ready()
    return step


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--turns", type=int, default=3, help="turns of each one (default 3)")
    parser.add_argument("--steps", type=int, default=20, help="steps per turn (default 20)")
    arguments = parser.parse_args()
    steps = {"bare": bare_step(), "project": project_step()}
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(arguments.turns):
        for name, step in steps.items():
            times[name] += seconds(step, arguments.steps)
    rates = {name: SIZES.batch / float(np.median(values)) for name, values in times.items()}
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}, medians over the turns")
    print(f"bare step      {rates['bare']:8,.0f} pictures/s")
    print(f"project's step {rates['project']:8,.0f} pictures/s")
    print(f"ratio          {rates['project'] / rates['bare']:.3f}")


if __name__ == "__main__":
    main()
