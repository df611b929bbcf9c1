"""Training with the zoo's engines against training with attention, and against a scan over tokens.

    python benchmarks/mixers.py [--mixers retention gla] [--turns 3] [--steps 3]

The project's own train step on the model of `bare.Sizes` with its mixer replaced, on rows of 256
and of 2,048 tokens, with equally many tokens per batch. All take turns in one process. `--scan`
adds every mixer with its engine token by token (`ops.recurrent`) at 2,048, for one step per turn:
how many times as long the step takes, and how many times as long the engine alone takes, with its
gradient, for one layer.
"""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import jax
import jax.numpy as jnp
import numpy as np
from step import ATTENTION, SIZES, configuration, project_step, seconds
from zoo import mixer

from jaxformer.ops.decay import State
from jaxformer.ops.decayed_outer_product import decayed_outer_product
from jaxformer.ops.delta_rule import delta_rule
from jaxformer.ops.recurrent import token_by_token

ENGINES: dict[str, Callable] = {
    "retention": decayed_outer_product,
    "mamba2": decayed_outer_product,
    "gla": decayed_outer_product,
    "gated_delta": delta_rule,
}
LENGTHS = (256, 2048)


def train_step(kind: str, length: int, run: Path) -> Callable[[], jax.Array]:
    """A function that takes one step."""
    chosen = ATTENTION if kind == "attention" else mixer(kind)
    print(f"compiling {kind} at {length:,}", flush=True)
    return project_step(configuration(run, 1, mixer=chosen, length=length))[0]


def scanned_step(kind: str, length: int, run: Path) -> Callable[[], jax.Array]:
    """The same with the engine token by token."""
    engine = ENGINES[kind]
    with patch(f"jaxformer.model.mixers.{kind}.{engine.__name__}", scanned(engine)):
        return train_step(kind, length, run)


def scanned(engine: Callable) -> Callable:
    """The engine token by token."""

    def run(*arguments: jax.Array) -> tuple:
        *inputs, segment_ids, state = arguments
        return token_by_token(engine, tuple(inputs), segment_ids, state)

    return run


def engine_gradient(kind: str, engine: Callable, length: int) -> Callable[[], jax.Array]:
    """A function that runs the engine of one layer and its gradient."""
    batch, heads = SIZES.batch * SIZES.length // length, SIZES.heads
    size, keys = SIZES.d_model // heads, iter(jax.random.split(jax.random.key(0), 8))

    def normal(*shape: int) -> jax.Array:
        return jax.random.normal(next(keys), (batch, length, *shape))

    groups = 1 if kind == "mamba2" else heads
    q, k, v = normal(groups, size), normal(groups, size), normal(heads, size)
    log_decay = -jnp.abs(normal(heads, size if kind == "gla" else 1))
    inputs: tuple[jax.Array, ...] = (q, k, v, log_decay)
    if kind == "gated_delta":
        unit = k / jnp.linalg.norm(k, axis=-1, keepdims=True)
        inputs = (q, unit, v, jax.nn.sigmoid(normal(heads)), log_decay)
    segment_ids = jnp.ones((batch, length), jnp.int32)
    state = State(jnp.zeros((batch, heads, size, size)), segment_ids[:, 0])

    weights = normal(heads, size)

    @jax.jit
    def gradient(inputs: tuple) -> tuple:
        def total(inputs: tuple) -> jax.Array:
            return jnp.sum(weights * engine(*inputs, segment_ids, state)[0])

        return jax.grad(total)(inputs)

    jax.block_until_ready(gradient(inputs))
    return lambda: gradient(inputs)[0]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--mixers", nargs="+", default=list(ENGINES), choices=list(ENGINES))
    parser.add_argument("--turns", type=int, default=3, help="turns of each (default 3)")
    parser.add_argument("--steps", type=int, default=3, help="steps per turn (default 3)")
    parser.add_argument("--scan", action="store_true", help="also run engines token by token")
    arguments = parser.parse_args()
    kinds = ["attention", *arguments.mixers]
    print(
        f"{jax.devices()[0].device_kind}, jax {jax.__version__}, tokens/s, medians over the turns"
    )
    for length in LENGTHS:
        with tempfile.TemporaryDirectory() as directory:
            run = Path(directory)
            steps = {kind: train_step(kind, length, run) for kind in kinds}
            scans = {}
            if arguments.scan and length == LENGTHS[-1]:
                scans = {kind: scanned_step(kind, length, run) for kind in arguments.mixers}
            times: dict[str, list[float]] = {name: [] for name in [*kinds, *map(_scan, scans)]}
            for _ in range(arguments.turns):
                for kind, step in steps.items():
                    times[kind] += seconds(step, arguments.steps)
                for kind, step in scans.items():
                    times[_scan(kind)] += seconds(step, 1)
        tokens = SIZES.batch * SIZES.length
        rates = {name: tokens / np.median(values) for name, values in times.items()}
        for kind in kinds:
            line = f"{length:6,} {kind:12} {rates[kind]:8,.0f}"
            line += f"  {rates[kind] / rates['attention']:.2f} of attention"
            if kind in scans:
                line += f"  {rates[kind] / rates[_scan(kind)]:.1f} of its scan"
                line += f"  {engine_ratio(kind, length, arguments.turns):.1f} the engine alone"
            print(line, flush=True)


def engine_ratio(kind: str, length: int, turns: int) -> float:
    """Seconds of the engine token by token, over those in chunks.

    The first call of a turn, which finds its memory taken by the other form, does not count.
    """
    engine = ENGINES[kind]
    forms = [engine_gradient(kind, form, length) for form in (scanned(engine), engine)]
    times = [[seconds(form, 4)[1:] for form in forms] for _ in range(turns)]
    token, chunks = np.median(np.swapaxes(times, 0, 1).reshape(2, -1), axis=1)
    return float(token / chunks)


def _scan(kind: str) -> str:
    return f"{kind}, a token at a time"


if __name__ == "__main__":
    main()
