"""A run's tokenizer as the files that transformers reads."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxformer.checkpoint.interop.folder import TEMPLATE, TOKENIZER, TOKENIZER_CONFIG
from jaxformer.data.huggingface_tokenizer import HuggingFaceTokenizer
from jaxformer.data.plain_tokenizers import ByteTokenizer
from jaxformer.data.text_ends import added_by
from jaxformer.data.tokenizers import Tokenizer

if TYPE_CHECKING:
    import tokenizers

END_OF_TEXT = "<|endoftext|>"


def write_tokenizer_folder(tokenizer: Tokenizer, folder: Path) -> None:
    """tokenizer.json, tokenizer_config.json, and the chat template if there is one.

    They name the tokens with which the run begins and ends a text, and add the run's prefix.
    """
    if isinstance(tokenizer, HuggingFaceTokenizer):
        definition = tokenizer.definition.decode("utf-8")
        settings: dict[str, Any] = dict(tokenizer.settings)
        template = tokenizer.find(TEMPLATE)
        if template is not None:
            (folder / TEMPLATE).write_bytes(template.read_bytes())
    else:
        definition, settings = byte_tokenizer(), {"bos_token": END_OF_TEXT}
    (folder / TOKENIZER).write_text(_with_ends(definition, settings, tokenizer), "utf-8")
    settings.setdefault("tokenizer_class", "PreTrainedTokenizerFast")
    text = json.dumps(settings, indent=2, ensure_ascii=False)
    (folder / TOKENIZER_CONFIG).write_text(text, "utf-8")


def byte_tokenizer() -> str:
    """The tokenizer `bytes` as a tokenizer.json: no merges, and ids that are the bytes."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    # In this format, characters from 256 on stand for the bytes that are not printable, in order.
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    vocab = {chr(byte): byte for byte in printable}
    vocab |= {chr(256 + index): byte for index, byte in enumerate(others)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(END_OF_TEXT, special=True)])
    assert tokenizer.token_to_id(END_OF_TEXT) == ByteTokenizer.eos_id
    return tokenizer.to_str()


def _with_ends(text: str, settings: dict[str, Any], tokenizer: Tokenizer) -> str:
    """The tokenizer.json with the run's prefix, and in `settings` the names of the ends of text.

    Newer versions of transformers go by the post-processor, older ones by add_bos_token.
    """
    from tokenizers import Tokenizer as Definition

    definition = Definition.from_str(text)
    settings.pop("eos_token_id", None)
    if settings.get("eos_token") is None:
        settings["eos_token"] = definition.id_to_token(tokenizer.eos_id)
    # Templates do not see an end of text that only stands in for a missing beginning.
    bos = None if tokenizer.bos_id == tokenizer.eos_id else tokenizer.bos_id
    if settings.get("bos_token") is None and bos is not None:
        settings["bos_token"] = definition.id_to_token(bos)
    before, after = added_by(definition.post_processor)
    if before != tokenizer.prefix_ids or "add_bos_token" in settings:
        settings["add_bos_token"] = bool(tokenizer.prefix_ids)
    if before == tokenizer.prefix_ids:
        return text
    definition.post_processor = _processor(tokenizer.prefix_ids, after, definition)
    return definition.to_str()


def _processor(
    before: tuple[int, ...], after: tuple[int, ...], definition: "tokenizers.Tokenizer"
) -> "tokenizers.processors.PostProcessor":
    from tokenizers import processors

    names = {index: definition.id_to_token(index) for index in (*before, *after)}
    single = [*(names[index] for index in before), "$A", *(names[index] for index in after)]
    return processors.TemplateProcessing(
        single=single,
        pair=[*single, "$B:1"],
        special_tokens=[(token, index) for index, token in names.items()],
    )
