"""Small tokenizers of the kinds that there are, and the files that lie beside them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

TEXT = [
    "yes no the cat sat on the mat, and the dog sat on the log.",
    "hello world! what is the weather in Paris?",
    "def f(x):\n    return x\n",
] * 8
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
LLAMA_SPECIALS = ["<unk>", "<s>", "</s>"]

# It asks whether tools and documents are none, as the templates of Llama 3 and Command R do.
TEMPLATE = """\
{{- bos_token }}
{%- if tools is not none %}{{ 'tools: ' + (tools | tojson) + '\\n' }}{% endif %}
{%- if documents is not none %}{{ 'documents\\n' }}{% endif %}
{%- for message in messages %}
    {{- message.role + ': ' }}
    {%- if message.content is string %}{{ message.content }}
    {%- else %}{% for part in message.content or [] %}{{ part.text }}{% endfor %}{% endif %}
    {%- for call in message.tool_calls or [] %}{{ call.function | tojson }}{% endfor %}
    {{- eos_token }}
{%- endfor %}
{%- if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"""


def metaspace(scheme: str = "always") -> Tokenizer:
    """SentencePiece's BPE as it is written today; <s> before a text."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme=scheme)
    _train(tokenizer, trainers.BpeTrainer, LLAMA_SPECIALS)
    return _begun(tokenizer, "<s>")


def llama2() -> Tokenizer:
    """SentencePiece's BPE as Llama 2 has it: bytes for what is unknown, a space stripped."""
    trained = json.loads(metaspace().to_str())["model"]
    vocab = {token: index for index, token in enumerate([*LLAMA_SPECIALS, *BYTES])}
    for token in trained["vocab"]:
        vocab.setdefault(token, len(vocab))
    merges = [tuple(merge) for merge in trained["merges"]]
    tokenizer = Tokenizer(
        models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.add_special_tokens(LLAMA_SPECIALS)
    return _begun(tokenizer, "<s>")


def unigram() -> Tokenizer:
    """SentencePiece's unigrams, with bytes for what is unknown; </s> after a text, as T5 has it."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.train_from_iterator(
        TEXT, trainers.UnigramTrainer(vocab_size=120, unk_token="<unk>", show_progress=False)
    )
    learnt = json.loads(tokenizer.to_str())["model"]["vocab"]
    pieces = [(token, 0.0) for token in LLAMA_SPECIALS] + [(token, -20.0) for token in BYTES]
    pieces += [(token, score) for token, score in learnt if token not in LLAMA_SPECIALS]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    tokenizer.add_special_tokens(LLAMA_SPECIALS)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 2)]
    )
    return tokenizer


def byte_level() -> Tokenizer:
    """GPT-2's: nothing is put before a text or after it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    _train(tokenizer, trainers.BpeTrainer, ["<|endoftext|>"])
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    return tokenizer


def qwen() -> Tokenizer:
    """Qwen's: it has no beginning of text."""
    tokenizer = Tokenizer(models.BPE())
    cut = Regex(r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+")
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(cut, "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    _train(tokenizer, trainers.BpeTrainer, ["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    tokenizer.add_tokens([AddedToken("<think>", special=False, normalized=False)])
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    return tokenizer


def wordpiece() -> Tokenizer:
    """BERT's: [CLS] before a text, [SEP] after it."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    _train(tokenizer, trainers.WordPieceTrainer, ["[UNK]", "[CLS]", "[SEP]"])
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
    return tokenizer


LLAMA_NAMES = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
# What makes a tokenizer, and its tokenizer_config.json.
KINDS: dict[str, tuple[Callable[[], Tokenizer], dict[str, Any]]] = {
    "metaspace": (metaspace, LLAMA_NAMES),
    "metaspace without prefix space": (lambda: metaspace("never"), LLAMA_NAMES),
    "llama2": (llama2, {**LLAMA_NAMES, "add_bos_token": True, "add_eos_token": False}),
    "unigram": (unigram, {"eos_token": "</s>", "unk_token": "<unk>"}),
    "byte level": (
        byte_level,
        {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>", "add_prefix_space": False},
    ),
    "qwen": (qwen, {"bos_token": None, "eos_token": "<|im_end|>", "add_bos_token": False}),
    "wordpiece": (wordpiece, {"bos_token": "[CLS]", "eos_token": "[SEP]", "unk_token": "[UNK]"}),
}


def write_kind(kind: str, folder: Path, **files: Any) -> str:
    """The folder of a tokenizer; `files` are others beside it, by their names without .json."""
    make, config = KINDS[kind]
    folder.mkdir(exist_ok=True)
    make().save(str(folder / "tokenizer.json"))
    whole = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": TEMPLATE, **config}
    for name, content in ({"tokenizer_config": whole} | files).items():
        (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    return str(folder)


def _train(tokenizer: Tokenizer, trainer: Callable[..., Any], specials: list[str]) -> None:
    options = {"vocab_size": 400, "special_tokens": specials, "show_progress": False}
    if isinstance(tokenizer.decoder, decoders.ByteLevel):
        options["initial_alphabet"] = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(TEXT, trainer(**options))


def _begun(tokenizer: Tokenizer, bos: str) -> Tokenizer:
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A",
        pair=f"{bos} $A {bos} $B",
        special_tokens=[(bos, tokenizer.token_to_id(bos))],
    )
    return tokenizer
