"""A run's tokenizer as the files that transformers reads."""

import json
import shutil
from pathlib import Path

from jaxformer.checkpoint.interop.folder import TEMPLATE, TOKENIZER, TOKENIZER_CONFIG
from jaxformer.data.huggingface_tokenizer import HuggingFaceTokenizer
from jaxformer.data.plain_tokenizers import ByteTokenizer
from jaxformer.data.tokenizers import Tokenizer

END_OF_TEXT = "<|endoftext|>"


def write_tokenizer_folder(tokenizer: Tokenizer, folder: Path) -> None:
    """tokenizer.json, tokenizer_config.json, and the chat template if there is one."""
    if isinstance(tokenizer, HuggingFaceTokenizer):
        given = Path(tokenizer.name).expanduser()
        files = {TOKENIZER: given if given.is_file() else tokenizer.find(TOKENIZER)}
        files[TEMPLATE] = tokenizer.find(TEMPLATE)
        for name, file in files.items():
            if file is not None:
                shutil.copyfile(file, folder / name)
        settings = dict(tokenizer.config)
    else:
        (folder / TOKENIZER).write_text(byte_tokenizer(), "utf-8")
        settings = {"bos_token": END_OF_TEXT, "eos_token": END_OF_TEXT}
    settings.setdefault("tokenizer_class", "PreTrainedTokenizerFast")
    text = json.dumps(settings, indent=2, ensure_ascii=False)
    (folder / TOKENIZER_CONFIG).write_text(text, "utf-8")


def byte_tokenizer() -> str:
    """The tokenizer `bytes` as a tokenizer.json: no merges, and ids that are the bytes."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    # Bytes that are no letters stand in this format for letters from 256 on, in order.
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
