"""The tokenizer's chat template: a conversation as the text that the model reads, and where in it
the answers are.

A template is someone else's Jinja program, so it runs in Jinja's immutable sandbox, with the
settings and the few functions that transformers gives it.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.nodes import CallBlock, ExtensionAttribute, Node
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from jaxformer.data.huggingface_tokenizer import HuggingFaceTokenizer
from jaxformer.data.tokenizers import Tokenizer
from jaxformer.errors import UserError
from jaxformer.reading import read_text

Message = Mapping[str, Any]
Tools = Sequence[Mapping[str, Any]] | None
Span = tuple[int, int]

FILE = "chat_template.jinja"
# What a template's code may raise, besides Jinja's own errors.
ERRORS = (jinja2.TemplateError, TypeError, ValueError, LookupError, ArithmeticError, AttributeError)
# Around what `{% generation %}` marks: lone surrogates, which no text can hold.
OPEN, CLOSE = "\ud800", "\udfff"


class ChatTemplate:
    """A template, read from `where`. `specials` are the texts of the tokenizer's special tokens,
    `named` those that the template knows by name, such as `eos_token`.

    Raises:
        UserError: it is not Jinja.
    """

    def __init__(
        self, source: str, where: str, specials: Sequence[str], named: Mapping[str, str]
    ) -> None:
        self._where, self._specials, self._named = where, tuple(specials), dict(named)
        self.hash = hashlib.sha256(json.dumps([source, self._named]).encode()).hexdigest()
        environment = _environment()
        try:
            program = environment.parse(source)
            self._is_marked = program.find(ExtensionAttribute) is not None
            self._template = environment.from_string(program)
        except jinja2.TemplateSyntaxError as error:
            raise UserError(f"{where}: line {error.lineno}: {error.message}") from None

    def prompt(self, messages: Sequence[Message], place: str, tools: Tools = None) -> str:
        """The text of `messages` up to where the assistant's next answer begins; `tools` are those
        that it may call.

        Raises:
            UserError: the template refuses the messages; the error names `place`.
        """
        return re.sub(f"[{OPEN}{CLOSE}]", "", self._render(messages, place, tools, asks=True))

    def conversation(
        self, messages: Sequence[Message], place: str, tools: Tools = None
    ) -> tuple[str, list[Span]]:
        """The text of `messages`, and the characters [from, to) of each answer in it.

        An answer is what `{% generation %}` marks, or else what follows the prompt before it,
        up to the token that ends its turn.

        Raises:
            UserError: the template refuses the messages, or rewrites what came before an answer.
        """
        text = self._render(messages, place, tools)
        if self._is_marked:
            return _without_marks(text)
        answers = []
        for number, message in enumerate(messages):
            if message["role"] == "assistant":
                before = self._render(messages[:number], place, tools, asks=True)
                after = self._render(messages[: number + 1], place, tools)
                if not (after.startswith(before) and text.startswith(after)):
                    raise UserError(
                        f"{place}: message {number + 1}, an answer, cannot be separated from its "
                        f"prompt: the chat template ({self._where}) rewrites what came before "
                        f"when the conversation continues; mark answers in the template with "
                        f"{{% generation %}} and {{% endgeneration %}}"
                    )
                answers.append((len(before), self._end_of_turn(after, len(before))))
        return text, answers

    def end_of_turn(self) -> str | None:
        """The special token that follows an answer, or None where there is none."""
        question = [{"role": "user", "content": "?"}]
        answered = [*question, {"role": "assistant", "content": "!"}]
        prompt = self.prompt(question, "a question")
        text, _ = _without_marks(self._render(answered, "an answer"))
        there = [token for token in self._specials if text.find(token, len(prompt)) >= 0]
        return min(there, key=lambda token: text.find(token, len(prompt)), default=None)

    def _end_of_turn(self, text: str, start: int) -> int:
        """Where the answer from `start` ends: the model is not to write white space after a last
        special token."""
        end = len(text.rstrip())
        return end if end > start and text[:end].endswith(self._specials) else len(text)

    def _render(
        self, messages: Sequence[Message], place: str, tools: Tools = None, *, asks: bool = False
    ) -> str:
        """Tools and documents that are not given are None, as in transformers: a template may test
        for none, and what is undefined is not none."""
        try:
            return self._template.render(
                messages=messages,
                tools=tools,
                documents=None,
                add_generation_prompt=asks,
                **self._named,
            )
        except ERRORS as error:
            raise UserError(f"{place}: the chat template ({self._where}) says: {error}") from None


def load_chat_template(tokenizer: Tokenizer) -> ChatTemplate:
    """The template beside a tokenizer.json, or among a tokenizer's files on the Hub.

    Raises:
        UserError: there is none, or it is not Jinja.
    """
    if isinstance(tokenizer, HuggingFaceTokenizer):
        file = tokenizer.find(FILE)
        if file is not None:
            source: Any = read_text(file)
            where = str(file)
        else:
            source = _default(tokenizer.settings.get("chat_template"))
            where = f"tokenizer_config.json of {tokenizer.name}"
        if isinstance(source, str):
            return ChatTemplate(source, where, list(tokenizer.specials), tokenizer.named_specials)
    raise UserError(
        f"data.tokenizer '{tokenizer.name}' has no chat template; one is looked for in {FILE}, "
        f"then as chat_template in tokenizer_config.json, both beside tokenizer.json"
    )


def _default(templates: Any) -> Any:
    """The template called default, where there are several: `[{name, template}]`."""
    if not isinstance(templates, list):
        return templates
    return next((each.get("template") for each in templates if each.get("name") == "default"), None)


def _without_marks(text: str) -> tuple[str, list[Span]]:
    """The text without OPEN and CLOSE, and the places of the answers, which were between them."""
    pieces, answers, at = re.split(f"([{OPEN}{CLOSE}])", text), [], 0
    for piece in pieces:
        if piece == OPEN:
            start = at
        elif piece == CLOSE:
            answers.append((start, at))
        else:
            at += len(piece)
    return "".join(pieces[::2]), answers


class Sandbox(ImmutableSandboxedEnvironment):
    """Raises an error for unsafe access; the base class would write nothing in its place."""

    def unsafe_undefined(self, obj: Any, attribute: str) -> NoReturn:
        raise SecurityError(f"'{attribute}' of {type(obj).__name__} is out of bounds")


def _environment() -> Sandbox:
    environment = Sandbox(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[GenerationMarks, "jinja2.ext.loopcontrols"],
    )
    now = datetime.now()
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda form: now.strftime(form)
    return environment


class GenerationMarks(Extension):
    """`{% generation %} ... {% endgeneration %}` puts its content between OPEN and CLOSE."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return CallBlock(self.call_method("_marked"), [], [], body).set_lineno(line)

    def _marked(self, caller: Any) -> str:
        return f"{OPEN}{caller()}{CLOSE}"


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as it is; Jinja's own filter escapes it for HTML."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )
