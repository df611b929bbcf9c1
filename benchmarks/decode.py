"""Decoded tokens per second and bytes of state of every mixer, by the length of the context.

    python benchmarks/decode.py [--mixers attention retention] [--contexts 128 16384] [--plot FILE]

One layer of width 256 with a SwiGLU FFN, float32, one sequence. The context is read first, then 64
tokens are decoded greedily in one compiled loop; a rate is that of the fastest of five loops, since
other load can only slow a loop down.
"""

import argparse
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax.core import meta
from length import draw
from zoo import KINDS, one_layer

from jaxformer.model.accounting import cache_bytes
from jaxformer.model.mixers import Cache

NEW, PIECE, ROUNDS = 64, 64, 5


def decoder(kind: str) -> Callable[[int], tuple[float, int]]:
    """A function context → (tokens per second, bytes of state)."""
    model = one_layer(kind)
    first = jnp.zeros((1, 2), jnp.int32)
    params = meta.unbox(jax.jit(model.init)(jax.random.key(0), first)["params"])

    def step(tokens: jax.Array, start: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
        positions = start + jnp.arange(tokens.shape[1])[None]
        segments = jnp.ones_like(tokens)
        return model.apply({"params": params}, tokens, positions, segments, cache, method="step")

    @jax.jit
    def read(start: jax.Array, cache: Cache) -> Cache:
        return step(jnp.arange(PIECE, dtype=jnp.int32)[None], start, cache)[1]

    @jax.jit
    def decode(start: jax.Array, cache: Cache) -> jax.Array:
        def advance(carried: tuple, offset: jax.Array) -> tuple[tuple, jax.Array]:
            token, cache = carried
            logits, cache = step(token, start + offset, cache)
            token = jnp.argmax(logits, axis=-1)[:, None].astype(jnp.int32)
            return (token, cache), token[0, 0]

        return jax.lax.scan(advance, (first[:, :1], cache), jnp.arange(NEW))[1]

    def measure(context: int) -> tuple[float, int]:
        cache = model.init_cache(1, context)
        for start in range(0, context - NEW, PIECE):
            cache = read(jnp.int32(start), cache)
        times = []
        for _ in range(ROUNDS + 1):  # the first compiles
            began = time.perf_counter()
            decode(jnp.int32(context - NEW), cache).block_until_ready()
            times.append(time.perf_counter() - began)
        held = sum(leaf.nbytes for leaf in jax.tree.leaves(cache))
        assert held == cache_bytes(model, context)
        return NEW / min(times[1:]), held

    return measure


def main() -> None:
    """Measure, print a table, and draw it if asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--mixers", nargs="+", default=KINDS, choices=KINDS)
    contexts = [128, 512, 2048, 8192, 16384]
    parser.add_argument("--contexts", nargs="+", type=int, default=contexts)
    parser.add_argument("--plot", metavar="FILE", help="draw both curves into an image")
    arguments = parser.parse_args()
    print(f"tokens/s (KB of state), {jax.devices()[0].device_kind}, jax {jax.__version__}")
    print("context".ljust(18) + "".join(f"{context:>17,}" for context in arguments.contexts))
    rates: dict[str, list[float]] = {}
    kilobytes: dict[str, list[float]] = {}
    for kind in arguments.mixers:
        measure = decoder(kind)
        rates[kind], kilobytes[kind] = [], []
        for context in arguments.contexts:
            rate, held = measure(context)
            rates[kind].append(rate)
            kilobytes[kind].append(held / 1e3)
        cells = (f"{r:,.0f} ({k:,.0f})" for r, k in zip(rates[kind], kilobytes[kind], strict=True))
        print(kind.ljust(18) + "".join(f"{cell:>17}" for cell in cells), flush=True)
    if arguments.plot:
        figures = {"decoded tokens/s": rates, "state, KB": kilobytes}
        draw(arguments.plot, "context", arguments.contexts, figures)


if __name__ == "__main__":
    main()
