"""Whether a family has a model of ours: what its config.json is read as is compared with it."""

from typing import Any

from pydantic import ValidationError

from jaxformer.checkpoint.interop.decoder import embedding_scale, usual_scale
from jaxformer.checkpoint.interop.family import Family, Json
from jaxformer.checkpoint.run_directory import flat
from jaxformer.errors import UserError
from jaxformer.model.channel_mixers.moe import MoEConfig
from jaxformer.model.config import ModelConfig
from jaxformer.model.contrastive import ContrastiveConfig
from jaxformer.model.layer import Layer
from jaxformer.model.mixers.attention import AttentionConfig
from jaxformer.model.mixers.cross_attention import CrossAttentionConfig
from jaxformer.model.mixers.gated_delta import GatedDeltaConfig
from jaxformer.model.mixers.latent_attention import LatentAttentionConfig
from jaxformer.model.mixers.mamba import MambaConfig
from jaxformer.model.trunk_config import TrunkConfig
from jaxformer.schema.explanations import show

# What follows from the layers, is of training alone, or is in another file than config.json.
ELSEWHERE: Any = {
    **dict.fromkeys(("mixer", "ffn", "first", "pattern", "positions", "init"), True),
    "inputs": {"mean", "std", "sample_rate", "augment"},
    "outputs": {"scale"},
    "encoder": True,
    "residual": {"dropout"},
}


def fit(family: Family, model: ModelConfig) -> tuple[Json, list[str]]:
    """The config.json of `model` as one of `family`, and how that would differ from `model`."""
    try:
        options = {"model_type": family.model_type, **family.from_config(model)}
        if not isinstance(options.get("initializer_range"), float):
            options.pop("initializer_range", None)  # a way to start that transformers does not have
        read = ModelConfig.model_validate(family.read(options))
    except UserError as error:
        return {}, [str(error)]
    except ValidationError as error:
        return {}, [detail["msg"] for detail in error.errors()]
    return options, differences(described(model), described(read), model.num_layers)


def differences(wanted: Json, found: Json, num_layers: int) -> list[str]:
    """Names each option that differs between `wanted` and `found`; layers alike share a line."""
    layers: dict[str, list[str]] = {}
    for key in sorted(wanted.keys() | found.keys(), key=lambda key: [len(key), key]):
        if wanted.get(key) == found.get(key):
            continue
        number, name = "", key
        if key.startswith("layers."):
            _, number, name = key.split(".", 2)
            name += " of {}"
        values = f"is {show(wanted.get(key))}, where this family has {show(found.get(key))}"
        layers.setdefault(f"{name} {values}", []).append(number)
    return [line.format(_named(numbers, num_layers)) for line, numbers in layers.items()]


def _named(numbers: list[str], num_layers: int) -> str:
    if len(numbers) == num_layers:
        return "every layer"
    return f"layer{'s' if len(numbers) > 1 else ''} {', '.join(numbers)}"


def described(model: TrunkConfig) -> dict[str, Any]:
    """All that affects the logits, spelt out, however the configuration says it."""
    whole = {
        "layers": {
            str(index): _layer(layer, model.d_model) for index, layer in enumerate(model.layers())
        },
        **model.model_dump(exclude=ELSEWHERE),
    }
    whole["scale_embeddings"] = embedding_scale(model)
    if isinstance(model, ModelConfig):
        whole["encoder"] = None if model.encoder is None else described(model.encoder)
        if isinstance(model.outputs, ContrastiveConfig) and model.outputs.bias is not None:
            whole["outputs"]["bias"] = "given"  # at the start, it is any number
    return flat(whole)


def _layer(layer: Layer, d_model: int) -> Json:
    mixer = {} if layer.mixer is None else layer.mixer.model_dump()
    positions = layer.positions.model_dump()
    if layer.positions.kind == "rope":
        positions.pop("max_length")
    if isinstance(layer.mixer, AttentionConfig | CrossAttentionConfig):
        head_dim = layer.mixer.head_size(d_model)
        mixer["num_kv_heads"], mixer["head_dim"] = layer.mixer.kv_heads, head_dim
        mixer["scale"] = layer.mixer.scale or usual_scale(head_dim)
        if not mixer.get("qk_norm"):
            mixer.pop("qk_norm_eps", None)
    if isinstance(layer.mixer, LatentAttentionConfig):
        mixer["scale"] = layer.mixer.logit_scale
    if isinstance(layer.mixer, MambaConfig):
        mixer["dt_rank"] = layer.mixer.rank(d_model)
    if isinstance(layer.mixer, GatedDeltaConfig):
        mixer["num_key_heads"] = layer.mixer.key_heads
    ffn = {} if layer.ffn is None else layer.ffn.model_dump()
    if isinstance(layer.ffn, MoEConfig):  # what is of training alone left out
        ffn.pop("jitter")
        ffn["balance"] = {"bias_rate": None if layer.ffn.balance.bias_rate is None else "given"}
        if layer.ffn.groups == 1:
            ffn.pop("group_score")
        if layer.ffn.shared is not None:
            ffn["shared"] = {"width": layer.ffn.shared_width, "gate": layer.ffn.shared.gate}
    return {"mixer": mixer, "ffn": ffn, "positions": positions, "mixer_norm": layer.mixer_norm}
