"""Every mixer trained on real text for 500 steps, and a table of losses.

    python benchmarks/smoke.py data/tinyshakespeare/input.txt [--mixers retention gla] [--steps 500]

The model of nanoGPT's CPU recipe (4 layers, width 128, 12 rows of 64 bytes) with RMSNorm, RoPE
where a mixer uses it, SwiGLU, and AdamW at one rate for all. It tests whether each mixer trains,
not which is best. Exits with 1 if a loss is not finite, or a model has learnt nothing.
"""

import argparse
import contextlib
import io
import json
import math
import sys
import tempfile
import time
from pathlib import Path

from zoo import KINDS, mixer

from jaxformer.config import Config
from jaxformer.model.accounting import count_parameters
from jaxformer.model.language_model import build_model
from jaxformer.train.run import train

D_MODEL, UNIGRAM = 128, 3.31  # nats per byte: the text's entropy when order says nothing


def train_once(kind: str, text: Path, steps: int, directory: Path) -> tuple[int, float, float]:
    """(parameters, loss over the whole validation part, seconds)."""
    config = Config.model_validate(
        {
            "model": {
                "d_model": D_MODEL,
                "num_layers": 4,
                "vocab_size": 257,
                "mixer": mixer(kind, D_MODEL),
                "ffn": {"kind": "swiglu", "d_hidden": 344},
                "tie_embeddings": False,
            },
            "data": {
                "source": f"text:{text}",
                "validation_fraction": 0.1,
                "sequence_length": 64,
            },
            "train": {"steps": steps, "batch_size": 12},
            "optimizer": {
                "kind": "adamw",
                "learning_rate": 2e-3,
                "schedule": {"warmup_steps": steps // 10},
            },
            "eval": {"every": steps, "batches": None, "batch_size": 128},
            "checkpoint": {"every": steps},
            "run": {"dir": str(directory)},
        }
    )
    began = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        code = train(config)
    if code:
        raise SystemExit(f"{kind} ended with {code}:\n{printed.getvalue()}")
    rows = [json.loads(line) for line in (directory / "metrics.jsonl").open()]
    losses = [row["eval/loss"] for row in rows if "eval/loss" in row]
    return count_parameters(build_model(config.model)), losses[-1], time.perf_counter() - began


def main() -> int:
    """Train, and print a table in Markdown."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("text", type=Path, help="a text file")
    parser.add_argument("--mixers", nargs="+", default=KINDS, choices=KINDS)
    parser.add_argument("--steps", type=int, default=500, help="default 500")
    arguments = parser.parse_args()
    print("| mixer | parameters | loss | seconds |\n| --- | --- | --- | --- |")
    learnt = True
    with tempfile.TemporaryDirectory() as directory:
        for kind in arguments.mixers:
            parameters, loss, seconds = train_once(
                kind, arguments.text, arguments.steps, Path(directory) / kind
            )
            learnt &= math.isfinite(loss) and loss < UNIGRAM
            print(f"| {kind} | {parameters:,} | {loss:.3f} | {seconds:.0f} |", flush=True)
    return 0 if learnt else 1


if __name__ == "__main__":
    sys.exit(main())
