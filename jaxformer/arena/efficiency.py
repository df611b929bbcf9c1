"""What contestants cost on this machine: training and decoding speed, memory, compile time.

Contestants take turns within every round, so that other load affects all of them alike.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.core import meta

from jaxformer.config import Config
from jaxformer.data.loader import train_batches
from jaxformer.data.stores import Stores
from jaxformer.data.vocabulary import tokenizer_of
from jaxformer.generate.decode import Decoder, Stats
from jaxformer.generate.sampling import Sampling
from jaxformer.model.accounting import cache_bytes
from jaxformer.model.language_model import build_model
from jaxformer.parallel.mesh import make_mesh
from jaxformer.parallel.rules import batch_sharding, put_batch
from jaxformer.terminal import progress
from jaxformer.train.program import make_program

ROUNDS = 3
STEPS = 3  # per round
NEW_TOKENS = 64
Measured = dict[str, Any]


def efficiency(
    configs: dict[str, Config], lengths: Sequence[int], contexts: Sequence[int]
) -> list[Measured]:
    """A row for every contestant and length, and for every contestant and context.

    A row for a length has `compile_seconds`, and `train_tokens_per_second` and `peak_bytes` (by the
    compiler) of steps on a batch of as many tokens as the run's. A row for a context has
    `state_bytes`, and `decode_tokens_per_second` of greedy decoding after a prompt of `context`
    tokens. Rates are the fastest of the rounds.
    """
    rows: list[Measured] = []
    total = len(configs) * (len(lengths) + len(contexts))
    with progress("measuring speed", total) as report:
        for length in lengths:
            timers = {name: _trainer(config, length) for name, config in configs.items()}
            rates = _interleaved({name: step for name, (step, _) in timers.items()})
            for name, (_, said) in timers.items():
                rows.append({"contestant": name, **said, "train_tokens_per_second": rates[name]})
            report(len(rows))
        for context in contexts:
            decoders = {name: _decoder(config, context) for name, config in configs.items()}
            rates = _interleaved({name: decode for name, (decode, _) in decoders.items()})
            for name, (_, said) in decoders.items():
                rows.append({"contestant": name, **said, "decode_tokens_per_second": rates[name]})
            report(len(rows))
    return rows


def _interleaved(timers: dict[str, Callable[[], float]]) -> dict[str, float]:
    """The best rate of each over the rounds, after a first round that warms up."""
    found: dict[str, list[float]] = {name: [] for name in timers}
    for _ in range(ROUNDS + 1):
        for name, timer in timers.items():
            found[name].append(timer())
    return {name: max(rates[1:]) for name, rates in found.items()}


def _trainer(config: Config, length: int) -> tuple[Callable[[], float], Measured]:
    """A function that takes a few steps and gives tokens per second, and what the compiler said."""
    tokens = config.train.batch_size * config.data.sequence_length
    config = config.model_copy(
        update={
            "data": config.data.model_copy(update={"sequence_length": length}),
            "train": config.train.model_copy(update={"batch_size": max(1, tokens // length)}),
        }
    )
    tokenizer = tokenizer_of(config.data)
    mesh = make_mesh(config.mesh.sizes, config.mesh.preset)
    program = make_program(config, mesh, tokenizer.vocab_size)
    began = time.perf_counter()
    compiled = program.compile(None)
    said = {
        "length": length,
        "compile_seconds": time.perf_counter() - began,
        "peak_bytes": compiled.bytes_per_device,
    }
    rows = config.train.batch_size
    batches = train_batches(Stores(config.data, tokenizer), batch_size=rows, seed=0)
    batch = put_batch(batches[0], batch_sharding(mesh))
    state = program.initial_state()

    def step() -> float:
        nonlocal state
        began = time.perf_counter()
        for _ in range(STEPS):
            state, metrics = compiled.train_step(state, batch)
        jax.block_until_ready(metrics)
        return STEPS * rows * length / (time.perf_counter() - began)

    return step, said


def _decoder(config: Config, context: int) -> tuple[Callable[[], float], Measured]:
    """A function that decodes after a prompt of `context` tokens and gives tokens per second."""
    vocab_size = tokenizer_of(config.data).vocab_size
    model = build_model(config.model, vocab_size=vocab_size)
    tokens = jnp.zeros((1, 2), jnp.int32)
    params = meta.unbox(jax.jit(model.init)(jax.random.key(0), tokens)["params"])
    decoder = Decoder.of(model, params, eos_id=-1)  # no id: a continuation never ends early
    prompt = np.random.default_rng(0).integers(0, vocab_size, context).tolist()

    def decode() -> float:
        stats = Stats()
        pieces = decoder.decode(
            [prompt], max_new_tokens=NEW_TOKENS, sampling=Sampling(0.0), stats=stats
        )
        for _ in pieces:
            pass
        return (stats.new_tokens - 1) / stats.decode_seconds  # the prompt's pass gave the first

    return decode, {"context": context, "state_bytes": cache_bytes(model, context)}
