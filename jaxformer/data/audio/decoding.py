"""The bytes of a recording to samples of one channel at the wanted rate."""

import importlib.util
import io
import math
import re
from typing import NamedTuple

import numpy as np

from jaxformer.data.media.records import bad_file
from jaxformer.errors import UserError

LARGEST = 2**15 - 1  # of int16
FORMATS = "WAV, FLAC, Ogg (Vorbis, Opus), MP3, AIFF, AU"
# What libsndfile notes of a file that ends too early, while it gives what there is.
SHORT_DATA = re.compile(r"data : (\d+) \(should be (\d+)\)")
UNKNOWN_SIZE = 0x7FFF_0000  # from here on, the size of a stream whose end was not known
CUT_SHORT = ("File ended unexpectedly", "Last page lacks an end-of-stream bit", "> file length")


class Waveform(NamedTuple):
    """Samples, int16 [samples], and the rate in Hz at which the file has them."""

    samples: np.ndarray
    rate: int


def check_soundfile() -> None:
    """Check that soundfile is installed.

    Raises:
        UserError: it is not.
    """
    if importlib.util.find_spec("soundfile") is None:
        raise UserError("data.kind is audio; to decode them: pip install 'jaxformer[media]'")


def decode(content: bytes, place: str, sample_rate: int) -> Waveform:
    """The mean of a recording's channels at the wanted rate.

    Another rate is changed by a polyphase filter, which lets nothing above half of the lower rate
    through.

    Args:
        place: where it comes from, for messages.

    Raises:
        BadRow: it is empty, cut short, damaged, or no recording.
    """
    import soundfile

    try:
        with soundfile.SoundFile(io.BytesIO(content)) as file:
            rate, told, notes = file.samplerate, file.frames, file.extra_info
            channels = file.read(dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, RuntimeError) as error:
        what = "is empty" if not content else f"is damaged or none ({_reason(error)})"
        raise bad_file(place, "recording", f"{what}; allowed: {FORMATS}") from None
    if len(channels) < told or _is_cut_short(notes):
        raise bad_file(place, "recording", "is cut short")
    if not len(channels):
        raise bad_file(place, "recording", "has no samples")
    if not np.isfinite(channels).all():
        raise bad_file(place, "recording", "has samples that are no numbers")
    return Waveform(in_int16(resampled(channels.mean(axis=1), rate, sample_rate)), rate)


def resampled(samples: np.ndarray, rate: int, wanted: int) -> np.ndarray:
    """Samples at one rate as they are at another, ⌈samples · wanted / rate⌉ of them."""
    if rate == wanted:
        return samples
    from scipy.signal import resample_poly

    common = math.gcd(rate, wanted)
    return np.asarray(resample_poly(samples, wanted // common, rate // common))


def in_int16(samples: np.ndarray) -> np.ndarray:
    """Numbers from −1 to 1 as whole numbers; louder ones are clipped."""
    return np.clip(np.rint(samples * 2**15), -LARGEST - 1, LARGEST).astype(np.int16)


def _reason(error: Exception) -> str:
    return str(error).rpartition("Error : ")[2].rpartition(">: ")[2].strip().rstrip(".")


def _is_cut_short(notes: str) -> bool:
    size = SHORT_DATA.search(notes)
    if size is not None and int(size[2]) < int(size[1]) < UNKNOWN_SIZE:
        return True
    return any(note in notes for note in CUT_SHORT)
