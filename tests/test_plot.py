import json

import pytest

from jaxformer.cli import main
from jaxformer.plot import read_curve


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "small"
    folder.mkdir()
    rows = [
        {"step": 10, "loss": 3.0},
        {"step": 20, "loss": 2.0},
        {"step": 20, "eval/loss": 2.5},
        {"step": 30, "loss": None},
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_a_curve_has_the_rows_that_carry_its_metric(run):
    assert read_curve(run, "loss") == ([10, 20], [3.0, 2.0])
    assert read_curve(run, "eval/loss") == ([20], [2.5])
    assert read_curve(run, "mfu") == ([], [])


@pytest.mark.parametrize(
    ("name", "first"), [("loss.png", b"\x89PNG"), ("loss.svg", b"<?xml"), ("loss.pdf", b"%PDF")]
)
def test_the_picture_has_the_format_of_its_name(name, first, run, tmp_path, capsys):
    out = tmp_path / name
    assert main(["plot", str(run), str(run), "--out", str(out)]) == 0
    assert out.read_bytes().startswith(first)
    assert capsys.readouterr().out == f"wrote {out}\n"


@pytest.mark.usefixtures("run")
@pytest.mark.parametrize(
    ("runs", "out", "message"),
    [
        (["small"], "loss.gifx", "'.gifx' is not an image format; allowed: "),
        (["small"], "no/loss.png", "/no does not exist"),
        (["none"], "loss.png", "none/metrics.jsonl does not exist; give a run directory"),
        (["broken"], "loss.png", "broken/metrics.jsonl, line 1 is not JSON: "),
        (["young"], "loss.png", "young/metrics.jsonl has no losses yet"),
    ],
)
def test_what_cannot_be_drawn_is_refused_by_name(runs, out, message, tmp_path, capsys):
    for name, text in {"broken": '{"st\n{"step": 1}\n', "young": ""}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.jsonl").write_text(text)
    paths = [str(tmp_path / name) for name in runs]
    assert main(["plot", *paths, "--out", str(tmp_path / out)]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / out).exists()
