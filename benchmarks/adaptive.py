"""What adaptive depth, decoding and objectives gain at the clock, and what they cost in loss.

    python benchmarks/adaptive.py mixture|speculation|loop|diffusion [--steps N] [--dir DIR]

Each part trains its models on the built-in corpus, as bytes, and then measures. Models that a
directory holds are not trained again. What is compared takes turns in one process, since a noisy
machine disturbs both alike; times are medians.

mixture: a dense model and a Mixture-of-Depths of the same depth: seconds per training step, and
    validation loss, that of the mixture with its predictor.
speculation: greedy decoding of a model of 10 M parameters that was trained with early exits, alone
    and with its first layers as the draft; and of one that predicts several tokens ahead, alone and
    with these as the draft.
loop: a model whose tokens may leave a loop: turns per token and validation loss by threshold.
diffusion: the bounds of masked and block diffusion beside the loss of autoregression, and tokens
    per second of each by the number of passes.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
from step import project_step

from jaxformer.config import Config
from jaxformer.data.loader import validation_batches
from jaxformer.data.stores import Stores
from jaxformer.evaluate.by_position import measure_on
from jaxformer.evaluate.perplexity import validate
from jaxformer.generate.decode import Decoder
from jaxformer.generate.sampling import Sampling
from jaxformer.model.accounting import count_parameters
from jaxformer.run import Run, load
from jaxformer.train.run import train

TURNS, NEW = 5, 256
SMALL = {"d_model": 128, "num_layers": 4, "ffn": {"kind": "swiglu", "d_hidden": 344}}
# 11.1 M parameters in the layers, many of them, so that two of them are a cheap draft.
MIDDLE = {"d_model": 256, "num_layers": 14, "ffn": {"kind": "swiglu", "d_hidden": 688}}
BENCH = {"d_model": 256, "num_layers": 6, "ffn": {"kind": "swiglu", "d_hidden": 688}}
MASK = {"inputs": {"kind": "tokens", "mask": True}}


def configuration(directory: Path, steps: int, model: dict, **train_keys: object) -> Config:
    return Config.model_validate(
        {
            "model": {"mixer": {"kind": "attention", "num_heads": 4}, **model},
            "data": {"source": "builtin:python", "tokenizer": "bytes", "sequence_length": 256},
            "train": {"steps": steps, "batch_size": 8, **train_keys},
            "optimizer": {
                "kind": "adamw",
                "learning_rate": 1e-3,
                "schedule": {"warmup_steps": min(100, steps)},
            },
            "eval": {"every": steps, "batches": 40, "sample_tokens": 0},
            "checkpoint": {"every": steps, "keep_best": 0},
            "run": {"dir": str(directory)},
        }
    )


def trained(config: Config) -> Run:
    train(config)
    return load(config.run.dir)


def interleaved(measures: dict[str, Callable[[], float]]) -> dict[str, float]:
    """The median of TURNS calls of each, which take turns."""
    found: dict[str, list[float]] = {name: [] for name in measures}
    for _ in range(TURNS + 1):  # the first compiles
        for name, measure in measures.items():
            found[name].append(measure())
    return {name: statistics.median(values[1:]) for name, values in found.items()}


def mixture(directory: Path, steps: int) -> None:
    depths = {
        "dense": {},
        "mixture, capacity 1/8": {"depth": {"kind": "mixture", "capacity": 0.125}},
        "mixture, capacity 1/2": {"depth": {"kind": "mixture", "capacity": 0.5}},
    }
    seconds = {}
    for name, depth in depths.items():
        step, _ = project_step(configuration(directory / "unused", steps, BENCH | depth))

        def measure(step: Callable[[], jax.Array] = step) -> float:
            began = time.perf_counter()
            for _ in range(3):
                step().block_until_ready()
            return (time.perf_counter() - began) / 3

        seconds[name] = measure
    times = interleaved(seconds)
    for name, depth in depths.items():
        run = trained(configuration(directory / name.replace(" ", "_"), steps, BENCH | depth))
        loss = validate(run).loss
        ratio = times["dense"] / times[name]
        print(f"{name}: {times[name]:.3f} s per step, {ratio:.2f} x dense; {loss:.4f} nats")


def prompts(run: Run) -> list[list[int]]:
    """The beginnings of four validation rows."""
    batches = validation_batches(Stores(run.config.data, run.tokenizer), batch_size=4)
    return batches[0].inputs[:, :128].tolist()


def tokens_per_second(decoder: Decoder, prompt: list[int]) -> float:
    stats = decoder.new_stats()
    greedy = Sampling(0.0)
    for _ in decoder.decode([prompt], max_new_tokens=NEW, sampling=greedy, stats=stats):
        pass
    return stats.decoded_per_second


def speculation(directory: Path, steps: int) -> None:
    cases = {
        "exits": (MIDDLE | {"depth": {"kind": "exits"}}, {}, ("self:1", "self:2")),
        "ahead": (
            MIDDLE | {"further": {"kind": "heads", "count": 4}},
            {"objective": {"kind": "multi_token", "weight": 1.0}},
            ("mtp",),
        ),
    }
    for name, (model, keys, drafts) in cases.items():
        run = trained(configuration(directory / name, steps, model, **keys))
        print(f"{name}: {count_parameters(run.model):,} parameters, {validate(run).loss:.4f} nats")
        texts = prompts(run)
        decoders = {"plain": run.decoder, "ngram": run.decoder_with("ngram")}
        decoders |= {draft: run.decoder_with(draft) for draft in drafts}

        def measure(decoder: Decoder, texts: list[list[int]] = texts) -> Callable[[], float]:
            return lambda: statistics.mean(tokens_per_second(decoder, text) for text in texts)

        rates = interleaved({draft: measure(each) for draft, each in decoders.items()})
        for draft, rate in rates.items():
            print(f"  {draft}: {rate:.0f} tokens/s, {rate / rates['plain']:.2f} x plain")


def loop(directory: Path, steps: int) -> None:
    halting = {"kind": "exits", "weight": 0.02}
    depth = {"kind": "loop", "before": 1, "turns": 4, "halting": halting}
    model = SMALL | {"num_layers": 3, "depth": depth}
    config = configuration(directory / "loop", steps, model)
    trained(config)
    for threshold in (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3):
        run = load(config.run.dir, [f"model.depth.halting.threshold={threshold}"])
        found = measure_on(run, run.config.data)
        print(
            f"threshold {threshold}: {found['loss']:.4f} nats, {found['layers']['turns']:.2f} turns"
        )


def diffusion(directory: Path, steps: int) -> None:
    objectives = {
        "autoregression": {"kind": "next_token"},
        "blocks of 8": {"kind": "block_diffusion", "block": 8},
        "diffusion": {"kind": "masked_diffusion"},
    }
    for name, objective in objectives.items():
        directory_of = directory / name.replace(" ", "_")
        run = trained(configuration(directory_of, steps, SMALL | MASK, objective=objective))
        bound = "at most " if run.config.train.objective.is_bound else ""
        print(f"{name}: {bound}{validate(run).loss:.4f} nats")
        passes = {"autoregression": (None,), "blocks of 8": (8, 4, 2), "diffusion": (256, 64, 16)}
        text = prompts(run)[0]
        for count in passes[name]:
            decoder = run.decoder if count is None else run.decoder.in_steps(count, None)
            rate = interleaved({name: partial(tokens_per_second, decoder, text)})[name]
            steps_said = "" if count is None else f" in {count} passes"
            print(f"  {rate:.0f} tokens/s{steps_said}")


PARTS = {"mixture": mixture, "speculation": speculation, "loop": loop, "diffusion": diffusion}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--dir", type=Path, default=Path("runs/adaptive"))
    arguments = parser.parse_args()
    PARTS[arguments.part](arguments.dir / f"{arguments.steps}_steps", arguments.steps)
