"""Tools, calls and parts of messages: from rows to the text of a template."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jaxformer.data.documents import MessagesFormat
from jaxformer.data.rows import Row
from jaxformer.data.stores import Stores
from jaxformer.data.tokenizers import load_tokenizer
from jaxformer.errors import UserError
from tests.data.chats import chat, write_jsonl, write_tokenizer
from tests.data.test_chat_template import template_of
from tests.data.tokenizer_kinds import TEMPLATE

TOOL = {"type": "function", "function": {"name": "weather"}}
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Rom"}}}
ASK = {"role": "user", "content": "Hi"}
CALLING = [
    ASK,
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "content": "rain"},
    {"role": "assistant", "content": "It rains."},
]
END = "<|endoftext|>"
CALLED = (
    f"user: Hi{END}assistant: " + json.dumps(CALL["function"]) + f"{END}tool: rain{END}"
    f"assistant: It rains.{END}"
)


def text_of(messages: list, tools: object = None) -> str:
    form = MessagesFormat("messages", template_of(TEMPLATE))
    [document] = form.documents([Row((messages, tools), "rows.jsonl, line 7", 1)])
    return document.text


def test_tools_and_documents_that_are_not_there_are_none() -> None:
    assert text_of([ASK, {"role": "assistant", "content": "a"}]) == (
        f"user: Hi{END}assistant: a{END}"
    )


@pytest.mark.parametrize("tools", [[TOOL], json.dumps([TOOL])])
def test_the_tools_of_a_row_are_the_templates(tools: object) -> None:
    assert text_of(CALLING, tools) == f"tools: {json.dumps([TOOL])}\n{CALLED}"
    assert text_of(CALLING, "") == CALLED


def test_a_call_without_content_is_an_answer() -> None:
    assert text_of(CALLING) == CALLED
    silent = [{key: value for key, value in m.items() if value is not None} for m in CALLING]
    assert text_of(silent) == CALLED
    assert text_of(CALLING[:2]) != ""


def test_content_may_be_parts() -> None:
    parts = [{"type": "text", "text": "H"}, {"type": "text", "text": "i"}]
    answer = {"role": "assistant", "content": [{"type": "text", "text": "a"}]}
    assert text_of([{"role": "user", "content": parts}, answer]) == (
        f"user: Hi{END}assistant: a{END}"
    )
    empty = {"role": "assistant", "content": [{"type": "text", "text": " "}]}
    assert text_of([ASK, empty]) == ""  # nothing is said


@pytest.mark.parametrize(
    ("messages", "tools", "message"),
    [
        ([{**ASK, "content": None}], None, "message 1: its content is null, not text or a list"),
        (
            [ASK, {"role": "assistant", "content": None, "tool_calls": []}],
            None,
            "message 2: its content is null, not text or a list of parts",
        ),
        ([{"role": "assistant"}], None, "message 1 has no content; keys: role"),
        ([{**ASK, "content": ["Hi"]}], None, "part 1 of its content is a string, not {type, text}"),
        (
            [{**ASK, "content": [{"text": "Hi"}]}],
            None,
            "part 1 of its content is an object without a type, not {type, text}",
        ),
        ([ASK], "[", "column 'tools', a string, is not JSON: "),
        ([ASK], 5, "column 'tools' is a number, not a list of tools; fix the row"),
        ([ASK], ["weather"], "column 'tools': tool 1 is a string, not an object that describes"),
    ],
)
def test_what_is_no_conversation_is_refused_by_row(messages, tools, message: str) -> None:
    with pytest.raises(UserError) as error:
        text_of(messages, tools)
    assert str(error.value).startswith("rows.jsonl, line 7, column '")
    assert message in str(error.value)


def test_a_template_that_cannot_read_parts_says_so_with_the_row() -> None:
    form = MessagesFormat("messages", template_of("{{ messages[0].content + 'x' }}"))
    row = Row(([{**ASK, "content": [{"type": "text", "text": "Hi"}]}], None), "row 3", 1)
    with pytest.raises(UserError, match=r"row 3: the chat template \(t.jinja\) says: .*list"):
        list(form.documents([row]))


def test_jsonl_and_parquet_give_the_same_tools_and_calls(make_data, tmp_path: Path) -> None:
    """In a table every structure has every field: those that are null were not written."""
    other = {"type": "function", "function": {"name": "sum", "arguments": {"of": ["1", "2"]}}}
    second = [ASK, {"role": "assistant", "content": "", "tool_calls": [other]}]
    rows = [
        {"messages": CALLING, "tools": [TOOL]},
        {
            "messages": second,
            "tools": [{"type": "function", "function": {"name": "sum", "x": "y"}}],
        },
        chat("q", "a"),
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    tokenizer = write_tokenizer(tmp_path / "tokenizer", TEMPLATE)
    texts = []
    for source in (write_jsonl(tmp_path / "rows.jsonl", rows), f"parquet:{tmp_path}/rows.parquet"):
        data = make_data(source=source, format="messages", tokenizer=tokenizer)
        store = Stores(data, load_tokenizer(tokenizer)).open(data.sources[0])
        texts.append(load_tokenizer(tokenizer).decode_whole(store.tokens))
    assert texts[0] == texts[1]
    assert texts[0].count("tools: ") == 2
    assert '"arguments": {"city": "Rom"}}' in texts[0]
