"""What a report says follows from the results, and its page works in a browser."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from arena.made_up import afterwards, made_up

from jaxformer.arena.afterwards import Afterwards
from jaxformer.arena.announce import describe_match
from jaxformer.arena.findings import findings_page
from jaxformer.arena.report import write_report
from jaxformer.arena.report.figures import pareto, scaling_figures
from jaxformer.arena.results import entries
from jaxformer.arena.scaling import Ladder
from jaxformer.arena.verdict import outcome, rate_of, reproduction, verdict, winner
from jaxformer.errors import UserError
from tests.data.pictures import MODEL

CHROMIUM = shutil.which("chromium")
CHECK = {"task": "parity", "metric": "loss", "better": "retention", "than": "attention"}


def finding(**check):
    return {"claim": "c", "published": "p", "source": "s", "checks": [CHECK | check]}


def test_the_best_learning_rate_is_chosen_for_each(tmp_path):
    arena, _, every = made_up(tmp_path, 0.2)
    found = entries(arena, every)
    assert {entry.learning_rate for entry in found.values()} == {1e-3}
    assert found["parity", "retention"].interval("loss").mean == pytest.approx(1.3, abs=0.02)
    assert found["parity", "retention"].interval("loss", 4).mean == pytest.approx(5.2, abs=0.1)


def test_a_winner_is_announced_only_where_intervals_are_apart(tmp_path):
    arena, _, every = made_up(tmp_path / "far", 0.2)
    found = entries(arena, every)
    assert winner(arena, "parity", found) is None  # of window one seed diverged: no interval
    (text,) = verdict(arena, found)
    assert "significantly better than attention (p ≤ 0.001): retention" in text
    arena, _, every = made_up(tmp_path / "near", 0.005, noise=0.05)
    (text,) = verdict(arena, entries(arena, every))
    assert "there is no clear winner" in text
    assert "no difference from attention is significant with 4 seeds" in text


@pytest.mark.parametrize(
    ("gap", "check", "holds", "words"),
    [
        (0.2, {"by": 0.1}, True, r"retention 1\.\d+ \[.*attention 1\.5\d+ \["),
        (0.2, {"by": 0.3}, False, "the means do not differ by 0.3 in this direction"),
        (-0.2, {}, False, "the mean is on the other side"),
        (-0.2, {"by": -0.3}, True, "the mean may be worse by 0.3"),
        (-0.2, {"by": -0.1}, False, "worse by more than 0.1"),
        (0.2, {"than": 1.4}, True, "bound 1.4"),
        (0.2, {"than": 1.2}, False, "bound 1.2"),
        (0.2, {"at": 4}, True, "loss on parity at 4× the trained length"),
    ],
)
def test_a_finding_is_reproduced_or_not(tmp_path, gap, check, holds, words):
    arena, _, every = made_up(tmp_path, gap, finding=finding(**check))
    found, text = outcome(arena.finding.checks[0], entries(arena, every))
    assert found is holds
    assert re.search(words, text), text


def test_overlapping_intervals_reproduce_nothing(tmp_path):
    arena, _, every = made_up(tmp_path, 0.02, noise=0.1, finding=finding())
    holds, text = outcome(arena.finding.checks[0], entries(arena, every))
    assert not holds
    assert "overlap" in text or "do not differ" in text


def test_the_front_has_what_nobody_beats_in_both():
    points = [(1.0, 3.0, None, None), (2.0, 3.5, None, None), (2.0, 2.0, None, None)]
    assert pareto(points, higher_is_better=False) == (
        (1.0, 3.0, None, None),
        (2.0, 2.0, None, None),
    )
    assert [point[1] for point in pareto(points, higher_is_better=True)] == [3.0, 3.5]


def test_a_reason_is_given_where_a_finding_is_not_reproduced(tmp_path):
    checks = [CHECK, CHECK | {"by": 0.3}]
    words = {"claim": "c", "published": "p", "source": "s", "why_not": "too few steps"}
    for used, word in ((checks, "Partly reproduced"), (checks[1:], "Not reproduced")):
        arena, _, every = made_up(tmp_path, 0.2, finding=words | {"checks": used})
        said, lines = reproduction(arena.finding, entries(arena, every))
        assert said == word
        assert lines[-1] == "why: too few steps"
    arena, _, every = made_up(tmp_path, 0.2, finding=words | {"checks": checks[:1]})
    said, lines = reproduction(arena.finding, entries(arena, every))
    assert said == "Reproduced"
    assert len(lines) == 1


def test_a_rate_at_the_edge_of_the_sweep_is_marked(tmp_path):
    arena, _, every = made_up(tmp_path, 0.2)
    entry = entries(arena, every)["parity", "attention"]
    assert rate_of(arena, entry) == "0.001*"
    wider = arena.model_copy(update={"learning_rates": (1e-4, 1e-3, 1e-2)})
    assert rate_of(wider, entry) == "0.001"


def test_the_page_of_findings_says_what_was_published_and_what_is_seen(tmp_path):
    said = finding(by=0.3) | {"advice": "replace it"}
    arena, matched, _ = made_up(tmp_path, 0.2, finding=said)
    kept = {"arena": arena.model_dump(mode="json"), "matched": matched.to_json()}
    (tmp_path / "arena" / "arena.json").write_text(json.dumps(kept))
    text = findings_page([(Path("configs/arena/findings/some_claim.yaml"), arena)])
    assert "## some claim\n\nc\n\nPublished: p (s).\n\n**Not reproduced**" in text
    assert "- does not hold: loss on parity: retention 1." in text
    assert text.endswith("\n\nImprove or replace: replace it\n")


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    arena, matched, every = made_up(tmp_path_factory.mktemp("arena"), 0.2, finding=finding())
    return write_report(arena, matched, every, afterwards(), "jaxformer arena arena.yaml")


def test_the_table_has_a_row_for_every_cell_and_test(report):
    table = pq.read_table(report[2]).to_pylist()
    assert len(table) == 3 * 2 * 4 * 2 - 2
    failed = [row for row in table if row["failed"]]
    assert {row["contestant"] for row in failed} == {"window"}
    assert all(row["loss"] is None for row in failed)


def test_the_markdown_has_verdict_figures_and_commands(report):
    text = report[1].read_text()
    assert text.startswith("# arena\n\nOn parity, ")
    assert "| window (1 of 4 failed) |" in text
    assert "**Reproduced**: c (published: p; s)" in text
    for file in re.findall(r"\]\((images/.*?)\)", text):
        assert (report[1].parent / file).stat().st_size > 5000
    assert text.count("jaxformer train") == 24


def test_the_page_needs_nothing_else(report):
    text = report[0].read_text()
    assert re.findall(r"(?:src|href)=", text) == []
    assert text.count("https://") + text.count("http://") == text.count(
        "http://www.w3.org/2000/svg"
    )
    assert "0 1 &lt;/pre&gt; 1" in text
    figures = json.loads(re.search(r'id="figures">(.*?)</script>', text, re.S)[1])
    assert {figure["task"] for figure in figures} == {"parity", "efficiency"}
    loads = next(figure for figure in figures if figure["name"] == "parity-load")
    assert [len(series["points"]) for series in loads["series"]] == [0, 0, 3]  # window alone
    assert [point[1] for point in loads["series"][2]["points"]] == pytest.approx([2, 0.2, 0.02])
    curve = next(figure for figure in figures if figure["name"] == "parity-loss-tokens")
    assert [len(series["points"]) for series in curve["series"]] == [3, 3, 3]


def recall(field: str, values: list[float]) -> dict:
    task = {"kind": "mqar", "vocab_size": 64, "num_pairs": 2}
    data = {"task": task, "tokenizer": "ids:64", "sequence_length": 16}
    difficulty = {"field": field, "values": values}
    return {"recall": {"keys": {"data": data}, "lengths": [1, 2], "difficulty": difficulty}}


def test_accuracy_is_shown_by_length_and_difficulty(tmp_path):
    arena, matched, every = made_up(tmp_path, 0.1, noise=0.0, tasks=recall("num_pairs", [3, 4]))
    assert [test.data.task.num_pairs for test in every[0].held_out] == [2, 2, 3, 3, 4, 4]
    files = write_report(arena, matched, every, Afterwards([], {}), "jaxformer arena a.yaml")
    html, text, table = files[0].read_text(), files[1].read_text(), pq.read_table(files[2])
    assert "Accuracy by length and num_pairs" in html
    assert "<th>2×, 4</th>" in html
    assert "| attention | 62% | 62% | 50% | 50% | 62% | 62% |" in text
    assert set(table["level"].to_pylist()) == {None, 3.0, 4.0}


RETENTION = {"kind": "bidirectional", "mixer": {"kind": "retention", "num_heads": 2}}
ENCODERS = {"attention": {}, "retention": {"model": {"mixer": RETENTION}}}
OF_PICTURES = {
    "kind": "images",
    "source": "imagefolder:pictures",
    "tokenizer": "classes:3",
    "images": {"size": [8, 8]},
    "sequence_length": 4,
}


def pictures(**options) -> dict:
    keys = {
        "model": MODEL | {"d_model": 32},
        "data": OF_PICTURES,
        "train": {"objective": {"kind": "classes"}},
    }
    return {"contestants": ENCODERS, "tasks": {"pictures": {"keys": keys} | options}}


def test_classes_are_compared_by_accuracy_and_encoders_have_no_decoding_state(
    tmp_path, monkeypatch
):
    def said(directories: dict[str, str]) -> list[dict]:
        answers = dict(zip(directories, ("<cat>", "dog"), strict=True))
        return [{"picture": "iVBOR", "is": "dog", "answers": answers}]

    monkeypatch.setattr("jaxformer.arena.afterwards.seen_by", said)
    arena, matched, every = made_up(tmp_path, 0.4, **pictures(), match=None)
    sizes = describe_match(arena, matched)
    assert "FLOPs/token" in sizes and "state at" not in sizes
    after = Afterwards.of(arena, matched, every)  # asks no classifier to write
    assert after.samples == {}
    files = write_report(arena, matched, every, after, "jaxformer arena a.yaml")
    page, text = files[0].read_text(), files[1].read_text()
    assert 'src="data:image/png;base64,iVBOR"></td><td>dog</td>' in page
    assert "<td><mark>&lt;cat&gt;</mark></td><td>dog</td>" in page
    # 1 - 1.1 / 4 and 1 - 1.5 / 4
    assert "retention wins with 0.72" in text and "attention following with 0.62" in text
    assert "significantly better than attention" in text
    assert "accuracy against FLOPs per token" in text and "decoding state" not in text


def test_pictures_have_one_size(tmp_path):
    with pytest.raises(UserError, match=r"lengths is \[1, 2\], but data.kind is images"):
        made_up(tmp_path, 0.1, **pictures(lengths=[1, 2]), match=None)
    with pytest.raises(UserError, match="efficiency.task is pictures, but data.kind is images"):
        made_up(tmp_path, 0.1, **pictures(), match=None, efficiency={"task": "pictures"})


@pytest.mark.parametrize(
    ("field", "values", "words"),
    [
        (
            "num_pair",
            [4],
            "is not a field of its task; allowed: kind, vocab_size, num_pairs, power",
        ),
        ("num_pairs", [5], "tasks.recall cannot be tested at 1×, num_pairs 5: .*needs rows of 20"),
    ],
)
def test_a_difficulty_that_cannot_be_is_refused_before_anything_runs(
    tmp_path, field, values, words
):
    with pytest.raises(UserError, match=words):
        made_up(tmp_path, 0.1, tasks=recall(field, values))


def test_the_ladder_is_drawn_with_its_laws():
    ladders = {"attention": Ladder((1e12, 1e13), np.array([[2.0, 2.0], [1.0, 1.0]]))}
    (figure,) = scaling_figures(ladders)
    measured, law = figure.series
    assert [point[:2] for point in measured.points] == [(1e12, 2.0), (1e13, 1.0)]
    assert [point[0] for point in law.points] == [1e12, 1e14]
    assert [point[1] for point in law.points] == pytest.approx([2.0, 0.5])
    assert scaling_figures({}) == []


PROBE = """
<script>
const first = document.querySelector("figure");
const lines = () => first.querySelectorAll("polyline").length;
const button = first.querySelector("button");
const counts = [document.querySelectorAll("figure svg").length, lines()];
button.click();
counts.push(lines(), button.getAttribute("aria-pressed"));
button.click();
counts.push(lines());
const svg = first.querySelector("svg"), box = svg.getBoundingClientRect();
const place = { clientX: box.left + 90, clientY: box.top + 90 };
svg.dispatchEvent(new PointerEvent("pointermove", place));
counts.push(first.querySelector(".tip").textContent, document.body.scrollWidth <= innerWidth);
document.body.dataset.probe = JSON.stringify(counts);
</script></body>"""


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
def test_the_page_draws_toggles_and_tells_in_a_browser(report, tmp_path):
    page = tmp_path / "probed.html"
    text = report[0].read_text()
    page.write_text(text.replace("</body>", PROBE))
    options = (
        "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run "
        "--disable-background-networking --disable-component-update --disable-sync "
        f"--user-data-dir={tmp_path}/profile --enable-logging=stderr --window-size=420,900"
    ).split()
    shot = report[0].with_name("report.png")
    finished = subprocess.run(
        [CHROMIUM, *options, f"--screenshot={shot}", "--dump-dom", page.as_uri()],
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    )
    said = [line for line in finished.stderr.splitlines() if "CONSOLE" in line]
    assert said == []
    probe = re.search(r'data-probe="(.*?)"', finished.stdout)[1].replace("&quot;", '"')
    drawn, before, without, pressed, after, tip, fits = json.loads(probe)
    assert drawn == text.count("<figure")
    assert (before, without, after) == (3, 2, 3)
    assert pressed == "false"
    assert re.match(r"(attention|retention|window): loss \(nats\) [\d.]+ .*at tokens", tip), tip
    assert fits is True
    assert shot.stat().st_size > 10_000
