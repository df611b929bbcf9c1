"""Which tokens stand before a text and after it, according to the tokenizer's files.

The files are tokenizer.json with its post-processor, and beside it tokenizer_config.json,
special_tokens_map.json, and for the end of text generation_config.json and config.json.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from jaxformer.errors import UserError
from jaxformer.reading import read_json_object

if TYPE_CHECKING:
    import tokenizers

AddBos = bool | Literal["auto"]
KNOWN_BOS = ("<s>", "<|begin_of_text|>", "<bos>", "<|startoftext|>")
NAMING = {"add_bos_token", "bos_token", "eos_token", "eos_token_id"}
KNOWN_EOS = ("<|endoftext|>", "</s>", "<|end_of_text|>", "<eos>")


class Ends(NamedTuple):
    """`prefix` is put before every text, and may be empty. `bos` is the token of that name, whether
    or not it is in the prefix. `eos` ends a document."""

    prefix: tuple[int, ...]
    bos: int | None
    eos: int


def read_settings(name: str, find: Callable[[str], Path | None]) -> dict[str, Any]:
    """tokenizer_config.json, completed by the other files; `find` gives the path of a file.

    Raises:
        UserError: a file is not a JSON object.
    """

    def read(file: str) -> dict[str, Any]:
        path = find(file)
        if path is None:
            return {}
        return read_json_object(path.read_bytes(), f"data.tokenizer '{name}': {path}")

    settings, tokens = read("tokenizer_config.json"), read("special_tokens_map.json")
    # As in transformers, the older file takes precedence unless the newer lists the added tokens.
    settings = tokens | settings if "added_tokens_decoder" in settings else settings | tokens
    if settings.get("eos_token") is None:
        for file in ("generation_config.json", "config.json"):
            ids = read(file).get("eos_token_id")
            first = ids[0] if isinstance(ids, list) and ids else ids
            if isinstance(first, int):
                return settings | {"eos_token_id": first}
    return settings


def named_tokens(settings: Mapping[str, Any]) -> dict[str, str]:
    """`eos_token` and its like, which are texts or objects in the files."""
    named = {}
    for key, token in settings.items():
        content = token.get("content") if isinstance(token, dict) else token
        if key.endswith("_token") and isinstance(content, str):
            named[key] = content
    return named


def ends_of(
    name: str, settings: Mapping[str, Any], definition: "tokenizers.Tokenizer", add_bos: AddBos
) -> Ends:
    """The ends of texts. `add_bos` true or false overrides the files.

    Where the files name no end and have no post-processor, as `data train-tokenizer` writes them, a
    text begins with a token that is known by its name, or else with the end of text.

    Raises:
        UserError: no end of text, or a token that is not in the vocabulary.
    """
    ids = definition.get_vocab(with_added_tokens=True)
    before, after = added_by(definition.post_processor)
    eos = _token_id(name, "eos_token", settings, ids)
    if eos is None and after:
        eos = after[0]
    if eos is None and settings.get("eos_token_id") in ids.values():
        eos = settings["eos_token_id"]
    if eos is None:
        eos = _known(KNOWN_EOS, ids)
    if eos is None:
        raise UserError(
            f"data.tokenizer '{name}': no eos_token in tokenizer_config.json, "
            f"special_tokens_map.json or the post-processor, no eos_token_id in "
            f"generation_config.json or config.json, and none of {', '.join(KNOWN_EOS)} in the "
            f"vocabulary; name it as eos_token in tokenizer_config.json"
        )
    bos = _token_id(name, "bos_token", settings, ids)
    said = settings.get("add_bos_token")
    silent = definition.post_processor is None and not (NAMING & settings.keys())
    if add_bos == "auto":
        begins = said if isinstance(said, bool) else bool(before) or silent
    else:
        begins = add_bos
    if not begins:
        return Ends((), bos, eos)
    if before:
        return Ends(before, bos, eos)
    if bos is None and (add_bos is True or "bos_token" not in settings):
        bos = _known(KNOWN_BOS, ids)
    if bos is None and (add_bos is True or silent):
        bos = eos
    return Ends(() if bos is None else (bos,), bos, eos)


def added_by(post_processor: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The ids that a post-processor puts before a text and after it."""
    from tokenizers import Tokenizer, models

    if post_processor is None:
        return (), ()
    probe = Tokenizer(models.WordLevel({"x": 0}, unk_token="x"))
    probe.post_processor = post_processor
    encoding = probe.encode("x")
    at = encoding.special_tokens_mask.index(0)
    return tuple(encoding.ids[:at]), tuple(encoding.ids[at + 1 :])


def _token_id(
    name: str, key: str, settings: Mapping[str, Any], ids: Mapping[str, int]
) -> int | None:
    token = named_tokens({key: settings.get(key)}).get(key)
    if token is not None and token not in ids:
        raise UserError(
            f"data.tokenizer '{name}': tokenizer_config.json or special_tokens_map.json names "
            f"{key} '{token}', which is not in the vocabulary"
        )
    return None if token is None else ids[token]


def _known(tokens: tuple[str, ...], ids: Mapping[str, int]) -> int | None:
    return next((ids[token] for token in tokens if token in ids), None)
