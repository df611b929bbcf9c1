"""Recurrences whose gates stand at their limits are the recurrences that they come from."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta

from jaxformer.model.dims import Dims, InitConfig
from jaxformer.model.mixers import Mixer, build_mixer
from jaxformer.model.mixers.base import MixerConfig
from jaxformer.model.mixers.comba import CombaConfig
from jaxformer.model.mixers.delta import DeltaConfig
from jaxformer.model.mixers.gated_delta2 import GatedDelta2Config
from jaxformer.model.mixers.kda import KDAConfig
from jaxformer.model.mixers.mamba3 import Mamba3Config
from jaxformer.model.positions import NoPositionsConfig
from jaxformer.model.rows import RowInfo
from jaxformer.ops.decayed_outer_product import decayed_outer_product

D_MODEL, LENGTH = 12, 9
DIMS = Dims(D_MODEL, num_layers=2, init=InitConfig(std="fan_in", output="plain"), dtype="float64")
X = np.random.default_rng(1).normal(size=(2, LENGTH, D_MODEL))
X[..., -1] = 1.0  # so that a weight can be a bias
ROWS = RowInfo(np.broadcast_to(np.arange(LENGTH), (2, LENGTH)), np.ones((2, LENGTH), np.int32))


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def build(config: MixerConfig) -> Mixer:
    return build_mixer(config, DIMS, NoPositionsConfig(), parent=None)


def start(config: MixerConfig) -> dict:
    return meta.unbox(jax.jit(build(config).init)(jax.random.key(0), X, ROWS)["params"])


def outputs(config: MixerConfig, params: dict) -> jax.Array:
    return jax.jit(build(config).apply)({"params": params}, X, ROWS)[0]


def assert_same(ours: jax.Array, theirs: jax.Array) -> None:
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-12 * float(jnp.abs(theirs).max()))


def test_comba_that_neither_decays_nor_spares_nor_corrects_is_deltanet() -> None:
    sizes = {"num_heads": 2, "head_dim": 4, "value_expansion": 1.5}
    config = CombaConfig(**sizes, output_correction=0.0, output_gate=False)
    params = start(config)
    always = jnp.full_like(params["a_log"], 40.0)  # e^−40 and 1 − σ(40) are less than a rounding
    limits = {"a_log": -always, "feedback": always}
    shared = {name: params[name] for name in ("query", "key", "value", "conv", "beta", "out")}
    assert_same(outputs(config, params | limits), outputs(DeltaConfig(**sizes), shared))


def test_gated_delta_net_2_with_one_gate_for_all_channels_is_kimi_delta_attention() -> None:
    """Their output gates are silu and σ, which agree at 1."""
    heads, key, value = 2, 4, 6
    sizes = {"num_heads": heads, "head_dim": key, "value_expansion": 1.5}
    params = start(KDAConfig(**sizes))
    one = {"kernel": jnp.zeros((key, heads, value)), "bias": jnp.ones((heads, value))}
    params |= {"gate_out": one}
    beta = params["beta"]["kernel"][..., None]  # [d_model, heads, 1]
    channels = {
        "erase": {"kernel": jnp.broadcast_to(beta, (D_MODEL, heads, key))},
        "write": {"kernel": jnp.broadcast_to(beta, (D_MODEL, heads, value))},
    }
    own = {name: leaf for name, leaf in params.items() if name != "beta"}
    assert_same(
        outputs(GatedDelta2Config(**sizes), own | channels),
        outputs(KDAConfig(**sizes), params),
    )


def test_mamba_3_of_steps_that_count_at_their_end_and_no_turn_has_mamba_2s_recurrence() -> None:
    """S_t = α_t S_{t−1} + Δ_t B_t x_tᵀ."""
    config = Mamba3Config(expansion=1.0, head_dim=6, state_size=4)
    params = start(config)
    ends = jnp.zeros_like(params["trapezoid"]["kernel"]).at[-1].set(40.0)
    params |= {"trapezoid": {"kernel": ends}}
    params |= {"angle": {"kernel": jnp.zeros_like(params["angle"]["kernel"])}}

    def normal(name: str) -> jax.Array:
        """[batch, length, heads, state_size], with the bias that it starts with."""
        own = X @ params[name]["kernel"][:, 0]
        own /= jnp.sqrt(jnp.mean(own**2, axis=-1, keepdims=True) + 1e-5)
        return 1 + jnp.repeat(own[:, :, None], 2, axis=2)

    x, z = (jnp.tensordot(X, params[name]["kernel"], 1) for name in ("x", "z"))
    step = jax.nn.softplus(X @ params["dt"]["kernel"] + params["dt_bias"])[..., None]
    log_decay = -jax.nn.softplus(X @ params["a"]["kernel"])[..., None] * step
    empty = build(config).init_cache(2, LENGTH, jnp.float64).memory
    o, _ = decayed_outer_product(
        normal("c"), normal("b"), step * x, log_decay, jnp.asarray(ROWS.segment_ids), empty
    )
    expected = jnp.tensordot((o + x) * jax.nn.silu(z), params["output"]["kernel"], 2)
    assert_same(outputs(config, params), expected)


def test_mamba_3_without_a_pair_of_states_to_turn_is_refused() -> None:
    message = r"state_size 3 × rope_fraction 0\.5 holds no pair of states to turn"
    with pytest.raises(ValueError, match=message):
        Mamba3Config(head_dim=6, state_size=3).check(D_MODEL, NoPositionsConfig())
