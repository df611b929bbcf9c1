"""Every seam has an outside user: parts that are defined here, registered in one line each, trained
for three steps, saved and restored."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pydantic import ValidationError

from jaxformer.model.channel_mixers import CHANNEL_MIXERS, ChannelMixer, ChannelMixerConfig
from jaxformer.model.dims import KernelsConfig
from jaxformer.model.inputs import INPUTS, InputsConfig
from jaxformer.model.inputs import Tokens as TokenInputs
from jaxformer.model.mixers import MIXERS, Mixer, MixerConfig
from jaxformer.model.norms import Norm
from jaxformer.model.outputs import OUTPUTS, Linear, OutputsConfig
from jaxformer.model.parameter_paths import by_path
from jaxformer.model.projections import Projection
from jaxformer.model.residuals import RESIDUALS, Residual, ResidualConfig
from jaxformer.model.rows import LayerAux
from jaxformer.objectives import OBJECTIVES, NextTokenConfig, ObjectiveConfig
from jaxformer.ops.attention import Tokens, attend
from jaxformer.ops.cross_entropy import LossSums
from jaxformer.ops.kernels.registry import KERNELS, Kernel
from jaxformer.run import load
from jaxformer.train.run import train
from tests.runs import make_config, results
from tests.train.test_loop import signal_at_step


class MeanConfig(MixerConfig):
    kind: Literal["mean"] = "mean"


class Mean(Mixer):
    """y_t = W · the mean of the document's x up to t."""

    config: MeanConfig

    @nn.compact
    def __call__(self, x, rows, cache=None):
        total, last = cache or self.init_cache(x.shape[0], x.shape[1], x.dtype)
        means = []
        for t in range(x.shape[1]):
            goes_on = (rows.segment_ids[:, t] == last)[:, None]
            total, last = x[:, t] + jnp.where(goes_on, total, 0), rows.segment_ids[:, t]
            means.append(total / (1 + rows.positions[:, t, None]))
        init = self.dims.init.matrix(x.shape[-1])
        out = Projection((x.shape[-1],), ("d_model", "d_out"), init, name="out")
        y = out(jnp.stack(means, axis=1))
        return y, None if cache is None else (total, last)

    def init_cache(self, batch, max_length, dtype):
        return jnp.zeros((batch, self.dims.d_model), dtype), jnp.zeros((batch,), jnp.int32)

    def flops(self, length):
        return 2.0 * self.dims.d_model**2

    def cache_bytes(self, length):
        return self.dims.d_model * jnp.dtype(self.dims.dtype).itemsize + 4


class GatesConfig(ChannelMixerConfig):
    kind: Literal["gates"] = "gates"
    weight: float = 0.1


class Gates(ChannelMixer):
    """y = g ⊙ x, with gates that a loss of their own keeps small."""

    config: GatesConfig

    @nn.compact
    def __call__(self, x, rows):
        ones = nn.with_logical_partitioning(nn.initializers.ones, ("d_model",))
        gates = self.param("gates", ones, (self.dims.d_model,), jnp.float32)
        real = jnp.sum(rows.segment_ids != 0).astype(jnp.float32)
        size = real * jnp.sum(gates**2)
        return gates.astype(x.dtype) * x, LayerAux({"gates": size}, self.config.weight * size)

    def flops(self, length):
        return 0.0


class Weighted(nn.Module):
    """a y, with a = 0 at first."""

    @nn.compact
    def __call__(self, y):
        zero = nn.with_logical_partitioning(nn.initializers.zeros, ())
        return self.param("weight", zero, (), jnp.float32).astype(y.dtype) * y


class StreamsConfig(ResidualConfig):
    kind: Literal["streams"] = "streams"


class Streams(Residual):
    """Two streams: layers read their sum, normalised, and write into one, with a weight from 0."""

    def start(self, x):
        return {"input": x, "written": jnp.zeros_like(x)}

    def read(self, stream, sublayer):
        return Norm(self.norm, name=f"{sublayer}_norm")(self.finish(stream))

    def write(self, stream, y, sublayer):
        written = stream["written"] + Weighted(name=f"{sublayer}_weight")(y)
        return stream | {"written": written}

    def finish(self, stream):
        return stream["input"] + stream["written"]


class SmoothedConfig(ObjectiveConfig):
    kind: Literal["smoothed"] = "smoothed"
    smoothing: float = 0.1

    def loss(self, model, params, batch, *, z_loss, rngs, reference):
        """Cross-entropy, mixed with that of a uniform target."""
        inputs = (batch.inputs, batch.positions, batch.segment_ids)
        logits = model.apply({"params": params}, *inputs, rngs=rngs)
        log_probs, mask = jax.nn.log_softmax(logits), batch.loss_mask
        picked = jnp.take_along_axis(log_probs, batch.targets[..., None], axis=-1)[..., 0]
        cross = -jnp.sum(picked * mask)
        uniform = -jnp.sum(jnp.mean(log_probs, axis=-1) * mask)
        plain = NextTokenConfig().loss(
            model, params, batch, z_loss=z_loss, rngs=rngs, reference=reference
        )
        total = (1 - self.smoothing) * cross + self.smoothing * uniform
        return plain._replace(total=total, sums={"loss": cross, "uniform": uniform})


