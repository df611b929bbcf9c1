"""The project's train step against a bare one, and the loop's own time.

    python benchmarks/step.py [--rounds 20]

Both steps train the model of `bare.Sizes` in float32 with AdamW and clipping, from the same kind of
batch, and take turns in one process, so that a noisy machine disturbs both alike. The loop is
measured by a real run of `jaxformer.train.loop.train` between two halves of those turns.
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

from jaxformer.config import Config
from jaxformer.data.batch import Batch
from jaxformer.parallel.mesh import make_mesh
from jaxformer.parallel.rules import batch_sharding, put_batch
from jaxformer.train.loop import train
from jaxformer.train.program import make_program

SIZES = Sizes()


def configuration(directory: Path, steps: int) -> Config:
    """The benchmark's model on the built-in corpus; nothing but steps and a row for each."""
    return Config.model_validate(
        {
            "model": {
                "d_model": SIZES.d_model,
                "num_layers": SIZES.layers,
                "vocab_size": SIZES.vocab,
                "mixer": {"kind": "attention", "num_heads": SIZES.heads},
                "ffn": {"kind": "swiglu", "d_hidden": SIZES.d_hidden},
                "tie_embeddings": False,
            },
            "data": {"sequence_length": SIZES.length, "validation_fraction": 0.0},
            "train": {"steps": steps, "batch_size": SIZES.batch, "log_every": 1},
            "run": {"dir": str(directory / "run")},
        }
    )


def project_step(config: Config) -> tuple[Callable[[], jax.Array], float]:
    """A call takes one step of the project and returns its loss; and the seconds of the first."""
    began = time.perf_counter()
    program = make_program(config, make_mesh(config.mesh.model_dump()), SIZES.vocab)
    state = program.initial_state()
    compiled = program.compile(None)
    tokens = random_tokens()
    shape = (SIZES.batch, SIZES.length)
    positions = np.broadcast_to(np.arange(SIZES.length, dtype=np.int32), shape)
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
    tokens = jnp.asarray(random_tokens())
    inputs, targets, count = tokens[:, :-1], tokens[:, 1:], 0

    def step() -> jax.Array:
        nonlocal params, moments, count
        params, moments, loss = jitted(params, moments, jnp.int32(count), inputs, targets)
        count += 1
        return loss

    step().block_until_ready()
    return step, time.perf_counter() - began


def random_tokens() -> np.ndarray:
    """[batch, length + 1]"""
    shape = (SIZES.batch, SIZES.length + 1)
    return np.random.default_rng(0).integers(0, SIZES.vocab, shape, dtype=np.int32)


def seconds(step: Callable[[], jax.Array]) -> float:
    """Of one step, the device finished."""
    began = time.perf_counter()
    step().block_until_ready()
    return time.perf_counter() - began


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=20, help="turns of each step (default 20)")
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as directory:
        config = configuration(Path(directory), steps=rounds)
        bare, bare_compile = bare_step()
        project, project_compile = project_step(config)
        first = [(seconds(bare), seconds(project)) for _ in range(rounds // 2)]
        train(config)
        second = [(seconds(bare), seconds(project)) for _ in range(rounds - rounds // 2)]
        rows = [json.loads(line) for line in (Path(directory) / "run/metrics.jsonl").open()]

    times = np.array(first + second)
    loop = np.median([row["step_seconds"] for row in rows[2:]])
    tokens = SIZES.batch * SIZES.length
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}, {rounds} rounds, medians")
    bare_rate, project_rate = tokens / np.median(times, axis=0)
    print(f"bare step      {bare_rate:8,.0f} tokens/s, first {bare_compile:.1f} s")
    print(f"project's step {project_rate:8,.0f} tokens/s, first {project_compile:.1f} s")
    print(f"ratio          {np.median(times[:, 0] / times[:, 1]):.3f} (median over the rounds)")
    print(f"in the loop    {tokens / loop:8,.0f} tokens/s: {project_rate * loop / tokens - 1:+.1%}")


if __name__ == "__main__":
    main()
