"""How long a training step takes on this machine, for the budget of equal seconds."""

import time

import jax

from jaxformer.config import Config
from jaxformer.data.loader import train_batches
from jaxformer.data.stores import Stores
from jaxformer.data.vocabulary import tokenizer_of
from jaxformer.parallel.mesh import make_mesh
from jaxformer.parallel.rules import batch_sharding, put_batch
from jaxformer.train.program import make_program

STEPS = 10


def seconds_per_step(config: Config) -> float:
    """The median of ten steps after the first one, on the first batch."""
    tokenizer = tokenizer_of(config.data)
    mesh = make_mesh(config.mesh.sizes, config.mesh.preset)
    program = make_program(config, mesh, tokenizer.vocab_size)
    train_step = program.compile(None).train_step
    rows = config.train.batch_size
    stores = Stores(config.data, tokenizer)
    batches = train_batches(stores, batch_size=rows, seed=config.train.seed)
    batch = put_batch(batches[0], batch_sharding(mesh))
    state, times = program.initial_state(), []
    for _ in range(STEPS + 1):
        began = time.perf_counter()
        state, metrics = train_step(state, batch)
        jax.block_until_ready(metrics)
        times.append(time.perf_counter() - began)
    return sorted(times[1:])[STEPS // 2]
