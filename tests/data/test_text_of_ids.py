"""The text of new tokens after others: whole, in a stream, and counted in bytes."""

import random

import numpy as np
import pytest

from jaxformer.data.packing import PackedRows
from jaxformer.data.stores import Stores
from jaxformer.data.tokenizers import load_tokenizer, prompt_ids
from tests.data.contents import mask_of, text_bytes_of
from tests.data.tokenizer_kinds import KINDS, write_kind


@pytest.fixture(scope="module", params=KINDS)
def tokenizer(request, tmp_path_factory):
    return load_tokenizer(write_kind(request.param, tmp_path_factory.mktemp("tokenizer")))


def streamed(tokenizer, ids, after=()) -> str:
    stream = tokenizer.stream_decoder(after)
    return "".join([stream.push(int(token)) for token in ids]) + stream.finish()


def test_a_continuation_is_what_it_adds_to_the_text_before(tokenizer) -> None:
    for before, new in (
        ("yes no", " yes"),
        ("the cat", " sat on the mat"),
        ("the cat,", " and"),
        ("hello", " world! what"),
        ("the mat", ""),
    ):
        prompt, whole = prompt_ids(tokenizer, before), prompt_ids(tokenizer, before + new)
        assert whole[: len(prompt)] == prompt
        written, ids = tokenizer.decode(prompt), whole[len(prompt) :]
        added = tokenizer.decode(whole).removeprefix(written)
        assert tokenizer.decode(ids, prompt) == streamed(tokenizer, ids, prompt) == added
        assert tokenizer.count_bytes(ids, prompt) == len(added)
        assert added == new


def test_a_stream_is_the_whole_whatever_the_tokens(tokenizer) -> None:
    rng = random.Random(0)
    some = [rng.randrange(tokenizer.vocab_size) for _ in range(8)]
    some += tokenizer.encode_documents(["€🎉"])[0].tolist()  # bytes, where there are byte tokens
    for pool in (some, range(tokenizer.vocab_size)):
        for _ in range(150):
            after = rng.choices(pool, k=rng.randrange(40))
            ids = rng.choices(pool, k=rng.randrange(14))
            assert streamed(tokenizer, ids, after) == tokenizer.decode(ids, after)
            whole, before = tokenizer.decode([*after, *ids]), tokenizer.decode(after)
            assert tokenizer.decode(ids) == streamed(tokenizer, ids)
            if whole.startswith(before) and not before.endswith("\ufffd"):
                assert tokenizer.decode(ids, after) == whole[len(before) :]


def test_no_piece_of_a_stream_has_half_a_character(tokenizer) -> None:
    ids = tokenizer.encode_documents(["the 🎉 cat 日本 é"])[0]
    stream = tokenizer.stream_decoder(prompt_ids(tokenizer, "yes"))
    pieces = [stream.push(int(token)) for token in ids]
    assert "\ufffd" not in "".join(pieces) + stream.finish()


def test_byte_tokens_are_held_back_to_the_end_of_their_run(tmp_path) -> None:
    """The library gives a run of bytes that ends badly as U+FFFD, its good characters too."""
    tokenizer = load_tokenizer(write_kind("llama2", tmp_path))
    good, bad = tokenizer.encode("€")[-3:].tolist(), tokenizer.encode("🎉")[-1:].tolist()
    end = tokenizer.encode("no").tolist()
    stream = tokenizer.stream_decoder(end)
    assert [stream.push(token) for token in [*good, *bad]] == [""] * 4
    assert stream.finish() == "\ufffd" * 4 == tokenizer.decode([*good, *bad], end)
    stream = tokenizer.stream_decoder(end)
    assert [stream.push(token) for token in [*good, end[0]]][:3] == [""] * 3


def test_numbers_go_on_after_a_space() -> None:
    tokenizer = load_tokenizer("ids:9")
    assert tokenizer.decode([1, 2]) == streamed(tokenizer, [1, 2]) == "1 2"
    assert tokenizer.decode([1, 2], [3]) == streamed(tokenizer, [1, 2], [3]) == " 1 2"


@pytest.mark.parametrize("kind", ["metaspace", "llama2", "byte level"])
def test_the_bytes_of_a_cut_document_are_those_of_its_text(kind, make_data, tmp_path) -> None:
    text = "the cat sat on the mat and the dog sat on the log"
    (tmp_path / "a.txt").write_text(text)
    data = make_data(source=f"text:{tmp_path}/a.txt", tokenizer=write_kind(kind, tmp_path / "t"))
    tokenizer = load_tokenizer(data.tokenizer)
    store = Stores(data, tokenizer).open(data.sources[0])
    for begin in range(len(tokenizer.prefix_ids) + 1, store.manifest.tokens - 1):
        learnt = tokenizer.decode(store.tokens[: begin + 1])
        rows = PackedRows(store, begin, store.manifest.tokens, 8)
        assert rows.text_bytes(tokenizer) == len(text) - len(learnt)


def test_learnt_bytes_of_a_cut_conversation_are_counted_a_run_at_a_time(
    make_data, tmp_path
) -> None:
    (tmp_path / "a.jsonl").write_text('{"prompt": "the cat", "completion": " sat on the mat"}\n')
    data = make_data(
        source=f"jsonl:{tmp_path}/a.jsonl",
        format="completion",
        tokenizer=write_kind("metaspace", tmp_path / "t"),
    )
    tokenizer = load_tokenizer(data.tokenizer)
    store = Stores(data, tokenizer).open(data.sources[0])
    assert text_bytes_of(store) == [0, len(" sat on the mat")]
    rows = PackedRows(store, 1, store.manifest.tokens, 8)
    assert rows.text_bytes(tokenizer) == len(" sat on the mat")
    assert np.count_nonzero(mask_of(store)) > 1
