"""BLEU and chrF of translations made up here."""

import json
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest

from jaxformer.config import Config
from jaxformer.data.pair_texts import PairOfTexts
from jaxformer.evaluate import translation
from jaxformer.evaluate.translation import report_on, summary, tell
from jaxformer.generate.beam_search import BeamSearch
from tests.runs import MODEL

PAIRS = [
    PairOfTexts("Der Hund bellt laut.", "The dog barks loudly."),
    PairOfTexts("Ja!", "Yes!"),
    PairOfTexts("Die Katze schläft heute hier.", "The cat sleeps here today."),
]
WRITTEN = ["The dog barks loudly.", "No?", "The cat sleeps here now."]


def chrf_of_definition() -> float:
    """Popović (2015), equation 1 with β = 2: precision and recall of runs of 1 to 6 characters
    other than spaces, averaged over the six."""
    shares = []
    for size in range(1, 7):
        counts = np.zeros(3)
        for (_, target), text in zip(PAIRS, WRITTEN, strict=True):
            runs = [
                Counter(each[at : at + size] for at in range(len(each) - size + 1))
                for each in (target.replace(" ", ""), text.replace(" ", ""))
            ]
            counts += [each.total() for each in (runs[0] & runs[1], runs[1], runs[0])]
        shares.append(counts[0] / counts[1:])
    precision, recall = np.mean(shares, axis=0)
    return 100 * 5 * precision * recall / (4 * precision + recall)


def test_the_report_is_that_of_its_definitions():
    report = summary(PAIRS, WRITTEN, 1.5)
    # With their signs, texts of 5, 2 and 6 words: all of the first are right, none of the second,
    # and all but `now` of the third. So are the runs of 2, 3 and 4 words without it.
    right = (5 + 0 + 5) * (4 + 0 + 3) * (3 + 0 + 2) * (2 + 0 + 1)
    written = (5 + 2 + 6) * (4 + 1 + 5) * (3 + 0 + 4) * (2 + 0 + 3)
    assert report.bleu == pytest.approx(100 * (right / written) ** 0.25)
    assert report.length_ratio == 1.0
    assert report.chrf == pytest.approx(chrf_of_definition())
    assert (report.loss, report.pairs) == (1.5, 3)
    assert report.bleu_signature.startswith("nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|")
    assert report.chrf_signature.startswith("nrefs:1|case:mixed|eff:yes|nc:6|nw:0|space:no|")
    assert [each.source for each in report.worst] == [PAIRS[1].source, PAIRS[2].source]
    assert report.worst[0].chrf == 0.0


def run_of(batches: int | None, translate=None) -> SimpleNamespace:
    """What the report needs of a run."""
    config = Config.model_validate(
        {
            "model": MODEL,
            "data": {"validation_source": "jsonl:test.jsonl"},
            "train": {"steps": 1, "batch_size": 1},
            "eval": {"batches": batches, "batch_size": 2},
        }
    )
    return SimpleNamespace(config=config, step=7, translate=translate)


@pytest.fixture(autouse=True)
def _a_loss_and_pairs(monkeypatch):
    monkeypatch.setattr(translation, "validate", lambda run, check: SimpleNamespace(loss=0.25))
    monkeypatch.setattr(translation, "validation_texts", lambda data: PAIRS)


def test_sources_are_translated_in_their_order_and_batches_limit_them(capsys):
    asked = []

    def translate(sources, search):
        asked.append((sources, search))
        return WRITTEN[: len(sources)]

    search = BeamSearch(beams=2)
    assert report_on(run_of(None, translate), search).pairs == 3
    assert report_on(run_of(1, translate), search).pairs == 2
    sources = [each.source for each in PAIRS]
    assert asked == [(sources, search), (sources[:2], search)]
    tell(run_of(1, translate), "runs/x", search, json=True)
    record = json.loads(capsys.readouterr().out)
    assert (record["step"], record["loss"], record["pairs"]) == (7, 0.25, 2)
    assert record["worst"] == [{"source": "Ja!", "target": "Yes!", "written": "No?", "chrf": 0.0}]
    tell(run_of(None, translate), "runs/x", search, json=False)
    out = capsys.readouterr().out
    assert "runs/x, step 7" in out and "chrF nrefs:1|" in out and "Katze" in out


def test_the_package_is_asked_for_before_anything_runs(monkeypatch):
    monkeypatch.setattr(translation.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(translation.UserError, match=r"pip install 'jaxformer\[translate\]'"):
        report_on(run_of(None), BeamSearch())
