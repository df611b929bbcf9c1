"""A mixture of experts beside the dense feed-forward network with the same active FLOPs.

    python benchmarks/experts.py layer [--turns 15]
    python benchmarks/experts.py model [--turns 3] [--steps 20]

layer: one layer of 4,096 tokens of width 256, 16 experts of which each token visits 2, forward and
    backward, beside a dense SwiGLU twice as wide as an expert.
model: training steps of the model of `step.py` with such experts in every layer, beside the dense
    one with the same active parameters but for the router.

What is compared takes turns in one process, since a noisy machine disturbs both alike; times are
medians.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
from flax.core import meta
from step import SIZES, configuration, project_step

from jaxformer.config import Config
from jaxformer.model.channel_mixers import ChannelMixerConfig, build_channel_mixer
from jaxformer.model.channel_mixers.dense import DenseConfig
from jaxformer.model.channel_mixers.moe import MoEConfig
from jaxformer.model.dims import Dims, InitConfig
from jaxformer.model.rows import RowInfo

TOKENS, WIDTH = 4096, 256
SPARSE = {"kind": "moe", "num_experts": 16, "experts_per_token": 2}
WIDTHS = (344, 512)  # of an expert


def of_layer(config: ChannelMixerConfig) -> Callable[[], jax.Array]:
    """One forward and backward pass of a layer, in the gradients of weights and input."""
    layer = build_channel_mixer(config, Dims(WIDTH, 6, InitConfig(), jnp.float32))
    ones = jnp.ones((TOKENS // 256, 256), jnp.int32)
    rows, x = RowInfo(ones, ones), jax.random.normal(jax.random.key(0), (TOKENS, WIDTH))
    params = meta.unbox(layer.init(jax.random.key(1), x, rows)["params"])

    @jax.jit
    def gradients(params: dict, x: jax.Array) -> tuple:
        def loss(params: dict, x: jax.Array) -> jax.Array:
            return jnp.sum(jnp.square(layer.apply({"params": params}, x, rows)[0]))

        return jax.grad(loss, (0, 1))(params, x)

    return lambda: gradients(params, x)


def seconds(function: Callable[[], object]) -> float:
    began = time.perf_counter()
    jax.block_until_ready(function())
    return time.perf_counter() - began


def compare_layers(turns: int) -> None:
    for width in WIDTHS:
        sparse = of_layer(MoEConfig.model_validate(SPARSE | {"d_hidden": width}))
        dense = of_layer(DenseConfig(kind="swiglu", d_hidden=2 * width))
        seconds(sparse), seconds(dense)
        pairs = [(seconds(sparse), seconds(dense)) for _ in range(turns)]
        times = [1e3 * statistics.median(column) for column in zip(*pairs, strict=True)]
        ratio = statistics.median(one / other for one, other in pairs)
        print(
            f"experts of width {width}: {times[0]:.1f} ms, dense {times[1]:.1f} ms, "
            f"{ratio:.2f} times as long"
        )


def of_model(run: Path, steps: int, ffn: dict) -> Config:
    config = configuration(run, steps)
    return Config.model_validate(
        config.model_dump() | {"model": config.model.model_dump() | {"ffn": ffn}}
    )


def compare_models(turns: int, steps: int) -> None:
    width = SIZES.d_hidden // 2
    ffns = {
        "experts": SPARSE | {"d_hidden": width, "balance": {"bias_rate": 0.001}},
        "dense": {"kind": "swiglu", "d_hidden": SIZES.d_hidden},
    }
    with tempfile.TemporaryDirectory() as folder:
        steps_of = {
            name: project_step(of_model(Path(folder) / name, steps, ffn))[0]
            for name, ffn in ffns.items()
        }
    speeds: dict[str, list[float]] = {name: [] for name in ffns}
    for _ in range(turns):
        for name, step in steps_of.items():
            began = time.perf_counter()
            for _ in range(steps):
                loss = step()
            jax.block_until_ready(loss)
            speeds[name].append(SIZES.batch * SIZES.length * steps / (time.perf_counter() - began))
    ratios = [one / other for one, other in zip(*speeds.values(), strict=True)]
    for name, each in speeds.items():
        print(f"{name}: {statistics.median(each):,.0f} tokens/s")
    print(f"experts at {statistics.median(ratios):.2f} of dense")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=("layer", "model"), help="what is compared")
    parser.add_argument("--turns", type=int, default=5, help="how often each takes its turn")
    parser.add_argument("--steps", type=int, default=20, help="training steps per turn")
    arguments = parser.parse_args()
    if arguments.part == "layer":
        compare_layers(arguments.turns)
    else:
        compare_models(arguments.turns, arguments.steps)


if __name__ == "__main__":
    main()
