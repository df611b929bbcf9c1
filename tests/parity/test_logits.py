"""The same weights give the same logits here and in transformers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from flax.core import meta
from parity.families import FAMILIES, VOCAB
from parity.weights import Weights

from jaxformer.model.config import ModelConfig
from jaxformer.model.language_model import build_model

LENGTH = 67  # no multiple of a chunk, and longer than one


@pytest.mark.parametrize("name", FAMILIES)
def test_logits_are_those_of_transformers(name):
    family = FAMILIES[name]
    torch.manual_seed(0)
    theirs = transformers.AutoModelForCausalLM.from_config(family.theirs).eval()
    weights = Weights(theirs)
    tokens = np.random.default_rng(0).integers(0, VOCAB, (2, LENGTH))
    with torch.no_grad():
        expected = theirs(torch.tensor(tokens), use_cache=False).logits.numpy()

    model = build_model(ModelConfig.model_validate(family.ours), layout="separate")
    shapes = meta.unbox(jax.eval_shape(model.init, jax.random.key(0), tokens)["params"])
    params = family.params(weights, family.ours)
    assert weights.left == set()
    assert jax.tree.structure(params) == jax.tree.structure(shapes)
    params = jax.tree.map(lambda leaf, like: jnp.asarray(leaf.reshape(like.shape)), params, shapes)
    logits = jax.jit(model.apply)({"params": params}, tokens)
    assert np.std(expected) > 0.1  # or agreement would mean nothing
    np.testing.assert_allclose(logits, expected, atol=1e-4, rtol=0)
