"""A run as a model of lm-evaluation-harness: log-likelihoods and generation."""

import json
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from jaxformer.data.tokenizers import prompt_ids, start_id
from jaxformer.errors import UserError
from jaxformer.evaluate.scoring import Continuation, Score, rows_at_once, score
from jaxformer.generate.sampling import Sampling
from jaxformer.generate.text import until_end
from jaxformer.run import Run
from jaxformer.terminal import progress

MAX_NEW_TOKENS = 256  # the harness's default, where a task says nothing
SHORTEST_PROMPT = 64  # prompts are padded to this length, or twice, four times, … as much
GENERATION_KEYS = ("do_sample", "max_gen_toks", "min_p", "temperature", "top_k", "top_p", "until")


class Generation(NamedTuple):
    """What a task's `generation_kwargs` say."""

    max_new_tokens: int
    sampling: Sampling
    stops: tuple[str, ...]


def generation_of(kwargs: dict[str, Any], task: str) -> Generation:
    """Read a task's `generation_kwargs`.

    Raises:
        UserError: they have an option that sampling here does not.
    """
    known = dict(normalize_gen_kwargs(kwargs, MAX_NEW_TOKENS))
    unknown = sorted(set(known) - set(GENERATION_KEYS))
    if unknown:
        raise UserError(
            f"task {task}: generation_kwargs.{unknown[0]} is {known[unknown[0]]}, which is not "
            f"supported; allowed: {', '.join(GENERATION_KEYS)}"
        )
    sampling = Sampling(
        known["temperature"] if known["do_sample"] else 0.0,
        **{name: known.get(name) for name in ("top_k", "top_p", "min_p")},
    )
    return Generation(known["max_gen_toks"], sampling, tuple(filter(None, known["until"])))


class HarnessModel(TemplateLM):
    """Answers from the run's own compiled programs, on its mesh, in batches of its evaluation.

    A text begins as every document does in training, with bos where the tokenizer adds one. An
    empty context is replaced by `prefix_token_id`. Inputs longer than `data.sequence_length` lose
    their first tokens, and `shortened` counts them.
    """

    def __init__(
        self, run: Run, check: Callable[[], None] = lambda: None, draft: str | None = None
    ) -> None:
        """`check` is called after every batch; `draft` is that of `Run.decoder_with`."""
        super().__init__()
        self._run, self._check = run, check
        self._draft = draft
        if draft is not None:
            run.decoder_with(draft)  # refuse one that does not fit before anything is evaluated
        self._length = run.config.data.sequence_length
        self._rows = rows_at_once(run)
        self.shortened = 0

    def check_room(self, generation_kwargs: dict[str, Any], task: str) -> None:
        """Refuse a task that leaves no room for a prompt.

        Raises:
            UserError: it generates as many tokens as an input may have, or more.
        """
        new = generation_of(generation_kwargs, task).max_new_tokens
        if new >= self._length:
            raise UserError(
                f"task {task} generates {new} tokens, which leaves no room for a prompt in "
                f"data.sequence_length {self._length}; override it for this evaluation, or set "
                f"generation_kwargs.max_gen_toks in the task"
            )

    @property
    def eot_token_id(self) -> int:
        return self._run.tokenizer.eos_id

    @property
    def prefix_token_id(self) -> int:
        return start_id(self._run.tokenizer)

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
    ) -> list[int]:
        if add_special_tokens is False:
            return self._run.tokenizer.encode(string).tolist()
        return prompt_ids(self._run.tokenizer, string)

    def loglikelihood(
        self, requests: list[Instance], disable_tqdm: bool = True
    ) -> list[tuple[float, bool]]:
        """For (context, continuation): log p in nats, and whether greedy decoding would give it."""
        return super().loglikelihood(requests, disable_tqdm)

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = True
    ) -> list[float]:
        """Log p of whole texts, cut into pieces of the input's length that see one token before
        them; the last piece sees as many as there is room for."""
        windows = [list(self._windows(*request.args)) for request in requests]
        scores = iter(self._score(list(chain.from_iterable(windows))))
        return [sum(next(scores).log_prob for _ in pieces) for pieces in windows]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        """The continuations of (prompt, generation_kwargs), cut before the first stop string."""
        groups: dict[str, list[int]] = {}
        for index, request in enumerate(requests):
            groups.setdefault(json.dumps(request.args[1], sort_keys=True), []).append(index)
        texts: dict[int, str] = {}
        with progress("generating", len(requests)) as report:
            for members in groups.values():
                first = requests[members[0]]
                generation = generation_of(first.args[1], first.task_name or "")
                prompts = {index: self._prompt(requests[index], generation) for index in members}
                members.sort(key=lambda index: -len(prompts[index]))
                for start in range(0, len(members), self._rows):
                    batch = members[start : start + self._rows]
                    found = self._generate([prompts[index] for index in batch], generation, start)
                    texts.update(zip(batch, found, strict=True))
                    report(len(texts))
        return [texts[index] for index in range(len(requests))]

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], **kwargs: Any
    ) -> list[Score]:
        start = [self.prefix_token_id]
        return self._score(
            [Continuation(context or start, tokens) for _, context, tokens in requests]
        )

    def _score(self, continuations: Sequence[Continuation]) -> list[Score]:
        sizes = (len(each.context) + len(each.tokens) - 1 for each in continuations)
        self.shortened += sum(size > self._length for size in sizes)
        return score(self._run, continuations, self._check)

    def _windows(self, text: str) -> Sequence[Continuation]:
        tokens = self.tok_encode(text, add_special_tokens=False)
        windows = get_rolling_token_windows(tokens, self.prefix_token_id, self._length, 1)
        return [Continuation(*make_disjoint_window(window)) for window in windows]

    def _prompt(self, request: Instance, generation: Generation) -> list[int]:
        tokens = self.tok_encode(request.args[0]) or [self.prefix_token_id]
        room = self._length - generation.max_new_tokens
        self.shortened += len(tokens) > room
        return tokens[-room:]

    def _generate(self, prompts: list[list[int]], generation: Generation, seed: int) -> list[str]:
        padded = SHORTEST_PROMPT
        while padded < max(map(len, prompts)):
            padded *= 2
        filling = [[self.prefix_token_id]] * (self._rows - len(prompts))
        pieces = self._run.decoder_with(self._draft).decode(
            prompts + filling,
            max_new_tokens=generation.max_new_tokens,
            sampling=generation.sampling,
            seed=seed,
            padded_length=padded,
        )
        rows = np.zeros((len(prompts), 0), np.int32)
        texts: list[str] = []
        for piece in pieces:
            self._check()
            rows = np.concatenate([rows, piece[: len(prompts)]], axis=1)
            read = [
                self._text(row, prompt, generation.stops)
                for row, prompt in zip(rows, prompts, strict=True)
            ]
            texts = [text for _, text in read]
            if all(ended for ended, _ in read):
                break
        return texts

    def _text(
        self, row: np.ndarray, prompt: Sequence[int], stops: Sequence[str]
    ) -> tuple[bool, str]:
        """Whether a row has ended, and the text that it adds to its prompt's up to its end."""
        tokenizer = self._run.tokenizer
        text = tokenizer.decode(until_end(row, tokenizer.eos_id), prompt)
        found = [place for stop in stops if (place := text.find(stop)) >= 0]
        ended = bool(found) or tokenizer.eos_id in row
        return ended, text[: min(found)] if found else text
