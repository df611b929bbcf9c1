import json
from datetime import datetime
from pathlib import Path

import pytest

from jaxformer.data.chat_template import ChatTemplate, load_chat_template
from jaxformer.data.tokenizers import load_tokenizer
from jaxformer.errors import UserError
from tests.data.chats import CHATML, HEADERS, MARKED, SPECIALS, chat, write_tokenizer

TALK = chat("q", "a")["messages"]
PLACE = "rows.jsonl, line 7"


def template_of(source: str) -> ChatTemplate:
    return ChatTemplate(source, "t.jinja", SPECIALS, {"eos_token": "<|endoftext|>"})


def text_of(source: str) -> str:
    return template_of(source).conversation(TALK, PLACE)[0]


def load(folder: Path, template: object, **config: object) -> ChatTemplate:
    return load_chat_template(load_tokenizer(write_tokenizer(folder, template, **config)))


def test_a_prompt_ends_where_the_answer_begins() -> None:
    for source in (CHATML, HEADERS, MARKED):
        template = template_of(source)
        prompt = template.prompt(TALK[:1], PLACE)
        text, [(start, _)] = template.conversation(TALK, PLACE)
        assert text[:start] == prompt


@pytest.mark.parametrize(
    ("source", "end"),
    [
        (CHATML, "<|im_end|>"),
        (HEADERS, "<|eot_id|>"),
        (MARKED, "<|endoftext|>"),
        (
            "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
            "{% endgeneration %}<|im_end|>{% endif %}{% endfor %}",
            "<|im_end|>",
        ),
        ("{% for m in messages %}{{ m.content }}{% endfor %}", None),
    ],
)
def test_the_end_of_a_turn_is_the_special_token_after_an_answer(source: str, end: str) -> None:
    assert template_of(source).end_of_turn() == end


def test_marks_count_inside_macros_and_captured_text() -> None:
    source = (
        "{% macro say(m) %}{% generation %}{{ m.content }}{% endgeneration %}{% endmacro %}"
        "{% set all %}{% for m in messages %}<{{ say(m) }}>{% endfor %}{% endset %}{{ all | trim }}"
    )
    assert template_of(source).conversation(TALK, PLACE) == ("<q><a>", [(1, 2), (4, 5)])


def test_a_template_has_the_settings_and_functions_of_the_field() -> None:
    assert text_of(
        "{% if true %}\n  {% for m in messages %}\n{{ m.role }}\n{% endfor %}{% endif %}"
    ) == ("user\nassistant\n")
    assert (
        text_of("{% for m in messages %}{% if loop.last %}{% continue %}{% endif %}x{% endfor %}")
        == "x"
    )
    assert text_of("{{ {'a': '<é>'} | tojson }}") == '{"a": "<é>"}'
    assert text_of("{{ strftime_now('%Y') }}") in {
        str(datetime.now().year),
        str(datetime.now().year - 1),
    }
    assert text_of("{{ bos_token is defined }} {{ eos_token }}") == "False <|endoftext|>"


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages.__class__ }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages | attr('__class__') }}",
        "{{ raise_exception.__globals__ }}",
        "{{ strftime_now.__code__ }}",
        "{{ self.__init__.__globals__ }}",
        "{{ messages.append({}) }}",
        "{{ messages[0].update({'role': 'x'}) }}",
        "{{ range(10000000) | list }}",
    ],
)
def test_a_template_cannot_leave_the_sandbox(source: str) -> None:
    with pytest.raises(
        UserError, match=r"rows.jsonl, line 7: the chat template \(t.jinja\) says: "
    ):
        text_of(source)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{{ raise_exception('only pairs') }}", "says: only pairs"),
        ("{{ messages[0].content + 1 }}", "says: can only concatenate str"),
        ("{{ nothing() }}", "says: 'nothing' is undefined"),
        ("{{ 1 / 0 }}", "says: division by zero"),
    ],
)
def test_what_a_template_says_is_told_with_the_row(source: str, message: str) -> None:
    with pytest.raises(UserError, match=rf"^{PLACE}: the chat template \(t\.jinja\) {message}"):
        text_of(source)


def test_a_template_that_is_not_jinja_is_named_with_its_line() -> None:
    with pytest.raises(UserError, match=r"^t.jinja: line 2: .*unknown tag 'fro'"):
        template_of("\n{% fro m in messages %}")


def test_the_file_beside_the_tokenizer_comes_before_the_configuration(tmp_path: Path) -> None:
    assert load(tmp_path, "in config").prompt(TALK, PLACE) == "in config"
    (tmp_path / "chat_template.jinja").write_text("in file, {{ bos_token }}", encoding="utf-8")
    assert load(tmp_path, "in config").prompt(TALK, PLACE) == "in file, <|begin_of_text|>"
    by_file = load_chat_template(load_tokenizer(str(tmp_path / "tokenizer.json")))
    assert by_file.prompt(TALK, PLACE) == "in file, <|begin_of_text|>"


def test_of_several_templates_the_default_is_taken(tmp_path: Path) -> None:
    several = [{"name": "tools", "template": "T"}, {"name": "default", "template": "D"}]
    assert load(tmp_path, several).prompt(TALK, PLACE) == "D"
    with pytest.raises(UserError, match="has no chat template"):
        load(tmp_path, several[:1])


def test_special_tokens_of_the_configuration_are_known_by_name(tmp_path: Path) -> None:
    shown = "{{ bos_token }} {{ eos_token }} {{ pad_token }} {{ unk_token is defined }}"
    template = load(tmp_path, shown, pad_token={"content": "<|im_end|>"}, unk_token=None)
    assert template.prompt(TALK, PLACE) == "<|begin_of_text|> <|endoftext|> <|im_end|> False"
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": shown}))
    template = load_chat_template(load_tokenizer(str(tmp_path)))
    assert template.prompt(TALK, PLACE) == "<|begin_of_text|> <|endoftext|>  False"


def test_the_hash_is_of_the_template_and_the_tokens_it_knows(tmp_path: Path) -> None:
    hashes = [
        load(tmp_path, "a").hash,
        load(tmp_path, "b").hash,
        load(tmp_path, "a", eos_token="<|im_end|>").hash,
    ]
    assert len(set(hashes)) == 3
    assert load(tmp_path, "a").hash == hashes[0]


def test_a_template_of_the_hub_is_read_from_what_was_downloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    revision = "0" * 40
    repository = tmp_path / "models--someone--small"
    snapshot = repository / "snapshots" / revision
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(revision)
    snapshot.mkdir(parents=True)
    write_tokenizer(snapshot, "in config")
    tokenizer = load_tokenizer("someone/small")
    assert load_chat_template(tokenizer).prompt(TALK, PLACE) == "in config"
    (snapshot / "chat_template.jinja").write_text("in file", encoding="utf-8")
    assert load_chat_template(tokenizer).prompt(TALK, PLACE) == "in file"
