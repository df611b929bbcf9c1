"""What goes with a model of sound: how recordings are prepared (preprocessor_config.json)."""

from typing import Any

from jaxformer.checkpoint.interop.folder import PREPROCESSOR
from jaxformer.checkpoint.interop.hub_config import LARGEST, HubConfig
from jaxformer.checkpoint.interop.source import Source
from jaxformer.model.inputs import RawConfig
from jaxformer.terminal import say

Json = dict[str, Any]

# Of transformers' Wav2Vec2FeatureExtractor.
DEFAULTS: Json = {
    "feature_size": 1,
    "sampling_rate": 16000,
    "padding_value": 0.0,
    "do_normalize": True,
}
# Its names, and how batches are filled up, which leaves no trace here.
UNREAD = (
    *("feature_extractor_type", "processor_class", "return_attention_mask", "padding_side"),
    *("return_tensors", "tokenizer_class"),
)


def sample_rate(source: Source) -> int:
    """The rate of recordings, in Hz.

    Raises:
        UserError: they are prepared in a way that is not supported.
    """
    hub = HubConfig(source.preprocessor, f"{source.name}: {PREPROCESSOR}", DEFAULTS)
    for key in ("feature_size", "padding_value", "do_normalize"):
        hub.need(key, DEFAULTS[key])
    rate: int = hub.count("sampling_rate", most=LARGEST)
    for key in UNREAD:
        hub.take(key, None)
    hub.finish()
    if not source.preprocessor:
        say(f"{source.name} has no {PREPROCESSOR}: recordings are of {rate:,} Hz, and normalised")
    return rate


def preprocessor_config(inputs: RawConfig) -> Json:
    """The preprocessor_config.json of a run of sound. A model whose first convolution alone is
    normalised hears the padding in transformers, which then gives it no mask."""
    return {
        "feature_extractor_type": "Wav2Vec2FeatureExtractor",
        **DEFAULTS,
        "sampling_rate": inputs.sample_rate,
        "padding_side": "right",
        "return_attention_mask": inputs.norm == "layer",
    }
