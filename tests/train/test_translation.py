"""A run on pairs of texts, from training to translations."""

import json
from pathlib import Path

import pytest

from jaxformer.cli import main
from jaxformer.config import Config
from jaxformer.train.run import train

# The first letter decides which word is written.
CROSS = {"kind": "cross_attention", "num_heads": 2}
WORDS = {"one": "eins", "two": "zwei", "six": "sechs", "ten": "zehn"}
PAIRS = [(f"{en} {n}", f"{n} {de}") for en, de in WORDS.items() for n in "abc"]
SHAPE = {
    "d_model": 32,
    "mixer": {"kind": "attention", "num_heads": 2},
    "ffn": {"kind": "relu", "d_hidden": 64},
}


@pytest.fixture(scope="module")
def translator(tmp_path_factory) -> Path:
    """Learns twelve pairs by heart."""
    folder = tmp_path_factory.mktemp("pairs")
    lines = (json.dumps({"en": en, "de": de}) for en, de in PAIRS)
    (folder / "pairs.jsonl").write_text("\n".join(lines))
    config = Config.model_validate(
        {
            "model": SHAPE
            | {
                "num_layers": 2,
                "pattern": [
                    {"ffn": "none"},
                    {"mixer": {"kind": "cross_attention", "num_heads": 2}},
                ],
                "encoder": SHAPE
                | {"num_layers": 1, "length": 24, "inputs": {"kind": "shared_tokens"}},
            },
            "data": {
                "kind": "pairs",
                "source": f"jsonl:{folder / 'pairs.jsonl'}",
                "validation_source": f"jsonl:{folder / 'pairs.jsonl'}",
                "pairs": {"source": "en", "target": "de", "source_length": 24},
                "sequence_length": 24,
                "cache_dir": str(folder / "cache"),
            },
            "train": {
                "steps": 300,
                "batch_size": 6,
                "objective": {"kind": "next_token", "label_smoothing": 0.1},
            },
            "optimizer": {
                "kind": "adamw",
                "learning_rate": 0.01,
                "schedule": {"kind": "cosine", "warmup_steps": 10},
            },
            "eval": {"every": 300, "batches": None, "sample_tokens": 8},
            "checkpoint": {"every": 300},
            "run": {"dir": str(folder / "run")},
        }
    )
    assert train(config) == 0
    return folder / "run"


def test_pairs_that_were_learned_are_translated(translator: Path, tmp_path: Path, capsys):
    asked, expected = zip(*PAIRS, strict=True)
    texts = [word for text in asked[:2] for word in ("--text", text)]
    (tmp_path / "more.txt").write_text("\n\n".join(asked[2:]))
    assert main(["predict", str(translator), str(tmp_path / "more.txt"), *texts]) == 0
    assert capsys.readouterr().out.splitlines() == list(expected)
    assert main(["predict", str(translator), *texts, "--beams", "1", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == [{"source": en, "text": de} for en, de in PAIRS[:2]]
    sample = (translator / "samples.txt").read_text().splitlines()
    assert sample == ["--- step 300", asked[0], f"→ {expected[0]}"]


def test_a_run_is_measured_by_its_translations(translator: Path, capsys):
    assert main(["eval", str(translator), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["pairs"], report["chrf"], report["worst"]) == (12, 100.0, [])


def test_what_a_run_on_pairs_cannot_do_is_refused(translator: Path, tmp_path: Path, capsys):
    def refusal(*words: str) -> str:
        assert main([*words]) == 2
        return capsys.readouterr().err

    run = str(translator)
    assert "give it with jaxformer predict RUN --text" in refusal("generate", run, "--prompt", "x")
    assert "there is nothing to translate" in refusal("predict", run)
    (tmp_path / "picture.png").write_bytes(b"\x89PNG")
    assert "is no text in UTF-8" in refusal("predict", run, str(tmp_path / "picture.png"))
    assert "length_penalty is -1; allowed: 0 or more" in refusal(
        "predict", run, "--text", "x", "--length-penalty", "-1"
    )
    assert main(["predict", run, "--text", "one a" * 6]) == 0
    assert "1 of 1 texts are cut to the 24 tokens" in capsys.readouterr().err
