"""The tokenizer in a GGUF file as Hugging Face's tokenizer.json and tokenizer_config.json."""

from enum import IntEnum
from typing import Any, NamedTuple

from jaxformer.checkpoint.interop.gguf_reader import Metadata
from jaxformer.errors import UserError, did_you_mean


class TokenType(IntEnum):
    """What a token is, in tokenizer.ggml.token_type."""

    NORMAL = 1
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5  # fills up the embedding


class PreTokenizer(NamedTuple):
    """How text is cut before merging. The regular expressions are those of the models' authors."""

    split: dict[str, Any]
    ignore_merges: bool = False  # a piece that is a token is that token, whatever the merges say
    normalizer: dict[str, Any] | None = None
    add_bos: bool = False  # if the file does not say, as in llama.cpp


def _byte_level(use_regex: bool) -> dict[str, Any]:
    """Bytes as printable characters; `use_regex` cuts as GPT-2 does."""
    return {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": use_regex,
    }


def _sequence(first: dict[str, Any], use_regex: bool) -> dict[str, Any]:
    return {"type": "Sequence", "pretokenizers": [first, _byte_level(use_regex)]}


def _cut_by(digits: str) -> dict[str, Any]:
    """The expression of GPT-4 and its descendants, which differ in how digits are cut."""
    expression = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
        + digits
        + r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    split = {
        "type": "Split",
        "pattern": {"Regex": expression},
        "behavior": "Isolated",
        "invert": False,
    }
    return _sequence(split, use_regex=False)


PRE_TOKENIZERS = {
    "gpt-2": PreTokenizer(_byte_level(use_regex=True)),
    "smollm": PreTokenizer(
        _sequence({"type": "Digits", "individual_digits": True}, use_regex=True)
    ),
    "llama-bpe": PreTokenizer(_cut_by(r"\p{N}{1,3}"), ignore_merges=True, add_bos=True),
    "qwen2": PreTokenizer(_cut_by(r"\p{N}"), normalizer={"type": "NFC"}),
}


def tokenizer_files(metadata: Metadata) -> dict[str, dict[str, Any]] | None:
    """{file name: content}, or None where the GGUF file holds no tokenizer.

    Raises:
        UserError: the tokenizer is not byte-level BPE, or cuts text in an unknown way.
    """
    model = metadata.get("tokenizer.ggml.model", str, "none")
    if model == "none":
        return None
    if model != "gpt2":
        raise UserError(
            f"{metadata.path}: tokenizer.ggml.model '{model}' cannot be imported; allowed: gpt2 "
            f"(byte-level BPE). Import the Hugging Face folder, which has a tokenizer.json"
        )
    tokens = metadata.require("tokenizer.ggml.tokens", list)
    types = metadata.require("tokenizer.ggml.token_type", list)
    if len(types) != len(tokens):
        raise UserError(
            f"{metadata.path}: {len(tokens)} tokens and {len(types)} token types; convert the "
            f"model again"
        )
    return {
        "tokenizer.json": _definition(metadata, tokens, types),
        "tokenizer_config.json": _config(metadata, tokens),
    }


def _definition(metadata: Metadata, tokens: list[str], types: list[int]) -> dict[str, Any]:
    pre = _pre_tokenizer(metadata)
    merges = metadata.require("tokenizer.ggml.merges", list)
    vocab = {
        token: index
        for index, (token, kind) in enumerate(zip(tokens, types, strict=True))
        if kind != TokenType.UNUSED
    }
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _added_tokens(tokens, types),
        "normalizer": pre.normalizer,
        "pre_tokenizer": pre.split,
        "post_processor": None,
        "decoder": _byte_level(use_regex=True),
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": pre.ignore_merges,
            "vocab": vocab,
            "merges": [merge.split(" ", 1) for merge in merges],
        },
    }


def _pre_tokenizer(metadata: Metadata) -> PreTokenizer:
    name = metadata.require("tokenizer.ggml.pre", str)
    if name not in PRE_TOKENIZERS:
        raise UserError(
            f"{metadata.path}: tokenizer.ggml.pre '{name}' is unknown; allowed: "
            f"{', '.join(PRE_TOKENIZERS)}.{did_you_mean(name, PRE_TOKENIZERS)} Import the Hugging "
            f"Face folder, which has a tokenizer.json"
        )
    return PRE_TOKENIZERS[name]


def _added_tokens(tokens: list[str], types: list[int]) -> list[dict[str, Any]]:
    """The tokens that are found in text before it is cut; control tokens never come out as text."""
    return [
        {
            "id": index,
            "content": token,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": kind == TokenType.CONTROL,
        }
        for index, (token, kind) in enumerate(zip(tokens, types, strict=True))
        if kind in (TokenType.CONTROL, TokenType.USER_DEFINED)
    ]


def _config(metadata: Metadata, tokens: list[str]) -> dict[str, Any]:
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"}
    for name in ("bos", "eos", "unknown", "padding"):
        index = metadata.get(f"tokenizer.ggml.{name}_token_id", int)
        if index is None:
            continue
        if not 0 <= index < len(tokens):
            raise UserError(
                f"{metadata.path}: tokenizer.ggml.{name}_token_id is {index}, but there are "
                f"{len(tokens)} tokens; convert the model again"
            )
        config[{"unknown": "unk", "padding": "pad"}.get(name, name) + "_token"] = tokens[index]
    add_bos = _pre_tokenizer(metadata).add_bos
    config["add_bos_token"] = metadata.get("tokenizer.ggml.add_bos_token", bool, add_bos)
    template = metadata.get("tokenizer.chat_template", str)
    return config if template is None else config | {"chat_template": template}
