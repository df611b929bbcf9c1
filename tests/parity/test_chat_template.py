"""Conversations against transformers' own rendering and tokens."""

import pytest

from jaxformer.data.chat_template import load_chat_template
from jaxformer.data.documents import MessagesFormat
from jaxformer.data.rows import Row
from jaxformer.data.tokenizers import load_tokenizer
from tests.data.chats import CHATML, HEADERS, MARKED, chat, write_tokenizer

TALK = chat("Hi <b> é", " Hü lo\n", "And?", "Bye")["messages"]


@pytest.mark.parametrize("template", [CHATML, HEADERS, MARKED])
def test_a_conversation_has_the_text_tokens_and_mask_of_transformers(tmp_path, template) -> None:
    from transformers import PreTrainedTokenizerFast

    folder = write_tokenizer(tmp_path, template)
    theirs = PreTrainedTokenizerFast.from_pretrained(folder)
    tokenizer = load_tokenizer(folder)
    ours = MessagesFormat("messages", load_chat_template(tokenizer))
    [document] = ours.documents([Row((TALK, None), "row 1", 1)])
    [encoded] = ours.encode([document], tokenizer)

    marked = template == MARKED
    expected = theirs.apply_chat_template(
        TALK, return_dict=True, return_assistant_tokens_mask=marked
    )
    assert document.text == theirs.apply_chat_template(TALK, tokenize=False)
    assert encoded.ids.tolist() == expected["input_ids"]
    if marked:
        assert encoded.loss_mask.tolist() == [bool(one) for one in expected["assistant_masks"]]
    prompt = theirs.apply_chat_template(TALK[:1], tokenize=False, add_generation_prompt=True)
    assert ours.template.prompt(TALK[:1], "row 1") == prompt
