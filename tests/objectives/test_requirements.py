"""Models that cannot be trained so are refused, in words."""

import jax
import pytest
from objectives.small import MODEL
from pydantic import ValidationError

from jaxformer.config import Config
from jaxformer.config.loading import load_config
from jaxformer.errors import DoesNotFit
from jaxformer.model.dims import KernelsConfig
from jaxformer.parallel.mesh import make_mesh
from jaxformer.train.program import make_program


def config_of(kind: str, **model: object) -> Config:
    objective = {"kind": kind}
    return Config.model_validate({"model": MODEL | model, "train": {"objective": objective}})


@pytest.mark.parametrize(
    "kind", ["masked_diffusion", "block_diffusion", "any_order", "token_dropout"]
)
def test_hidden_tokens_need_an_embedding(kind):
    config_of(kind)
    with pytest.raises(ValidationError, match=rf"is {kind}, which hides.*give model.inputs=\{{kin"):
        config_of(kind, inputs={"kind": "tokens"})


def test_the_command_line_takes_what_the_message_gives():
    given = ["train.objective={kind: masked_diffusion}", "model.inputs={kind: tokens, mask: true}"]
    assert load_config("configs/quickstart.yaml", given).model.inputs.mask


@pytest.mark.parametrize("kind", ["masked_diffusion", "block_diffusion", "any_order", "prefix"])
def test_mixers_that_go_from_left_to_right_are_named(kind):
    pattern = [{}, {"mixer": {"kind": "min_gru"}}]
    message = r"the mixers of layers 1, 3 go from left to right: min_gru; allowed: attention witho"
    with pytest.raises(ValidationError, match=message):
        config_of(kind, pattern=pattern, num_layers=4)
    with pytest.raises(ValidationError, match="layers 0, 1 go from left to right: attention;"):
        config_of(kind, mixer={"kind": "attention", "num_heads": 2, "window": 4})


def test_mixers_that_see_any_order_are_taken():
    latent = {"kind": "latent_attention", "num_heads": 2, "head_dim": 4}
    config_of("prefix", mixer=latent, inputs={"kind": "tokens"})


def test_token_dropout_takes_any_mixer():
    config_of("token_dropout", mixer={"kind": "min_gru"})


def test_a_kernel_asked_for_by_name_is_refused_and_auto_is_none():
    mesh = make_mesh({}, devices=jax.devices()[:1])
    config = config_of("masked_diffusion")
    message = r"attention is cudnn, but train.objective is masked_diffusion.*allowed: auto, xla"
    asked = config.train.model_copy(update={"kernels": KernelsConfig(attention="cudnn")})
    with pytest.raises(DoesNotFit, match=message):
        make_program(config.model_copy(update={"train": asked}), mesh, 7)
    assert make_program(config, mesh, 7).kernels == (
        "attention xla: no kernel supports masked_diffusion",
    )


def test_layers_that_read_a_row_twice_count_twice():
    mesh = make_mesh({}, devices=jax.devices()[:1])
    once, twice = (
        make_program(config_of(kind), mesh, 7) for kind in ("masked_diffusion", "block_diffusion")
    )
    head = 2 * 8 * 7
    per_token = once.flops_per_step / once.tokens_per_step / 3
    layers = per_token - head
    assert twice.flops_per_step / once.tokens_per_step / 3 == pytest.approx(2 * layers + head)


def test_rates_fall_in_no_wrong_order():
    objective = {"kind": "block_diffusion", "rates": [0.8, 0.3]}
    with pytest.raises(ValidationError, match=r"rates are \[0.8, 0.3\]; the lowest comes first"):
        Config.model_validate({"model": MODEL, "train": {"objective": objective}})


def test_a_block_longer_than_a_row_is_refused():
    objective = {"kind": "block_diffusion", "block": 32}
    data = {"source": "builtin:python", "sequence_length": 16}
    keys = {"model": MODEL, "data": data, "train": {"objective": objective}}
    with pytest.raises(ValidationError, match="needs rows of at least 32 tokens, a whole block"):
        Config.model_validate(keys)
