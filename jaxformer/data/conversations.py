"""Checks that a row holds a conversation, and the tools that its assistant may call."""

from collections.abc import Mapping
from typing import Any

from jaxformer.data.chat_template import Message, Tools
from jaxformer.data.rows import named_kind
from jaxformer.errors import UserError, did_you_mean
from jaxformer.reading import read_json

TOOLS = "tools"  # the column beside the messages
CALLS = ("tool_calls", "function_call")  # which a message may have in place of content


def read_messages(value: list[Any], place: str) -> list[Message]:
    """Messages as transformers hands them to a template: fields that are null are left out.

    The content is a text or a list of parts `{type, ...}`, and may be missing where a tool is
    called.

    Raises:
        UserError: something else.
    """
    if not value:
        raise UserError(f"{place}: there are no messages; fix or remove the row")
    for number, message in enumerate(value, start=1):
        where = f"{place}: message {number}"
        if not isinstance(message, dict):
            raise UserError(f"{where} is {named_kind(message)}, not {{role, content}}")
        for key in ("role", "content"):
            if key not in message and not (key == "content" and _calls(message)):
                keys = [str(name) for name in message]
                raise UserError(
                    f"{where} has no {key}; keys: {', '.join(keys)}.{did_you_mean(key, keys)}"
                )
        if not isinstance(message["role"], str):
            raise UserError(f"{where}: its role is {named_kind(message['role'])}, not text")
        _check_content(message, where)
    return [{key: part for key, part in message.items() if part is not None} for message in value]


def read_tools(value: Any, place: str) -> Tools:
    """JSON schemas of functions, as a list or as the JSON of one; None where a row has none.

    Raises:
        UserError: something else.
    """
    if isinstance(value, str) and value.strip():
        value = read_json(value, f"{place}, a string,")
    if value is None or value == "":
        return None
    if not isinstance(value, list):
        raise UserError(f"{place} is {named_kind(value)}, not a list of tools; fix the row")
    for number, tool in enumerate(value, start=1):
        if not isinstance(tool, dict):
            raise UserError(
                f"{place}: tool {number} is {named_kind(tool)}, not an object that describes a "
                f"function; fix the row"
            )
    return value


def is_answered(messages: list[Message]) -> bool:
    """Whether the assistant says something or calls a tool."""
    return any(
        message["role"] == "assistant" and (_calls(message) or _says(message.get("content")))
        for message in messages
    )


def _calls(message: Mapping[str, Any]) -> bool:
    return any(message.get(key) for key in CALLS)


def _says(content: Any) -> bool:
    if isinstance(content, list):
        return any(part.get("type") != "text" or _says(part.get("text")) for part in content)
    return isinstance(content, str) and bool(content.strip())


def _check_content(message: Mapping[str, Any], where: str) -> None:
    content = message.get("content")
    if isinstance(content, list):
        for number, part in enumerate(content, start=1):
            if not isinstance(part, dict) or not isinstance(part.get("type"), str):
                raise UserError(
                    f"{where}: part {number} of its content is {named_kind(part)}"
                    f"{' without a type' if isinstance(part, dict) else ''}, not {{type, text}}"
                )
    elif not isinstance(content, str) and not (content is None and _calls(message)):
        raise UserError(
            f"{where}: its content is {named_kind(content)}, not text or a list of parts"
        )