class BigramsConfig(InputsConfig):
    kind: Literal["bigrams"] = "bigrams"


class Bigrams(TokenInputs):
    """The token's embedding, and half of that of the token before it in the row."""

    config: BigramsConfig

    def embed(self, tokens, rows):
        x = super().embed(tokens, rows)
        return x + 0.5 * jnp.pad(x, ((0, 0), (1, 0), (0, 0)))[:, :-1]


class BiasedConfig(OutputsConfig):
    kind: Literal["biased"] = "biased"


class Biased(Linear):
    """logits = W x + b."""

    config: BiasedConfig

    def setup(self):
        super().setup()
        zeros = nn.with_logical_partitioning(nn.initializers.zeros, ("vocab",))
        self.bias = self.param("head_bias", zeros, (self.vocab_size,), jnp.float32)

    def weights(self, table):
        return super().weights(table), self.bias

    def logits(self, weights, x, num_tokens=None):
        matrix, bias = weights
        return super().logits(matrix, x, num_tokens) + bias

    def loss(self, weights, x, targets, loss_mask, z_loss, label_smoothing=0.0):
        log_probs = jax.nn.log_softmax(self.logits(weights, x))
        picked = jnp.take_along_axis(log_probs, targets[..., None], axis=-1)[..., 0]
        tokens = jnp.sum(loss_mask, dtype=jnp.float32)
        return LossSums(-jnp.sum(picked * loss_mask), jnp.zeros(()), tokens)


def doubled(q, k, v, positions, segment_ids, **options):
    """Attention whose results tell that it was called."""
    tokens = Tokens(jnp.arange(q.shape[1])[None], positions, segment_ids)
    return 2 * attend(q, k, v, tokens, tokens, **options)


@pytest.fixture
def registered(monkeypatch):
    monkeypatch.setitem(MIXERS, MeanConfig, Mean)
    monkeypatch.setitem(CHANNEL_MIXERS, GatesConfig, Gates)
    monkeypatch.setitem(RESIDUALS, StreamsConfig, Streams)
    monkeypatch.setitem(INPUTS, BigramsConfig, Bigrams)
    monkeypatch.setitem(OUTPUTS, BiasedConfig, Biased)
    monkeypatch.setitem(KERNELS["attention"], "doubled", Kernel("cpu", lambda *_: None, doubled))
    OBJECTIVES.append(SmoothedConfig)
    yield
    OBJECTIVES.remove(SmoothedConfig)


def test_parts_from_outside_train_and_survive_save_and_restore(tmp_path, registered, monkeypatch):
    parts = {"mixer": "mean", "ffn": "gates", "residual": "streams"}
    parts |= {"inputs": "bigrams", "outputs": "biased"}
    config = make_config(
        tmp_path,
        model={name: {"kind": kind} for name, kind in parts.items()} | {"num_layers": 3},
        train={"steps": 3, "log_every": 1, "objective": {"kind": "smoothed"}},
        optimizer={"learning_rate": 0.01},
    )
    with monkeypatch.context() as patch:
        signal_at_step(patch, 2)
        assert train(config) == 75
    assert train(config) == 0

    rows = [row for row in results(tmp_path / "run") if "uniform" in row]
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert rows[0]["layer_loss"] == pytest.approx(0.1 * 3 * 16 * 4 * 16 / rows[0]["tokens"])
    assert rows[2]["layer_loss"] < rows[0]["layer_loss"]
    run = load(tmp_path / "run")
    assert by_path(run.params).keys() == {
        "embedding",
        "head_bias",
        "final_norm/scale",
        *(
            f"stack/groups/layer_0/{path}"
            for path in (
                "mixer_norm/scale",
                "mixer/out/kernel",
                "mixer_weight/weight",
                "ffn_norm/scale",
                "ffn/gates",
                "ffn_weight/weight",
            )
        ),
    }
    assert np.abs(run.params["head_bias"]).min() > 0
    assert len(run.generate("ab", max_new_tokens=3).encode()) >= 3


def test_a_kernel_from_outside_computes_attention_in_training(tmp_path, registered):
    config = make_config(tmp_path, train={"steps": 3, "kernels": {"attention": "doubled"}})
    assert train(config) == 0
    run = load(tmp_path / "run")
    tokens = jnp.arange(16)[None]

    def logits(kernel: str) -> jax.Array:
        model = run.model.clone(kernels=KernelsConfig(attention=kernel))
        return model.apply({"params": run.params}, tokens)

    assert jnp.abs(logits("doubled") - logits("xla")).max() > 1e-3
    with pytest.raises(ValidationError, match=r"'double'; allowed: auto, xla, splash.*'doubled'"):
        KernelsConfig(attention="double")


def test_the_script_of_the_page_about_extending_runs(tmp_path):
    page = (Path(__file__).parents[1] / "docs" / "extending.md").read_text()
    [script] = re.findall(r"^```python\n(.*?)^```", page, flags=re.MULTILINE | re.DOTALL)
    small = {"train.steps=50": "train.steps=30", "runs/gates": f"{tmp_path}/gates", "=64": "=4"}
    small['"model.ffn'] = '"model.d_model=16", "data.sequence_length=16", "model.ffn'
    for usual, other in small.items():
        assert usual in script
        script = script.replace(usual, other)
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "step 30/30" in done.stdout
