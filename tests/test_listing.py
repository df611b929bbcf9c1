"""The table of mixers, and the page made of it."""

from pathlib import Path

from jaxformer.listing import list_tasks, mixer_rows, mixers_page

PAGE = Path(__file__).parents[1] / "docs/mixers.md"


def test_the_page_of_mixers_is_current() -> None:
    assert PAGE.read_text(encoding="utf-8") == mixers_page(), "run: make format"


def test_the_table_tells_how_costs_grow() -> None:
    rows = {row[0]: row for row in mixer_rows()}
    kernels = "splash (TPU), cuDNN (NVIDIA)"
    assert rows["attention"][3:6] == (kernels, "quadratic", "linear")
    # 8 heads of keys of 128 and values of 256 features in float32, and the document it is of.
    assert rows["retention"][3:] == ("none", "linear", "constant", f"{8 * 128 * 256 * 4 + 4:,}")


def test_every_task_is_listed_with_its_fields() -> None:
    text = list_tasks()
    kinds = [line for line in text.splitlines() if not line.startswith(" ")]
    assert len(kinds) == 8
    assert {"mqar", "needle", "word_problem"} < set(kinds)
    assert "options: vocab_size=256, num_pairs=8, power=0.01" in text
