"""The tables of mixers, depths and objectives, and the pages made of them."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest

from jaxformer.cli import main
from jaxformer.listing import (
    depth_page,
    depth_rows,
    further_rows,
    list_tasks,
    mixer_rows,
    mixers_page,
    objective_rows,
)
from jaxformer.listing.structure import structure_page
from jaxformer.model.depth import DEPTHS, DepthConfig, Visit
from jaxformer.model.depth.stack import Stack
from jaxformer.objectives import OBJECTIVES

DOCS = Path(__file__).parents[1] / "docs"


@pytest.mark.parametrize(
    ("name", "page"),
    [("mixers", mixers_page), ("depth", depth_page), ("structure", structure_page)],
)
def test_a_generated_page_is_current(name: str, page: Callable[[], str]) -> None:
    assert (DOCS / f"{name}.md").read_text(encoding="utf-8") == page(), "run: make format"


class HalfConfig(DepthConfig):
    """Half of the tokens pass | every layer. The rest wait."""

    kind: Literal["half"] = "half"
    share: float
    example = {"share": 0.5}  # noqa: RUF012


class Half(Stack):
    config: HalfConfig

    def visits(self) -> tuple[Visit, ...]:
        return tuple(Visit(layer, self.config.share, 1.0) for layer in self.layers)


def test_a_depth_of_ones_own_is_compared_with_fixed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DEPTHS, HalfConfig, Half)
    row = {row[0]: row for row in depth_rows()}["half"]
    # Half of the tokens, whose attention sees half of the keys.
    assert 0.4 < float(row[2].removesuffix(" ×")) < 0.5
    assert row[3:6] == ("1.00 ×", "1.00 ×", "no")
    assert row[-1] == "Half of the tokens pass | every layer. The figures are for share=0.5."
    assert "| Half of the tokens pass \\| every layer." in depth_page()
    monkeypatch.setattr(HalfConfig, "example", {})
    row = {row[0]: row for row in depth_rows()}["half"]
    assert row[2:5] == ("by its options",) * 3


def test_every_depth_and_objective_has_a_row() -> None:
    assert len(depth_rows()) == 1 + len(DEPTHS)
    assert len(objective_rows()) == 1 + len(OBJECTIVES)


def test_predicting_one_token_more_costs_a_layer_and_a_head_more() -> None:
    rows = {row[0]: row for row in objective_rows()}
    assert rows["next_token"][2] == "1.00 ×" and rows["distillation"][2] == "1.00 ×"
    module = {row[0]: float(row[2].removesuffix(" ×")) for row in further_rows()[1:]}["modules"]
    assert float(rows["multi_token"][2].removesuffix(" ×")) == pytest.approx(1 + module)


@pytest.mark.parametrize("what", ["depths", "objectives"])
def test_the_command_lists_them(what: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", what]) == 0
    found = capsys.readouterr().out
    assert re.search(
        {"depths": "^fixed ", "objectives": "^multi_token +arXiv:2404.19737"}[what], found, re.M
    )
    assert ("halting=none | act | ponder | exits" in found) == (what == "depths")


def test_the_table_tells_how_costs_grow() -> None:
    rows = {row[0]: row for row in mixer_rows()}
    kernels = "splash (TPU), cuDNN (NVIDIA)"
    assert rows["attention"][3:6] == (kernels, "quadratic", "linear")
    # 8 heads of keys of 128 and values of 256 features in float32, and the document it is of.
    assert rows["retention"][3:] == ("none", "linear", "constant", f"{8 * 128 * 256 * 4 + 4:,}")


def test_every_task_is_listed_with_its_fields() -> None:
    text = list_tasks()
    kinds = [line for line in text.splitlines() if not line.startswith(" ")]
    assert len(kinds) == 9
    assert {"mqar", "needle", "word_problem"} < set(kinds)
    assert "options: vocab_size=256, num_pairs=8, power=0.01" in text
