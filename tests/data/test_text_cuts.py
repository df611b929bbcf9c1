"""Ids of a text in pieces are the ids of the whole, for every kind of tokenizer."""

import random
from collections.abc import Callable

import numpy as np
import pytest
from tokenizers import AddedToken, Regex, Tokenizer, models, trainers
from tokenizers import normalizers as norms
from tokenizers import pre_tokenizers as pre

from jaxformer.data import pieces, text_cuts
from jaxformer.data.pattern import Pattern, UnknownPatternError
from jaxformer.data.pieces import PieceEncoder
from jaxformer.errors import UserError

CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
ENDING = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3 = CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + ENDING
QWEN = CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}" + ENDING
CAPITALS = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
SMALL = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
O200K = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{CAPITALS}*{SMALL}+{CONTRACTIONS}?"
    rf"|[^\r\n\p{{L}}\p{{N}}]?{CAPITALS}+{SMALL}*{CONTRACTIONS}?|\p{{N}}{{1,3}}{ENDING}"
)
LETTERS = [
    *"abcthese SLDßſK   \n\r\t.,!?'\"`-0129éà",
    " ",
    "  ",
    "\n\n",
    "'s",
    "'LL",
    "don't",
    "the ",
]
OTHERS = [
    "中",
    "文",
    "，",
    "。",
    "が",
    "か\u3099",
    "\u0301",
    "e\u0301",
    "👩‍👧",
    "🎉",
    "한",
    "ᄒ",
    "ᅡ",
    "ﬀ",
    "Ａ",
]
TOKENS = ["<tok>", " <tok> ", "<sp>", "lo", " lo ", "[MASK]", "\u200b", "\u00a0", "\u2581"]


def written(seed: int, length: int) -> str:
    """Characters that meet badly."""
    draw = random.Random(seed)
    return "".join(draw.choice(LETTERS * 2 + OTHERS + TOKENS) for _ in range(length))


def trained(model: models.Model, trainer: Callable, cut: object, norm: object) -> Tokenizer:
    tokenizer = Tokenizer(model)
    if cut is not None:
        tokenizer.pre_tokenizer = cut
    if norm is not None:
        tokenizer.normalizer = norm
    specials = ["<unk>"] if not isinstance(cut, pre.ByteLevel) else []
    texts = [written(seed, 150) for seed in range(100, 130)] + ["the cat these 12 " * 5]
    options = {"unk_token": "<unk>"} if trainer is trainers.UnigramTrainer else {}
    tokenizer.train_from_iterator(
        texts, trainer(vocab_size=500, show_progress=False, special_tokens=specials, **options)
    )
    return tokenizer


def bpe(cut: object, norm: object = None, **options: object) -> Tokenizer:
    def trainer(**arguments: object) -> trainers.BpeTrainer:
        alphabet = pre.ByteLevel.alphabet()
        return trainers.BpeTrainer(initial_alphabet=alphabet, limit_alphabet=500, **arguments)

    return trained(models.BPE(unk_token="<unk>", **options), trainer, cut, norm)


def split(pattern: str) -> pre.PreTokenizer:
    byte_level = pre.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre.Sequence([pre.Split(Regex(pattern), "isolated"), byte_level])


def word_piece(cut: object, norm: object) -> Tokenizer:
    return trained(models.WordPiece(unk_token="<unk>"), trainers.WordPieceTrainer, cut, norm)


def unigram(cut: object, *parts: norms.Normalizer) -> Tokenizer:
    return trained(models.Unigram(), trainers.UnigramTrainer, cut, norms.Sequence(list(parts)))


def metaspace(scheme: str, cuts: bool) -> Callable[[], Tokenizer]:
    return lambda: bpe(pre.Metaspace(prepend_scheme=scheme, split=cuts))


def byte_level(prefix: bool, regex: bool) -> Callable[[], Tokenizer]:
    return lambda: bpe(pre.ByteLevel(add_prefix_space=prefix, use_regex=regex))


LLAMA2 = norms.Sequence([norms.Prepend("\u2581"), norms.Replace(" ", "\u2581")])
SINGLE_SPACES = norms.Replace(Regex(" {2,}"), " ")
KINDS: dict[str, Callable[[], Tokenizer]] = {
    **{
        f"byte level, prefix {prefix}, regex {regex}": byte_level(prefix, regex)
        for prefix in (False, True)
        for regex in (False, True)
    },
    **{
        f"metaspace {scheme}, split {cuts}": metaspace(scheme, cuts)
        for scheme in ("always", "first", "never")
        for cuts in (False, True)
    },
    "llama 3": lambda: bpe(split(LLAMA3)),
    "qwen": lambda: bpe(split(QWEN), norms.NFC()),
    "o200k": lambda: bpe(split(O200K)),
    "smollm": lambda: bpe(pre.Sequence([pre.Digits(True), pre.ByteLevel(False)])),
    "llama 2": lambda: bpe(None, LLAMA2, byte_fallback=True, fuse_unk=True),
    "gemma": lambda: bpe(pre.Split(" ", "merged_with_previous"), norms.Replace(" ", "\u2581")),
    "bert": lambda: word_piece(pre.BertPreTokenizer(), norms.BertNormalizer(lowercase=True)),
    "word pieces, NFD": lambda: word_piece(
        pre.Whitespace(), norms.Sequence([norms.NFD(), norms.Lowercase(), norms.StripAccents()])
    ),
    "word pieces, stripped": lambda: word_piece(
        pre.Sequence([pre.WhitespaceSplit(), pre.Punctuation("contiguous")]),
        norms.Sequence([norms.Strip(), norms.NFKC()]),
    ),
    "unigram, NMT": lambda: unigram(pre.Metaspace(), norms.Nmt(), norms.NFKC(), SINGLE_SPACES),
    "unigram, quotes": lambda: unigram(
        pre.Sequence([pre.WhitespaceSplit(), pre.Metaspace()]),
        *(norms.Replace("``", '"'), norms.Replace("''", '"'), norms.NFKD(), norms.StripAccents()),
    ),
}


