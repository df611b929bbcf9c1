"""The project's train step against a bare one, and the loop's own time.

    python benchmarks/step.py [--turns 3] [--steps 20]

Both steps train the model of `bare.Sizes` in float32 with AdamW and clipping, from the same kind of
batch. They take turns in one process, `--steps` at a time, so that a noisy machine disturbs both
alike; the third to take its turn is the loop, a real run of `jaxformer.train.run.train`.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from bare import Sizes, init, train_step

from jaxformer.batch import Batch
from jaxformer.config import Config
from jaxformer.parallel.mesh import make_mesh
from jaxformer.parallel.rules import batch_sharding, put_batch
from jaxformer.train.program import make_program
from jaxformer.train.run import train

SIZES = Sizes()


ATTENTION = {"kind": "attention", "num_heads": SIZES.heads}


def configuration(
    run: Path, steps: int, *, mixer: dict = ATTENTION, length: int = SIZES.length
) -> Config:
    """The benchmark's model on the built-in corpus; nothing but steps, and a row for each.

    A batch has the same number of tokens at every length.
    """
    return Config.model_validate(
        {
            "model": {
                "d_model": SIZES.d_model,
                "num_layers": SIZES.layers,
                "vocab_size": SIZES.vocab,
                "mixer": mixer,
                "ffn": {"kind": "swiglu", "d_hidden": SIZES.d_hidden},
                "tie_embeddings": False,
            },
            "data": {"sequence_length": length, "validation_fraction": 0.0},
            "train": {
                "steps": steps,
                "batch_size": SIZES.batch * SIZES.length // length,
                "log_every": 1,
            },
            "run": {"dir": str(run)},
        }
    )


def project_step(config: Config) -> tuple[Callable[[], jax.Array], float]:
    """A function that takes one step of the project and returns its loss, and the seconds of the
    first call."""
    began = time.perf_counter()
    program = make_program(config, make_mesh(config.mesh.sizes), SIZES.vocab)
    state = program.initial_state()
    compiled = program.compile(None)
    shape = (config.train.batch_size, config.data.sequence_length)
    tokens = random_tokens(*shape)
    positions = np.broadcast_to(np.arange(shape[1], dtype=np.int32), shape)
    rows = Batch(
        tokens[:, :-1], tokens[:, 1:], positions, np.ones(shape, np.int32), np.ones(shape, bool)
    )
    batch = put_batch(rows, batch_sharding(program.mesh))

    def step() -> jax.Array:
        nonlocal state
        state, metrics = compiled.train_step(state, batch)
        return metrics["loss"]

    step().block_until_ready()
    return step, time.perf_counter() - began


def bare_step() -> tuple[Callable[[], jax.Array], float]:
    """The same for the bare step."""
    began = time.perf_counter()
    params = init(jax.random.key(0), SIZES)
    moments = (jax.tree.map(jnp.zeros_like, params), jax.tree.map(jnp.zeros_like, params))
    jitted = jax.jit(train_step, donate_argnums=(0, 1))
    tokens = jnp.asarray(random_tokens(SIZES.batch, SIZES.length))
    inputs, targets, count = tokens[:, :-1], tokens[:, 1:], 0

    def step() -> jax.Array:
        nonlocal params, moments, count
        params, moments, loss = jitted(params, moments, jnp.int32(count), inputs, targets)
        count += 1
        return loss

    step().block_until_ready()
    return step, time.perf_counter() - began


def random_tokens(batch: int, length: int) -> np.ndarray:
    """[batch, length + 1]"""
    shape = (batch, length + 1)
    return np.random.default_rng(0).integers(0, SIZES.vocab, shape, dtype=np.int32)


def seconds(step: Callable[[], jax.Array], steps: int) -> list[float]:
    """Seconds of each of `steps`, until the device has finished it."""
    times = [time.perf_counter()]
    for _ in range(steps):
        step().block_until_ready()
        times.append(time.perf_counter())
    return np.diff(times).tolist()


def loop_seconds(config: Config) -> list[float]:
    """Seconds of every step of a run but the first two, which wait for the data."""
    train(config)
    rows = [json.loads(line) for line in (Path(config.run.dir) / "metrics.jsonl").open()]
    return [row["step_seconds"] for row in rows[2:]]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--turns", type=int, default=3, help="turns of each one (default 3)")
    parser.add_argument("--steps", type=int, default=20, help="steps per turn (default 20)")
    arguments = parser.parse_args()
    times: dict[str, list[float]] = {"bare": [], "project": [], "loop": []}
    with tempfile.TemporaryDirectory() as directory:
        runs = [Path(directory) / f"run_{turn}" for turn in range(arguments.turns)]
        bare, bare_first = bare_step()
        project, project_first = project_step(configuration(runs[0], arguments.steps))
        for run in runs:
            times["bare"] += seconds(bare, arguments.steps)
            times["project"] += seconds(project, arguments.steps)
            times["loop"] += loop_seconds(configuration(run, arguments.steps))

    tokens = SIZES.batch * SIZES.length
    rates = {name: tokens / np.median(values) for name, values in times.items()}
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}, medians over the turns")
    print(f"bare step      {rates['bare']:8,.0f} tokens/s, first {bare_first:.1f} s")
    print(f"project's step {rates['project']:8,.0f} tokens/s, first {project_first:.1f} s")
    print(f"ratio          {rates['project'] / rates['bare']:.3f}")
    print(
        f"in the loop    {rates['loop']:8,.0f} tokens/s, "
        f"{rates['project'] / rates['loop'] - 1:+.1%} of the step's time"
    )


if __name__ == "__main__":
    main()
