"""The tokenizer of a model that was trained with CTC: the vocab.json of transformers'
Wav2Vec2CTCTokenizer, with a character for each id, as a tokenizer.json, and back."""

import json
from collections.abc import Mapping
from typing import Any

from jaxformer.checkpoint.interop.hub_config import shown
from jaxformer.data.character_tokenizer import CharacterTokenizer
from jaxformer.data.huggingface_tokenizer import HuggingFaceTokenizer
from jaxformer.data.text_ends import named_tokens
from jaxformer.data.tokenizers import Tokenizer
from jaxformer.errors import UserError

Json = dict[str, Any]

CLASS = "Wav2Vec2CTCTokenizer"
SPACE = "|"  # what stands for one in vocab.json
DEFAULTS = {
    "unk_token": "<unk>",
    "pad_token": "<pad>",
    "bos_token": "<s>",
    "eos_token": "</s>",
    "word_delimiter_token": SPACE,
}
# What the tokenizer must do where its file says how.
NEEDED: Json = {
    "tokenizer_class": CLASS,
    "do_lower_case": False,
    "target_lang": None,
    "replace_word_delimiter_char": " ",
}


def from_vocabulary(vocab: Json, settings: Mapping[str, Any], name: str) -> tuple[Json, Json]:
    """tokenizer.json and tokenizer_config.json of a vocab.json and the settings beside it. Without
    an end of text, the padding, which is the blank, is called so.

    Raises:
        UserError: the tokenizer is of another kind.
    """
    for key, needed in NEEDED.items():
        if (value := settings.get(key, needed)) != needed:
            raise UserError(
                f"{name}: tokenizer_config.json has {key} {shown(value)}, which is not supported "
                f"for the vocab.json of a {CLASS}; allowed: {needed!r}"
            )
    if not vocab or not all(type(index) is int for index in vocab.values()):
        raise UserError(
            f"{name}: vocab.json has {shown(vocab)}; allowed: a number for each token of one "
            f"language"
        )
    tokens = DEFAULTS | named_tokens(settings)
    for key in ("unk_token", "pad_token"):
        if tokens[key] not in vocab:
            raise UserError(f"{name}: vocab.json has no {tokens[key]}, which is its {key}")
    space = tokens.pop("word_delimiter_token")
    if len(space) != 1:
        raise UserError(
            f"{name}: tokenizer_config.json has word_delimiter_token {shown(space)}; allowed: one "
            f"character"
        )
    kept = {key: tokens[key] for key in DEFAULTS if tokens.get(key) in vocab}
    kept.setdefault("eos_token", kept["pad_token"])
    return json.loads(_definition(vocab, kept, space)), {"tokenizer_class": CLASS, **kept}


def _definition(vocab: Mapping[str, int], named: Mapping[str, str], space: str) -> str:
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers
    from tokenizers import pre_tokenizers as before

    tokenizer = Tokenizer(models.WordLevel(dict(vocab), unk_token=named["unk_token"]))
    tokenizer.normalizer = normalizers.Replace(" ", space)
    tokenizer.pre_tokenizer = before.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Sequence([decoders.Replace(space, " "), decoders.Fuse()])
    specials = [token for token in vocab if token in named.values()]
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in specials])
    longer = [token for token in vocab if len(token) > 1 and token not in specials]
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in longer])
    return str(tokenizer.to_str())


def to_vocabulary(tokenizer: Tokenizer) -> tuple[Json, Json] | None:
    """vocab.json and tokenizer_config.json; None if the tokenizer is none of characters, or has one
    that stands for a space in vocab.json."""
    settings: Json = {"tokenizer_class": CLASS, "bos_token": None, "eos_token": None}
    if isinstance(tokenizer, CharacterTokenizer) and SPACE not in tokenizer.characters:
        named = {key: DEFAULTS[key] for key in ("unk_token", "pad_token")}
        tokens = [*tokenizer.characters.replace(" ", SPACE), *named.values()]
        vocab = {token: index for index, token in enumerate(tokens)}
        return vocab, settings | named | {"word_delimiter_token": SPACE}
    if not isinstance(tokenizer, HuggingFaceTokenizer):
        return None
    if tokenizer.settings.get("tokenizer_class") != CLASS:
        return None
    definition, named = json.loads(tokenizer.definition), named_tokens(tokenizer.settings)
    if named["eos_token"] == named["pad_token"]:
        del named["eos_token"]
    space = definition["normalizer"]["content"]
    return definition["model"]["vocab"], settings | named | {"word_delimiter_token": space}
