"""The contrastive objective and its outputs, in float64, against their equations."""

import jax
import numpy as np
import pytest
from pydantic import ValidationError

from jaxformer.config import Config
from jaxformer.model.accounting import count_parameters, flops_per_token
from jaxformer.model.config import ModelConfig
from jaxformer.objectives import ContrastiveConfig
from tests.objectives.contrastive import ENCODER, MODEL, OUTPUTS, PROBE, batch_of, model_of


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def test_a_probe_and_a_last_token_are_compared_as_the_equations_say():
    """And the objective is the sum over the pairs of a batch, without a row that fills it up."""
    model, params = model_of()
    batch = batch_of(5, missing=1)
    apply = jax.jit(lambda *rows: model.apply({"params": params}, *rows, method="hidden")[0])
    x = np.asarray(apply(batch.inputs.tokens, batch.positions, batch.segment_ids))
    last = np.maximum(batch.segment_ids.sum(axis=1) - 1, 0)
    head = jax.tree.map(np.asarray, params)
    u = x[np.arange(5), last] @ head["tokens_projection"]["kernel"]
    u = unit(u + head["tokens_projection"]["bias"])

    encode = jax.jit(lambda pictures: model.apply({"params": params}, pictures, method="encode"))
    states, _ = encode(batch.inputs.source.inputs)
    states, probe = np.asarray(states.states), head["source_pool"]
    v = np.zeros((5, 16))
    for row in range(5):
        found = np.zeros(16)
        for h in range(2):
            part = {
                name: (probe[name]["kernel"][:, h], probe[name]["bias"][h])
                for name in ("query", "key", "value")
            }
            q = probe["probe"] @ part["query"][0] + part["query"][1]
            k = states[row] @ part["key"][0] + part["key"][1]
            logits = k @ q / np.sqrt(8)  # 16 features in 2 heads
            shares = np.exp(logits) / np.exp(logits).sum()
            o = shares @ (states[row] @ part["value"][0] + part["value"][1])
            found += o @ probe["output"]["kernel"][h]
        found += probe["output"]["bias"]
        normed = found / np.sqrt(np.mean(found**2) + 1e-6) * probe["norm"]["scale"]
        hidden = jax.nn.gelu(normed @ probe["ffn"]["in"]["kernel"] + probe["ffn"]["in"]["bias"])
        v[row] = found + hidden @ probe["ffn"]["out"]["kernel"] + probe["ffn"]["out"]["bias"]
    v = unit(v)
    expected = np.exp(head["log_scale"]) * u @ v.T + head["logit_bias"]

    rows = (batch.inputs, batch.positions, batch.segment_ids)
    logits = jax.jit(lambda *rows: model.apply({"params": params}, *rows))(*rows)
    # Vectors have a length of 1 up to 1e-12, half of ε.
    np.testing.assert_allclose(logits, expected, atol=1e-11)

    objective = ContrastiveConfig(form="sigmoid", most_scale=2.0)
    loss = objective.loss(model, params, batch, z_loss=0.0, rngs={}, reference=None)
    real = 2.0 * (u @ v.T)[:4, :4] + head["logit_bias"]
    signs = 2 * np.eye(4) - 1
    np.testing.assert_allclose(loss.total, np.log1p(np.exp(-signs * real)).sum(), atol=1e-10)
    assert loss.weight == 4
    assert float(loss.means["scale"][0]) == 2.0

    found = ContrastiveConfig(form="softmax").evaluate(model, params, batch)
    own = np.diagonal(expected)[:4]
    right = (expected[:4, :4].max(0) <= own).sum() + (expected[:4, :4].max(1) <= own).sum()
    assert found.figures["batch_accuracy"] == right / 2


