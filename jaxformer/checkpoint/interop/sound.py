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
# Of transformers' WhisperFeatureExtractor, whose features are bands, and whose chunks are seconds.
WHISPER: Json = {
    "feature_size": 80,
    "sampling_rate": 16000,
    "hop_length": 160,
    "chunk_length": 30,
    "n_fft": 400,
    "padding_value": 0.0,
    "dither": 0.0,
}
SAMPLE_RATE, SAMPLES_PER_PLACE = 16000, 320  # of Whisper
START = 50257  # decoder_start_token_id of transformers' WhisperConfig
PLACES_PER_SECOND = SAMPLE_RATE // SAMPLES_PER_PLACE
# Their names, how batches are filled up, which leaves no trace here, and what follows from others.
UNREAD = (
    *("feature_extractor_type", "processor_class", "return_attention_mask", "padding_side"),
    *("return_tensors", "tokenizer_class", "mel_filters", "n_samples", "nb_max_frames"),
)


def sample_rate(source: Source) -> int:
    """The rate of recordings, in Hz.

    Raises:
        UserError: they are prepared in a way that is not supported.
    """
    hub = _preparation(source, DEFAULTS)
    for key in ("feature_size", "padding_value", "do_normalize"):
        hub.need(key, DEFAULTS[key])
    rate: int = hub.count("sampling_rate", most=LARGEST)
    hub.finish()
    if not source.preprocessor:
        say(f"{source.name} has no {PREPROCESSOR}: recordings are of {rate:,} Hz, and normalised")
    return rate


def recordings_of_whisper(source: Source, encoder: Json) -> Json:
    """The section `data.audio` of a Whisper, whose section `encoder` is given.

    Raises:
        UserError: recordings are prepared in another way than the model's inputs do it.
    """
    length, mels = encoder["length"], encoder["inputs"]["mels"]
    of_model = {"feature_size": mels, "chunk_length": length / PLACES_PER_SECOND}
    if source.preprocessor:
        hub = _preparation(source, WHISPER)
        for key, value in (WHISPER | of_model).items():
            hub.need(key, value)
        hub.finish()
    return {
        "sample_rate": SAMPLE_RATE,
        "samples_per_place": SAMPLES_PER_PLACE,
        "text": "text",
        "source_length": length,
        "start": [source.config.get("decoder_start_token_id", START)],
    }


def _preparation(source: Source, defaults: Json) -> HubConfig:
    """The keys of preprocessor_config.json, of which those are taken that change no number."""
    hub = HubConfig(source.preprocessor, f"{source.name}: {PREPROCESSOR}", defaults)
    for key in UNREAD:
        hub.take(key, None)
    return hub


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


def preprocessor_of_whisper(mels: int, length: int) -> Json:
    """The preprocessor_config.json of a Whisper, whose encoder has rows of `length` places."""
    return {
        "feature_extractor_type": "WhisperFeatureExtractor",
        **WHISPER,
        "feature_size": mels,
        "chunk_length": length // PLACES_PER_SECOND,
        "padding_side": "right",
        "return_attention_mask": False,
    }
