"""What a prompt becomes, and where its continuation ends."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pytest

from jaxformer.data.chat_template import ChatTemplate, load_chat_template
from jaxformer.data.tokenizers import Tokenizer, load_tokenizer
from jaxformer.generate.decode import Stats
from jaxformer.generate.text import generate_text
from tests.data.chats import CHATML, write_tokenizer
from tests.data.tokenizer_kinds import write_kind


@dataclass(frozen=True)
class Parrot:
    """In place of a decoder: says `text` whatever it is asked, and notes what that was."""

    tokenizer: Tokenizer
    text: str
    eos_id: int
    asked: list[tuple[int, list]] = field(default_factory=list)

    def new_stats(self) -> Stats:
        return Stats()

    def decode(self, prompts: list, **_: object) -> Iterator[np.ndarray]:
        self.asked.append((self.eos_id, [self.tokenizer.decode_whole(ids) for ids in prompts]))
        ids = self.tokenizer.encode(self.text)
        ids[np.maximum.accumulate(ids == self.eos_id)] = self.eos_id
        yield from np.array_split(np.tile(ids, (len(prompts), 1)), 3, axis=1)


@pytest.fixture
def tokenizer(tmp_path) -> Tokenizer:
    return load_tokenizer(write_tokenizer(tmp_path, CHATML))


@pytest.fixture
def template(tokenizer) -> ChatTemplate:
    return load_chat_template(tokenizer)


def test_a_prompt_begins_a_document_and_is_continued_to_the_end_of_text(tokenizer) -> None:
    parrot = Parrot(tokenizer, " more<|endoftext|>noise", tokenizer.eos_id)
    assert generate_text(parrot, tokenizer, "some") == " more"
    assert parrot.asked == [(tokenizer.eos_id, ["<|begin_of_text|>some"])]


def test_a_user_is_answered_to_the_end_of_the_turn(tokenizer, template, capsys) -> None:
    parrot = Parrot(tokenizer, "Hi!<|im_end|>\n<|im_start|>user", tokenizer.eos_id)
    told = generate_text(parrot, tokenizer, ["Hello", "Hé"], template=template, stream=True)
    assert told == ["Hi!", "Hi!"]
    line = "-" * 40
    assert capsys.readouterr().out == f"Hello\n\nHi!\n{line}\nHé\n\nHi!\n{line}\n"
    asked = "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>"
    end = tokenizer.specials["<|im_end|>"]
    prompts = [f"{asked.format(text)}assistant\n" for text in ("Hello", "Hé")]
    assert parrot.asked == [(end, prompts)]


def test_an_answer_is_printed_as_it_comes(tokenizer, template, capsys) -> None:
    parrot = Parrot(tokenizer, "Hé!<|im_end|>noise", tokenizer.eos_id)
    assert generate_text(parrot, tokenizer, "Hello", template=template, stream=True) == "Hé!"
    assert capsys.readouterr().out == "Hello\n\nHé!\n"


def test_the_first_space_of_a_continuation_is_kept(tmp_path, capsys) -> None:
    tokenizer = load_tokenizer(write_kind("metaspace", tmp_path))
    parrot = Parrot(tokenizer, "yes no</s>", tokenizer.eos_id)
    assert generate_text(parrot, tokenizer, "yes no", stream=True) == " yes no"
    assert generate_text(parrot, tokenizer, ["yes", "no"]) == [" yes no"] * 2
    assert capsys.readouterr().out == "yes no yes no\n"


def test_nothing_is_put_before_a_prompt_where_the_tokenizer_puts_nothing(tmp_path) -> None:
    tokenizer = load_tokenizer(write_kind("qwen", tmp_path))
    parrot = Parrot(tokenizer, "yes<|im_end|>", tokenizer.eos_id)
    generate_text(parrot, tokenizer, ["the cat", ""])
    assert [asked for _, asked in parrot.asked] == [["the cat", "<|im_end|>"]]
    told = load_tokenizer(str(tmp_path), add_bos=True)
    parrot = Parrot(told, "yes<|im_end|>", told.eos_id)
    generate_text(parrot, told, "the cat")
    assert parrot.asked == [(told.eos_id, ["<|im_end|>the cat"])]


def test_a_prompt_that_a_template_has_written_has_one_beginning(tokenizer) -> None:
    parrot = Parrot(tokenizer, "x<|endoftext|>", tokenizer.eos_id)
    generate_text(parrot, tokenizer, "<|begin_of_text|>some")
    assert parrot.asked == [(tokenizer.eos_id, ["<|begin_of_text|>some"])]
