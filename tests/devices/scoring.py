"""Scores continuations and generates, with a small model on several meshes of eight simulated
devices; prints what it saw as JSON."""

import json
import sys
from functools import cache

import jax
import numpy as np
from flax.core import meta

from jaxformer.config import Config
from jaxformer.data.plain_tokenizers import ByteTokenizer
from jaxformer.evaluate.scoring import Continuation, score
from jaxformer.generate.sampling import Sampling
from jaxformer.model.language_model import LanguageModel, build_model
from jaxformer.parallel.mesh import make_mesh
from jaxformer.parallel.rules import parameter_shardings
from jaxformer.run import Run
from tests.devices.eight_devices import MESHES, MIXERS

MODEL = {
    "d_model": 32,
    "num_layers": 2,
    "vocab_size": 257,
    "ffn": {"kind": "swiglu", "d_hidden": 48},
}


@cache
def weights(model: LanguageModel) -> dict:
    """With their logical axes."""
    return jax.jit(model.init)(jax.random.key(0), np.zeros((1, 2), np.int32))["params"]


def run_on(axes: dict[str, int]) -> Run:
    config = Config.model_validate(
        {
            "model": MIXERS["hybrid"] | MODEL,
            "data": {"sequence_length": 32},
            "train": {"batch_size": 8},
            "mesh": axes,
        }
    )
    mesh = make_mesh(config.mesh.sizes, devices=jax.devices()[: int(np.prod(list(axes.values())))])
    model = build_model(config.model)
    boxed = weights(model)
    params = jax.tree.map(lambda leaf: 5 * leaf, meta.unbox(boxed))  # far from uniform
    params = jax.device_put(params, parameter_shardings(mesh, boxed, config.mesh.table))
    return Run(config, model, params, ByteTokenizer(), 0, mesh)


def seen_by(run: Run) -> dict:
    random = np.random.default_rng(0)
    sizes = random.integers(1, 20, (30, 2)).tolist()
    asked = [Continuation(*(random.integers(0, 256, n).tolist() for n in pair)) for pair in sizes]
    prompts = [random.integers(0, 256, n).tolist() for n in range(1, 9)]
    pieces = run.decoder.decode(prompts, max_new_tokens=20, sampling=Sampling(temperature=0))
    return {"scores": score(run, asked), "tokens": np.concatenate(list(pieces), axis=1).tolist()}


if __name__ == "__main__":
    json.dump({name: seen_by(run_on(axes)) for name, axes in MESHES["rows"].items()}, sys.stdout)
