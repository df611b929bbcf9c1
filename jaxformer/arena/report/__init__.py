"""The report of an arena: a page, the same in Markdown with images, and a table."""

from collections.abc import Sequence
from pathlib import Path

import pyarrow.parquet as pq

from jaxformer.arena.afterwards import Afterwards
from jaxformer.arena.announce import describe_match
from jaxformer.arena.cells import Cell
from jaxformer.arena.config import ArenaConfig
from jaxformer.arena.match import Matched
from jaxformer.arena.report.figures import efficiency_figures, figures, scaling_figures
from jaxformer.arena.report.images import draw_images
from jaxformer.arena.report.markdown import markdown
from jaxformer.arena.report.page import page
from jaxformer.arena.report.provenance import provenance
from jaxformer.arena.results import entries, ladders, table
from jaxformer.arena.scaling import describe_scaling
from jaxformer.paths import replace_text


def write_report(
    arena: ArenaConfig,
    matched: Matched,
    cells: Sequence[Cell],
    after: Afterwards,
    command: str,
) -> list[Path]:
    """Write report.html, report.md with images/, and results.parquet; every cell must have ended.

    Args:
        command: what runs this arena.

    Raises:
        UserError: matplotlib is not installed.
    """
    folder = Path(arena.dir)
    found = entries(arena, cells)
    climbed = ladders(arena, matched, found)
    drawn = [
        *figures(arena, matched, found),
        *scaling_figures(climbed),
        *efficiency_figures(arena, after.efficiency),
    ]
    laws = describe_scaling(climbed, arena.baseline)
    sizes, origin = describe_match(arena, matched), provenance(cells, command)
    images = draw_images(drawn, folder / "images")
    html = page(arena, found, drawn, laws, after, sizes, origin)
    replace_text(folder / "report.html", html)
    replace_text(folder / "report.md", markdown(arena, found, images, laws, sizes, origin))
    pq.write_table(table(cells), folder / "results.parquet")
    return [folder / name for name in ("report.html", "report.md", "results.parquet")]