def with_added_tokens(tokenizer: Tokenizer) -> Tokenizer:
    mask = AddedToken("[MASK]", lstrip=True, special=True)
    tokenizer.add_special_tokens([AddedToken("<sp>", special=True), mask])
    both = AddedToken("<tok>", lstrip=True, rstrip=True, normalized=False)
    tokenizer.add_tokens([both, AddedToken("lo", single_word=True, normalized=True)])
    return tokenizer


@pytest.mark.parametrize("kind", KINDS)
def test_ids_and_places_in_pieces_are_those_of_the_whole_text(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer, cuts = KINDS[kind](), 0
    for added in (False, True):
        if added:
            tokenizer = with_added_tokens(tokenizer)
            tokenizer.encode_special_tokens = True
        encoder = PieceEncoder(kind, tokenizer)
        for seed in range(20):
            text = written(seed, 25)
            size = seed % 5 + 1
            blocks = [text[start : start + size] for start in range(0, len(text), size)]
            monkeypatch.setattr(pieces, "BLOCK", 0)
            monkeypatch.setattr(pieces, "blocks_of", lambda _, blocks=blocks: iter(blocks))
            whole = tokenizer.encode(text, add_special_tokens=False)
            parts = list(encoder.parts([text]))
            ids, places = next(encoder.places([text]))
            assert np.concatenate([part.ids for part in parts]).tolist() == whole.ids, text
            assert ids.tolist() == whole.ids
            assert places.tolist() == [list(place) for place in whole.offsets], text
            cuts += len(parts) - 1
    assert cuts > 40  # once a text on average


def test_no_piece_is_empty_where_only_the_beginning_of_a_block_may_be_cut() -> None:
    cuts = text_cuts.TextCuts("words", word_piece(pre.WhitespaceSplit(), None))
    found = [piece.text for piece in cuts.pieces(["a b", " cdefg", "hijkl", " m"])]
    assert found == ["a b", " cdefghijkl", " m"]


def test_a_tokenizer_of_which_nothing_is_known_takes_a_text_whole_and_foretells_its_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for cut in (pre.UnicodeScripts(), pre.Split(Regex(r"(?<=a) "), "isolated")):
        encoder = PieceEncoder("odd.json", word_piece(cut, None))
        text = "a cat and a hat " * 5000
        [part] = encoder.parts([text])
        assert part.ends
        monkeypatch.setattr(text_cuts, "available_memory", lambda: 2**20)
        message = r"32,768 or more .* 'odd.json' .* takes 4.1 MiB, and 1.0 MiB is"
        with pytest.raises(UserError, match=message):
            list(encoder.parts([text]))
        monkeypatch.undo()


@pytest.mark.parametrize(
    "source", [LLAMA3, QWEN, O200K, text_cuts.GPT2, r"(?:ab?)+c{2,}|[b-d&&[^c]]"]
)
def test_what_is_said_of_a_pattern_holds_for_its_matches(source: str) -> None:
    pattern = Pattern(source)
    cut = pre.Split(Regex(source), "removed", invert=True)  # leaves the matches
    separated = 0
    for seed in range(30):
        text = written(seed, 25) + "abcdabcc"
        spans = [span for _, span in cut.pre_tokenize_str(text)]
        for place in range(1, len(text)):
            before, after = text[place - 1], text[place]
            held = [span for span in spans if span[0] < place < span[1]]
            if pattern.separates(before, after):
                separated += 1
                assert not held, (text, place)
            if pattern.takes(after):
                assert any(start <= place < end for start, end in spans), (text, place)
            if not pattern.touches(after):
                assert not any(start <= place < end for start, end in spans), (text, place)
    assert separated > 100


@pytest.mark.parametrize(
    "source", [r"(?<=a)b", r"^a", r"a\b", r"(a)\1", "a*", r"\X", "a{,}", "(a", "a)"]
)
def test_patterns_that_look_behind_or_match_nothing_are_unknown(source: str) -> None:
    with pytest.raises(UnknownPatternError):
        Pattern(source)