def test_costs_are_counted_with_both_towers():
    model, _ = model_of()
    # Per tower 4 matrices of its width, an FFN of 8 hidden, 3 norms and a table of positions.
    texts = 4 * 8 * 8 + 2 * 8 * 8 + 3 * 8 + 4 * 8 + 11 * 8
    pictures = 4 * 16 * 16 + 2 * 16 * 8 + 3 * 16 + 4 * 16 + (4 + 1) * 16
    probe = 16 + 4 * (16 * 16 + 16) + 16 + 2 * 16 * 8 + 8 + 16
    outputs = (8 + 1) * 16 + probe + 2
    assert count_parameters(model) == texts + pictures + outputs
    # Of texts a causal layer, of pictures a full one of as many places, and patches of 4 numbers.
    of_texts = 2 * (4 * 64 + 2 * 64) + 4 * 8 * np.mean(range(1, 5))
    of_pictures = 2 * (4 * 256 + 2 * 128) + 4 * 16 * 4 + 2 * 4 * 16
    of_probe = 2 * (2 * 256 * (4 + 1) + 2 * 128) + 4 * 16 * 4
    of_rows = (of_probe + 2 * 8 * 16) / 4
    assert flops_per_token(model, 4) == pytest.approx(of_texts + of_pictures + of_rows, rel=1e-12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"encoder": None}, "outputs are contrastive, which compare tokens with what an encoder"),
        ({"tie_embeddings": True}, "outputs contrastive have no table of embeddings to share"),
        ({"logit_softcap": 5.0}, "logit_softcap is 5, but outputs are contrastive"),
        (
            {"pattern": [{"mixer": {"kind": "cross_attention", "num_heads": 2}}]},
            "the mixer of layer 0 shows tokens the source; give layers without one",
        ),
        (
            {"outputs": OUTPUTS | {"width": 8}},
            "outputs.source.projection is none, but outputs.width is 8 and that side is 16 wide",
        ),
        (
            {"outputs": OUTPUTS | {"source": PROBE | {"pool": "mean"}}},
            "probe is given, but pool is mean; leave it out, or give pool=probe",
        ),
        (
            {"outputs": OUTPUTS | {"source": {"pool": "probe"}}},
            "probe is missing, but pool is probe; give at least probe=",
        ),
        ({"encoder": ENCODER | {"length": 3}}, "cut a picture into 4 patches; give length=4"),
    ],
)
def test_models_that_do_not_fit_are_refused(options: dict, message: str):
    with pytest.raises(ValidationError, match=message):
        ModelConfig.model_validate(MODEL | options)


IMAGES = {"size": [4, 4], "channels": 1, "text": "caption"}
CLASSES = {"kind": "classes"}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"train": {"accumulation": 2}},
            "train.accumulation is 2, but train.objective contrastive compares all rows",
        ),
        ({"train": {"z_loss": 1e-4}}, "train.z_loss is 0.0001, but the logits of train.objective"),
        (
            {"train": {"objective": CLASSES}},
            "model.outputs is contrastive, which compares both sides of pairs, but train.objective",
        ),
        (
            {"data": {"images": IMAGES | {"text": None}, "tokenizer": "classes"}},
            "but data.images.text is null; give the column of the texts",
        ),
        (
            {"data": {"tokenizer": "characters"}},
            "tokenizer is characters, but images.text has texts; allowed: bytes, a tokenizer.json",
        ),
        (
            {"model": {"outputs": CLASSES, "encoder": None}},
            "data.images.text is caption, but model.encoder is null",
        ),
    ],
)
def test_runs_that_do_not_fit_are_refused(changed: dict, message: str):
    given = {
        "model": MODEL,
        "data": {
            "kind": "images",
            "source": "parquet:a",
            "images": IMAGES,
            "sequence_length": 4,
            "tokenizer": "bytes",
        },
        "train": {"objective": {"kind": "contrastive"}},
    }
    Config.model_validate(given)
    given = {name: section | changed.get(name, {}) for name, section in given.items()}
    if "model" in changed:
        given["model"]["inputs"] = MODEL["encoder"]["inputs"]
    with pytest.raises(ValidationError, match=message):
        Config.model_validate(given)
