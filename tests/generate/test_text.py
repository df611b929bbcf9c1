"""What a prompt becomes, and where its continuation ends."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pytest

from jaxformer.data.chat_template import ChatTemplate, load_chat_template
from jaxformer.data.tokenizers import Tokenizer, load_tokenizer
from jaxformer.generate.text import generate_text
from tests.data.chats import CHATML, write_tokenizer


@dataclass(frozen=True)
class Parrot:
    """In place of a decoder: says `text` whatever it is asked, and notes what that was."""

    tokenizer: Tokenizer
    text: str
    eos_id: int
    asked: list[tuple[int, list]] = field(default_factory=list)

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
