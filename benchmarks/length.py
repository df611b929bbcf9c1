"""Training tokens per second and memory of every mixer, by the length of its rows.

    python benchmarks/length.py [--mixers attention retention] [--lengths 256 2048] [--plot FILE]

One layer of width 256 with a SwiGLU FFN, 8,192 tokens per batch at every length, float32: the loss
and its gradient. The lengths of a mixer take turns; the figures are medians. Memory is what the
compiler lays out for temporaries.
"""

import argparse
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax.core import meta
from zoo import KINDS, VOCAB, one_layer

TOKENS = 8192


def training_step(kind: str, length: int) -> tuple[Callable[[], None], float]:
    """A function that computes loss and gradient once, and the MB of its temporaries."""
    model = one_layer(kind)
    tokens = jax.random.randint(jax.random.key(1), (TOKENS // length, length), 0, VOCAB)
    params = meta.unbox(jax.jit(model.init)(jax.random.key(0), tokens[:, :2])["params"])
    positions = jnp.broadcast_to(jnp.arange(length), tokens.shape)
    ones = jnp.ones_like(tokens)

    def loss(params: dict) -> jax.Array:
        batch = (tokens, tokens, positions, ones, ones > 0)
        return model.apply({"params": params}, *batch, method="loss")[0].loss

    compiled = jax.jit(jax.value_and_grad(loss)).lower(params).compile()

    def step() -> None:
        jax.block_until_ready(compiled(params))

    step()
    return step, compiled.memory_analysis().temp_size_in_bytes / 1e6


def seconds(step: Callable[[], None]) -> float:
    """Seconds of one call."""
    began = time.perf_counter()
    step()
    return time.perf_counter() - began


def main() -> None:
    """Measure, print a table, and draw it if asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--mixers", nargs="+", default=KINDS, choices=KINDS)
    lengths = [256, 512, 1024, 2048, 4096, 8192]
    parser.add_argument("--lengths", nargs="+", type=int, default=lengths)
    parser.add_argument("--rounds", type=int, default=5, help="turns of each length (default 5)")
    parser.add_argument("--plot", metavar="FILE", help="draw both curves into an image")
    arguments = parser.parse_args()

    rates: dict[str, list[float]] = {}
    memory: dict[str, list[float]] = {}
    print(f"tokens/s (MB of temporaries), {jax.devices()[0].device_kind}, jax {jax.__version__}")
    print(
        "length".ljust(18) + "".join(f"{length:>16,}" for length in arguments.lengths), flush=True
    )
    for kind in arguments.mixers:
        steps = [training_step(kind, length) for length in arguments.lengths]
        times = [[seconds(step) for step, _ in steps] for _ in range(arguments.rounds)]
        rates[kind] = (TOKENS / np.median(times, axis=0)).tolist()
        memory[kind] = [megabytes for _, megabytes in steps]
        cells = (f"{r:,.0f} ({m:,.0f})" for r, m in zip(rates[kind], memory[kind], strict=True))
        print(kind.ljust(18) + "".join(f"{cell:>16}" for cell in cells), flush=True)
    if arguments.plot:
        figures = {"training tokens/s": rates, "temporaries, MB": memory}
        draw(arguments.plot, "length", arguments.lengths, figures)


def draw(file: str, label: str, x: list[int], figures: dict[str, dict[str, list[float]]]) -> None:
    """One panel per figure, {title: {mixer: values}}, side by side against x."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    panels = figure.subplots(1, len(figures))
    for axes, (title, curves) in zip(panels, figures.items(), strict=True):
        for index, (kind, values) in enumerate(curves.items()):
            line = {"linestyle": "-" if index < 10 else "--"}  # there are ten colours
            style = {"color": "black", "linewidth": 2.5} if kind == "attention" else line
            axes.plot(x, values, marker="o", label=kind, **style)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xlabel(label)
        axes.set_title(title)
    axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.savefig(file)


if __name__ == "__main__":
    main()
