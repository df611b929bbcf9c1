"""What stands for a configuration's targets: its tokenizer, or the classes of its rows."""

from jaxformer.config import DataConfig
from jaxformer.config.data_kinds import CHARACTERS, CLASSES
from jaxformer.data.audio.making import AudioRecipe
from jaxformer.data.audio.texts import normalised
from jaxformer.data.character_tokenizer import CharacterTokenizer
from jaxformer.data.images.making import ImageRecipe
from jaxformer.data.media.classes import classes_of
from jaxformer.data.tokenizers import Tokenizer, load_tokenizer


def tokenizer_of(data: DataConfig) -> Tokenizer:
    """The tokenizer of a configuration; `classes` and `characters` are those of its sources.

    Raises:
        UserError: it is missing, or the sources have no classes that agree.
    """
    if data.tokenizer == CLASSES:
        return classes_of(data, ImageRecipe if data.kind == "images" else AudioRecipe)
    if data.tokenizer == CHARACTERS:
        return _characters_of(data)
    return load_tokenizer(data.tokenizer, data.add_bos)


def _characters_of(data: DataConfig) -> CharacterTokenizer:
    """Those of the texts of all training sources, sorted; the recordings are decoded first."""
    assert data.audio is not None
    found: set[str] = set()
    for name in dict.fromkeys(entry.source for entry in data.all_sources):
        for text in AudioRecipe.of(name, data, None).open().targets:
            found.update(normalised(str(text), data.audio.letters))
    return CharacterTokenizer(CHARACTERS, "".join(sorted(found)))
