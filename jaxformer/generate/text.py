"""Text from text: prompts in, continuations out, streamed to the terminal if asked."""

import itertools
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from jaxformer.data.chat_template import ChatTemplate
from jaxformer.data.tokenizers import StreamDecoder, Tokenizer, prompt_ids, start_id
from jaxformer.generate.decode import Decoder
from jaxformer.generate.sampling import Sampling


def generate_text(
    decoder: Decoder,
    tokenizer: Tokenizer,
    prompt: str | Sequence[str],
    *,
    template: ChatTemplate | None = None,
    max_new_tokens: int = 256,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    steps: int | None = None,
    entropy_bound: float | None = None,
    seed: int = 0,
    stream: bool = False,
    stats: bool = False,
) -> str | list[str]:
    """Continue a prompt (→ its continuation), or several in one batch (→ a list of them).

    A prompt begins as documents do, with bos where the tokenizer adds one; an empty one without
    bos is replaced by `start_id`. A continuation is the text that the new tokens add to the
    prompt's, and stops before end-of-text. With a chat template, a prompt is what a user says, and
    the continuation an answer that stops before the end of the assistant's turn. `temperature`,
    `top_k`, `top_p` and `min_p` are those of `Sampling`; `steps` and `entropy_bound`, for models
    trained by diffusion, those of `Unmasking`.

    Args:
        stream: print prompts and continuations, a single one while it is generated.
        stats: print tokens per second to standard error; with a draft, how many of its tokens were
            accepted, and the speed of plain decoding, which is measured on some tokens.

    Raises:
        UserError: see `Sampling`, `Unmasking` and `Decoder.decode`; the template refuses a prompt.
    """
    if steps is not None or entropy_bound is not None:
        decoder = decoder.in_steps(steps, entropy_bound)
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    sampling = Sampling(temperature, top_k, top_p, min_p)
    if template is None:
        ids = [prompt_ids(tokenizer, text) or [start_id(tokenizer)] for text in prompts]
    else:
        ids = [tokenizer.encode(_asked(template, text)).tolist() for text in prompts]
        end = template.end_of_turn()
        decoder = decoder if end is None else replace(decoder, eos_id=tokenizer.specials[end])
        prompts = [f"{text}\n\n" for text in prompts]
    measured = decoder.new_stats()
    pieces = decoder.decode(
        ids, max_new_tokens=max_new_tokens, sampling=sampling, seed=seed, stats=measured
    )
    if stream and len(prompts) == 1:
        pieces = _print_as_it_comes(prompts[0], pieces, tokenizer.stream_decoder(ids[0]), decoder)
    rows = np.concatenate(list(pieces), axis=1)
    texts = [
        tokenizer.decode(until_end(row, decoder.eos_id), after)
        for row, after in zip(rows, ids, strict=True)
    ]
    if stream and len(prompts) > 1:
        for text, continuation in zip(prompts, texts, strict=True):
            print(f"{text}{continuation}\n{'-' * 40}")
    if stats:
        report = decoder.report(
            measured, ids, max_new_tokens=max_new_tokens, sampling=sampling, seed=seed
        )
        print(report, file=sys.stderr)
    return texts[0] if isinstance(prompt, str) else texts


def _asked(template: ChatTemplate, text: str) -> str:
    return template.prompt([{"role": "user", "content": text}], "the prompt")


def until_end(row: np.ndarray, eos_id: int) -> np.ndarray:
    """The tokens of a row before its end-of-text."""
    ends = np.flatnonzero(row == eos_id)
    return row[: ends[0]] if len(ends) else row


def _print_as_it_comes(
    prompt: str, pieces: Iterator[np.ndarray], text: StreamDecoder, decoder: Decoder
) -> Iterator[np.ndarray]:
    """Print the pieces of one row, and pass them on."""
    first = next(pieces)  # errors in the prompt are raised before anything is printed
    print(prompt, end="", flush=True)
    for piece in itertools.chain([first], pieces):
        for token in until_end(piece[0], decoder.eos_id):
            print(text.push(int(token)), end="")
        sys.stdout.flush()
        yield piece
    print(text.finish())
