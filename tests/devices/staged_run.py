"""Trains a run on a mesh with stages, evaluates it and generates from it there and without stages;
prints what these say as JSON."""

import contextlib
import io
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from jaxformer.evaluate.commands import evaluate_run
from jaxformer.run import load
from jaxformer.train.run import train
from tests.runs import make_config

PLACES = {
    "stages": ["mesh.data=1", "mesh.stage=2", "mesh.fsdp=2"],
    "rows": ["mesh.data=4", "mesh.stage=1", "mesh.fsdp=1"],
}


def printed(call: Callable[[], object]) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as output:
        call()
    return output.getvalue()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        config = make_config(
            Path(folder),
            model={"num_layers": 5, "pattern": [{}, {}]},  # the fifth follows the stages
            train={"steps": 4, "batch_size": 16, "unroll_layers": "auto"},
            eval={"every": 4, "batch_size": 8, "sample_tokens": 8},
            mesh={"data": 1, "stage": 2, "fsdp": 2},
        )
        run = Path(config.run.dir)
        seen: dict = {"said": printed(lambda: train(config))}
        for name, overrides in PLACES.items():
            result = printed(lambda overrides=overrides: evaluate_run(run, overrides, json=True))
            text = load(run, overrides).generate("abcd", max_new_tokens=8, temperature=0.0)
            seen[name] = {"loss": json.loads(result.splitlines()[-1])["loss"], "text": text}
    json.dump(seen, sys.stdout)
