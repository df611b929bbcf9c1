"""A Llama gives lm-evaluation-harness here what it gives it through transformers."""

import string

import numpy as np
import pytest
import tokenizers
import torch
import transformers
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from parity.imported import MODELS
from parity.weights import move

import jaxformer as jf
from jaxformer.checkpoint.interop.folder import HuggingFaceFolder
from jaxformer.checkpoint.interop.importing import import_model
from jaxformer.evaluate.harness_model import HarnessModel

LENGTH = 48
CHARACTERS = string.ascii_lowercase + " .,;:!?-"
VOCAB = 3 + len(CHARACTERS)
TEXTS = ["a question: ", "the answer is", "yes.", "no, never!", "x", "a long text, " * 9]


def characters() -> tokenizers.Tokenizer:
    """A token for each character; a text begins with <s>, as Llama's does."""
    vocabulary = {token: index for index, token in enumerate(["<s>", "</s>", "<?>", *CHARACTERS])}
    assert len(vocabulary) == VOCAB
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, [], unk_token="<?>"))
    tokenizer.decoder = tokenizers.decoders.Fuse()
    tokenizer.add_special_tokens(["<s>", "</s>"])
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    return tokenizer


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[HFLM, HarnessModel]:
    torch.manual_seed(0)
    sizes = {"vocab_size": VOCAB, "bos_token_id": 0, "eos_token_id": 1}
    config = transformers.LlamaConfig.from_dict(MODELS["llama"].to_dict() | sizes)
    theirs = transformers.AutoModelForCausalLM.from_config(config).eval()
    move(theirs)
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=characters(), bos_token="<s>", eos_token="</s>"
    )
    folder = tmp_path_factory.mktemp("llama")
    theirs.save_pretrained(folder / "theirs")
    fast.save_pretrained(folder / "theirs")
    import_model(HuggingFaceFolder(folder / "theirs"), folder / "run")
    run = jf.load(folder / "run", [f"data.sequence_length={LENGTH}", "train.batch_size=4"])
    options = {"backend": "causal", "max_length": LENGTH, "batch_size": 3, "device": "cpu"}
    return HFLM(pretrained=theirs, tokenizer=fast, **options), HarnessModel(run)


def asked(kind: str, arguments: list[tuple]) -> list[Instance]:
    return [Instance(kind, {}, each, place) for place, each in enumerate(arguments)]


def test_log_likelihoods_are_those_through_transformers(both):
    theirs, ours = both
    pairs = [(one, other) for one in ["", *TEXTS] for other in TEXTS[:5]]
    requests = asked("loglikelihood", pairs)
    expected, found = theirs.loglikelihood(requests), ours.loglikelihood(requests)
    assert np.std([log_prob for log_prob, _ in expected]) > 1
    np.testing.assert_allclose(
        [log_prob for log_prob, _ in found], [each for each, _ in expected], atol=1e-4, rtol=0
    )
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
    assert ours.shortened > 0


def test_what_a_model_generates_is_greedy_here_and_there(both):
    theirs, ours = both
    requests = asked("generate_until", [(text, {"max_gen_toks": 3}) for text in TEXTS])
    pairs = [(t, a) for t, a in zip(TEXTS, theirs.generate_until(requests), strict=True) if a]
    requests = asked("loglikelihood", pairs)
    expected, found = theirs.loglikelihood(requests), ours.loglikelihood(requests)
    assert any(greedy for _, greedy in expected)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]


def test_rolling_log_likelihoods_are_those_through_transformers(both):
    """Where it is told to add no <s>: it would count that as a token, after the one before all."""
    theirs, ours = both
    requests = asked("loglikelihood_rolling", [(text,) for text in TEXTS])
    theirs.add_bos_token = False
    try:
        expected = theirs.loglikelihood_rolling(requests)
    finally:
        theirs.add_bos_token = None
    np.testing.assert_allclose(ours.loglikelihood_rolling(requests), expected, atol=1e-4, rtol=0)


def test_generated_texts_are_those_through_transformers(both):
    theirs, ours = both
    for until in ([], ["a"], [" ", "e", "xy"]):
        kwargs = {"until": until, "max_gen_toks": 12, "do_sample": False}
        requests = asked("generate_until", [(text, kwargs) for text in TEXTS])
        expected = theirs.generate_until(requests)
        assert ours.generate_until(requests) == expected
        assert len(set(expected)) > 2
