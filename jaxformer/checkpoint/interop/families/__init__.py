"""Families by their `model_type`."""

from jaxformer.checkpoint.interop.families.bert import BERT
from jaxformer.checkpoint.interop.families.clip import CLIP
from jaxformer.checkpoint.interop.families.deepseek import DEEPSEEK2, DEEPSEEK3
from jaxformer.checkpoint.interop.families.gemma import GEMMA, GEMMA2
from jaxformer.checkpoint.interop.families.gemma3 import GEMMA3_TEXT
from jaxformer.checkpoint.interop.families.gpt2 import GPT2
from jaxformer.checkpoint.interop.families.gpt_oss import GPT_OSS
from jaxformer.checkpoint.interop.families.granite import GRANITE
from jaxformer.checkpoint.interop.families.granitemoe import GRANITEMOE
from jaxformer.checkpoint.interop.families.jamba import JAMBA
from jaxformer.checkpoint.interop.families.kimi_linear import KIMI_LINEAR
from jaxformer.checkpoint.interop.families.llama import LLAMA
from jaxformer.checkpoint.interop.families.mamba import MAMBA
from jaxformer.checkpoint.interop.families.mamba2 import MAMBA2
from jaxformer.checkpoint.interop.families.ministral import MINISTRAL
from jaxformer.checkpoint.interop.families.mistral import MISTRAL
from jaxformer.checkpoint.interop.families.mixtral import MIXTRAL
from jaxformer.checkpoint.interop.families.modernbert import MODERNBERT
from jaxformer.checkpoint.interop.families.olmo2 import OLMO2
from jaxformer.checkpoint.interop.families.olmo3 import OLMO3
from jaxformer.checkpoint.interop.families.olmoe import OLMOE
from jaxformer.checkpoint.interop.families.phi3 import PHI3
from jaxformer.checkpoint.interop.families.qwen import QWEN2, QWEN3
from jaxformer.checkpoint.interop.families.qwen3_next import QWEN3_NEXT
from jaxformer.checkpoint.interop.families.qwen_moe import QWEN2_MOE, QWEN3_MOE
from jaxformer.checkpoint.interop.families.recurrent_gemma import RECURRENT_GEMMA
from jaxformer.checkpoint.interop.families.siglip import SIGLIP
from jaxformer.checkpoint.interop.families.smollm3 import SMOLLM3
from jaxformer.checkpoint.interop.families.t5 import T5
from jaxformer.checkpoint.interop.families.vit import VIT
from jaxformer.checkpoint.interop.families.wav2vec2 import HUBERT, WAV2VEC2
from jaxformer.checkpoint.interop.families.whisper import WHISPER
from jaxformer.checkpoint.interop.families.xlstm import XLSTM
from jaxformer.checkpoint.interop.family import Family, Json
from jaxformer.checkpoint.interop.fitting import fit
from jaxformer.checkpoint.interop.hub_config import shown
from jaxformer.checkpoint.interop.other_models import refuse_other_models
from jaxformer.errors import UserError, did_you_mean
from jaxformer.model.config import ModelConfig

TABLE = (
    *(LLAMA, MISTRAL, MINISTRAL, QWEN2, QWEN3, GEMMA, GEMMA2, GEMMA3_TEXT),
    *(OLMO2, OLMO3, SMOLLM3, GRANITE, PHI3, GPT2),
    *(MIXTRAL, QWEN2_MOE, QWEN3_MOE, OLMOE, GRANITEMOE, GPT_OSS, DEEPSEEK2, DEEPSEEK3),
    *(MAMBA, MAMBA2, RECURRENT_GEMMA, XLSTM),
    *(QWEN3_NEXT, KIMI_LINEAR, JAMBA),
    *(BERT, MODERNBERT, VIT, CLIP, SIGLIP, WAV2VEC2, HUBERT, T5, WHISPER),
)
FAMILIES: dict[str, Family] = {family.model_type: family for family in TABLE}


def family_of(config: Json, name: str) -> Family:
    """The family of the config.json of `name`.

    Raises:
        UserError: it is unknown, or not a plain model.
    """
    model_type = config.get("model_type")
    known = FAMILIES.get(model_type) if isinstance(model_type, str) else None
    has_encoder = known is not None and known.defaults.get("is_encoder_decoder", False)
    refuse_other_models(config, name, known.parts if known else (), has_encoder=has_encoder)
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        nearest = did_you_mean(model_type, FAMILIES) if isinstance(model_type, str) else ""
        raise UserError(
            f"{name}: config.json has model_type {shown(model_type)}, which cannot be imported; "
            f"families: {', '.join(FAMILIES)}.{nearest}"
        )
    return FAMILIES[model_type]


def choose_family(model: ModelConfig, first: str | None = None) -> tuple[Family, Json]:
    """The family `first`, or else the first one, that has such a model, and its config.json.

    Raises:
        UserError: none has; with the differences from the nearest.
    """
    tried = []
    for family in sorted(TABLE, key=lambda family: family.model_type != first):
        options, differences = fit(family, model)
        if not differences:
            return family, options
        tried.append((not options, len(differences), family.model_type, differences))
    *_, nearest, differences = min(tried)
    raise UserError(
        f"no family of transformers known here fits this model; the nearest is {nearest}, but:\n  "
        + "\n  ".join(differences)
        + f"\nfamilies: {', '.join(FAMILIES)}"
    )
