"""A tokenizer with special tokens, three chat templates, and rows of conversations."""

import json
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

SPECIALS = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|begin_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
]

CHATML = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}"
    r"{{ '<|im_start|>system\nBe kind.<|im_end|>\n' }}{% endif %}"
    r"{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    r"{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

HEADERS = r"""
{{- bos_token }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}
    {{- message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
{%- endif %}
"""

MARKED = """\
{% for message in messages %}
{% if message['role'] == 'assistant' %}
A: {% generation %}{{ message['content'] }}{{ eos_token }}{% endgeneration %}

{% else %}
Q: {{ message['content'] }}
{% endif %}
{% endfor %}
{% if add_generation_prompt %}A: {% endif %}
"""


def write_tokenizer(folder: Path, template: str | None, **config: Any) -> str:
    """Bytes and special tokens: the id of a special token is its place in SPECIALS."""
    characters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*SPECIALS, *characters])}
    definition = tokenizers.Tokenizer(models.BPE(vocabulary, []))
    definition.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    definition.decoder = decoders.ByteLevel()
    definition.add_special_tokens(SPECIALS)
    folder.mkdir(exist_ok=True)
    definition.save(str(folder / "tokenizer.json"))
    ends = {"bos_token": "<|begin_of_text|>", "eos_token": "<|endoftext|>", "add_bos_token": True}
    config = ends | config
    if template is not None:
        config["chat_template"] = template
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return str(folder)


def chat(*contents: str, first: str = "user") -> dict[str, Any]:
    """A row in which user and assistant take turns."""
    roles = ["user", "assistant"] * len(contents)
    turns = zip(roles if first == "user" else roles[1:], contents, strict=False)
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


def write_jsonl(file: Path, rows: list[Any]) -> str:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return f"jsonl:{file}"
