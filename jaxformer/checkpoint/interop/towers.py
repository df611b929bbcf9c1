"""What CLIP and SigLIP share: a tower of texts and one of pictures, each a Transformer with biases
and norms before the sub-layers, and a section of its own in config.json."""

from jaxformer.checkpoint.interop.decoder import first_layer, layer_norm_rules, linear_rules
from jaxformer.checkpoint.interop.encoder import encoder_layers, encoder_sizes
from jaxformer.checkpoint.interop.family import Json
from jaxformer.checkpoint.interop.hub_config import HubConfig
from jaxformer.checkpoint.interop.patches import (
    PatchKernel,
    number_of_patches,
    patches_of,
    sizes_of_patches,
)
from jaxformer.checkpoint.interop.rules import Rule, row, within
from jaxformer.errors import UserError
from jaxformer.model.config import ModelConfig
from jaxformer.model.contrastive import ContrastiveConfig
from jaxformer.model.inputs import PatchesConfig
from jaxformer.model.positions import LearnedPositionsConfig
from jaxformer.model.trunk_config import EncoderConfig, TrunkConfig

TEXT, PICTURES = "text_config", "vision_config"
PARTS = (TEXT, PICTURES)
UNUSED = r"(text|vision)_model\.embeddings\.position_ids"

LAYER = [
    *layer_norm_rules("layer_norm1", "mixer_norm"),
    *(
        rule
        for theirs, ours in (("q", "query"), ("k", "key"), ("v", "value"))
        for rule in linear_rules(f"self_attn.{theirs}_proj", f"mixer/{ours}", bias=True)
    ),
    *linear_rules("self_attn.out_proj", "mixer/output", bias=True, inputs=2),
    *layer_norm_rules("layer_norm2", "ffn_norm"),
    *linear_rules("mlp.fc1", "ffn/in", bias=True),
    *linear_rules("mlp.fc2", "ffn/out", bias=True),
]


def part_of(hub: HubConfig, key: str, defaults: Json) -> HubConfig:
    """The section of a tower. Older files have all that matters in `key`_dict, which transformers
    then goes by alone."""
    plain, older = hub.section(key), hub.section(f"{key}_dict")
    return HubConfig(older or plain, f"{hub.name}: {key}", defaults)


def texts(hub: HubConfig, order: str) -> Json:
    """The keys of our `model:` section for the tower of texts."""
    return {
        **encoder_layers(hub, "pre"),
        "order": order,
        "vocab_size": hub.count("vocab_size"),
        "positions": {"kind": "learned", "max_length": hub.count("max_position_embeddings")},
        "tie_embeddings": False,
    }


def pictures(hub: HubConfig, class_token: bool, **inputs: bool) -> Json:
    """Our `encoder` for the tower of pictures."""
    patches = patches_of(hub)
    count = number_of_patches(patches)
    return {
        **encoder_layers(hub, "pre"),
        "length": count,
        "positions": {"kind": "learned", "max_length": count + class_token},
        "inputs": {**patches, "class_token": class_token, **inputs},
    }


def sizes_of_towers(model: ModelConfig, kind: str) -> Json:
    """The sections of config.json, whose `model_type`s begin with `kind`.

    Raises:
        UserError: the model has other positions, or no second tower.
    """
    positions = first_layer(model).positions
    if not isinstance(positions, LearnedPositionsConfig):
        raise UserError("no learned positions, where this family has some")
    of_texts = {
        "model_type": f"{kind}_text_model",
        **_sizes(model),
        "vocab_size": model.vocab_size,
        "max_position_embeddings": positions.max_length,
    }
    encoder = encoder_of(model)
    of_pictures = {
        "model_type": f"{kind}_vision_model",
        **_sizes(encoder),
        **sizes_of_patches(encoder),
    }
    return {TEXT: of_texts, PICTURES: of_pictures}


def _sizes(model: TrunkConfig) -> Json:
    """Without the way to start, where transformers does not have it."""
    sizes = encoder_sizes(model)
    is_number = isinstance(sizes["initializer_range"], float)
    return {k: v for k, v in sizes.items() if is_number or k != "initializer_range"}


def encoder_of(model: ModelConfig) -> EncoderConfig:
    """Raises UserError where there is none."""
    if model.encoder is None:
        raise UserError("no encoder, where this family has one of pictures")
    return model.encoder


def outputs_of(model: ModelConfig) -> ContrastiveConfig:
    """Raises UserError where they are others."""
    if not isinstance(model.outputs, ContrastiveConfig):
        raise UserError(f"outputs {model.outputs.kind}, where this family has contrastive")
    return model.outputs


def tower_rules(model: ModelConfig) -> list[Rule]:
    """Both towers, below what makes vectors of them."""
    encoder = encoder_of(model)
    inputs = encoder.inputs
    assert isinstance(inputs, PatchesConfig)
    patches = "vision_model.embeddings.patch_embedding"
    table = [
        row("text_model.embeddings.token_embedding.weight", "embedding"),
        row("text_model.embeddings.position_embedding.weight", "position_embedding"),
        *_layers(model, "text_model", "layers"),
        *layer_norm_rules("text_model.final_layer_norm", "final_norm"),
        row(f"{patches}.weight", "encoder/patch_projection/kernel", PatchKernel(inputs.patch)),
        row("vision_model.embeddings.position_embedding.weight", "encoder/position_embedding"),
        *_layers(encoder, "vision_model", "encoder/layers"),
        *layer_norm_rules("vision_model.post_layernorm", "encoder/final_norm"),
    ]
    if inputs.bias:
        table.append(row(f"{patches}.bias", "encoder/patch_projection/bias"))
    if inputs.class_token:
        table.append(row("vision_model.embeddings.class_embedding", "encoder/class_token"))
    if inputs.embedding_norm:
        table += layer_norm_rules("vision_model.pre_layrnorm", "encoder/embedding_norm")
    return table


def _layers(model: TrunkConfig, theirs: str, ours: str) -> list[Rule]:
    return [
        rule
        for index in range(model.num_layers)
        for rule in within(f"{theirs}.encoder.layers.{index}", f"{ours}/{index}", LAYER)
    ]
